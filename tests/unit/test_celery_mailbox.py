"""Errands for the gate are done once, one at a time, in every kind of worker."""

from __future__ import annotations

import inspect
import select
import threading
from collections import deque
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from kombu.asynchronous import Hub

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


@pytest.fixture
def hub_box() -> Iterator[HubMailbox]:
    box = HubMailbox()
    yield box
    box.close()


def in_another_thread(does: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=does)
    thread.start()
    return thread


def test_an_errand_that_suits_any_thread_is_done_where_it_comes_up_if_no_other_is_being_done(
    hub_box: HubMailbox,
) -> None:
    done: list[int] = []
    thread = in_another_thread(lambda: hub_box.do_here(lambda: done.append(threading.get_ident())))
    thread.join()
    assert done == [thread.ident]


def test_while_another_errand_is_being_done_the_loop_does_it(hub_box: HubMailbox) -> None:
    done: list[int] = []

    def errand() -> None:
        in_another_thread(lambda: hub_box.do_here(lambda: done.append(threading.get_ident()))).join()
        assert done == []

    hub_box.do(errand)
    assert done == [threading.get_ident()]


def test_what_the_loop_has_done_is_done_though_another_thread_was_at_an_errand(hub_box: HubMailbox) -> None:
    begun, done = threading.Event(), deque[str]()

    def errand() -> None:
        begun.set()
        wait_until("the loop has something to do, too", lambda: hub_box._errands, 20)
        done.append("here")

    thread = in_another_thread(lambda: hub_box.do_here(errand))
    assert begun.wait(20)
    hub_box.do(done.append, "loop")
    assert list(done) == ["here", "loop"]
    thread.join()


def test_what_another_thread_leaves_behind_wakes_the_loop(hub_box: HubMailbox) -> None:
    woken: list[Callable[..., None]] = []
    hub_box.register(SimpleNamespace(add_reader=lambda descriptor, callback: woken.append(callback)))
    done: list[int] = []
    in_another_thread(lambda: hub_box.do_here(lambda: hub_box.post(done.append, 1))).join()
    assert done == []
    woken[0]()
    assert done == [1]


@pytest.mark.parametrize("hears", [False, True])
def test_a_loop_that_hears_no_calls_of_other_threads_is_woken_for_what_they_bring(
    hub_box: HubMailbox, hears: bool
) -> None:
    hub = SimpleNamespace(add_reader=lambda *_: None, **({"_waker": None} if hears else {}))
    hub_box.register(hub)
    in_another_thread(lambda: hub_box.do_here(print)).join()
    assert select.select([hub_box._reader], [], [], 0)[0] == ([] if hears else [hub_box._reader])


def test_kombu_shows_whether_its_loop_hears_calls_of_other_threads() -> None:
    wakes = "waker.wake()" in inspect.getsource(Hub.call_soon)
    assert hasattr(Hub(), "_waker") is wakes


def test_an_errand_that_fails_elsewhere_leaves_the_box_open(hub_box: HubMailbox) -> None:
    in_another_thread(lambda: hub_box.do_here(lambda: 1 / 0)).join()
    done: list[int] = []
    hub_box.do(done.append, 1)
    assert done == [1]
