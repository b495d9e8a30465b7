"""Errands for the gate are done once, one at a time, in every kind of worker."""

from __future__ import annotations

import threading
from collections import deque
from typing import Any

import pytest

from celery_ext.mailbox import AnywhereMailbox, HubMailbox, ThreadMailbox
from tests.harness.waiting import wait_until

pytestmark = pytest.mark.lowest


@pytest.mark.parametrize("kind", [AnywhereMailbox, HubMailbox, ThreadMailbox])
def test_a_mailbox_does_every_errand_once_and_one_at_a_time(kind: Any) -> None:
    box = kind()
    at_once = most = 0
    done: deque[int] = deque()

    def errand(number: int) -> None:
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        done.append(number)
        if number < 10:
            box.post(errand, number + 1000)
        at_once -= 1

    def post(first: int) -> None:
        for number in range(first, first + 100):
            box.post(errand, number)

    threads = [threading.Thread(target=post, args=(first,)) for first in (0, 100, 200, 300)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    wait_until("all is done", lambda: box.drain() or len(done) == 410, 10)
    assert sorted(done) == [*range(400), *range(1000, 1010)]
    assert most == 1
    box.close()


def test_an_errand_that_fails_does_not_stop_the_others() -> None:
    box, done = AnywhereMailbox(), []
    box.post(lambda: 1 / 0)
    box.post(done.append, 1)
    assert done == [1]
