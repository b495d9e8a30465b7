"""A child whose end was seen is looked at until its pool has replaced it."""

from __future__ import annotations

import inspect
from types import SimpleNamespace
from typing import Any

import pytest
from celery.concurrency import asynpool

from celery_ext.reaping import CELERYS, Reaping


class Prefork:
    """A pool whose only child ends, and can be reaped when somebody has looked for it so many times."""

    def __init__(self, looks: int) -> None:
        self.child = object()
        self._pool, self.looks, self.left = [self.child], 0, looks

    def _event_process_exit(self, hub: Any, child: Any) -> None:
        assert (hub, child) == ("hub", self.child)
        self.maintain_pool()

    def maintain_pool(self) -> None:
        self.looks += 1
        if self.looks == self.left:
            self._pool = [object()]


class Consumer:
    def __init__(self, pool: Any) -> None:
        self.pool, self.timer = SimpleNamespace(_pool=pool), self
        self.pauses: list[float] = []
        self.due: list[Any] = []

    def call_after(self, seconds: float, function: Any, args: Any) -> None:
        self.pauses.append(seconds)
        self.due.append((function, args))


@pytest.mark.parametrize("looks", [1, 2, 4])
def test_it_is_looked_at_until_it_is_reaped(looks: int) -> None:
    pool = Prefork(looks)
    consumer = Consumer(pool)
    reaping = Reaping(consumer)
    for _ in range(2):  # at each connection
        reaping.install()
    pool._event_process_exit("hub", pool.child)
    while consumer.due:
        function, args = consumer.due.pop()
        function(*args)
    assert pool.looks == looks
    assert consumer.pauses == [0.01 * 2**number for number in range(looks - 1)]


def test_one_that_never_can_be_is_left_to_celerys_own_look() -> None:
    pool = Prefork(-1)
    consumer = Consumer(pool)
    Reaping(consumer).install()
    pool._event_process_exit("hub", pool.child)
    while consumer.due:
        function, args = consumer.due.pop()
        function(*args)
    assert sum(consumer.pauses) < 2 * CELERYS


def test_a_pool_of_another_kind_is_left_alone() -> None:
    for pool in (SimpleNamespace(), SimpleNamespace(_pool=SimpleNamespace())):
        Reaping(SimpleNamespace(pool=pool)).install()


@pytest.mark.lowest
def test_celerys_pool_calls_what_is_replaced_by_its_name() -> None:
    assert "self._event_process_exit, hub, proc" in inspect.getsource(asynpool.AsynPool._track_child_process)
    assert "maintain_pool" in inspect.getsource(asynpool.AsynPool._event_process_exit)
