"""The memory store among threads: who is told of a slot, and who finds it by himself."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from slotline import Limits, MemoryStore, Pool
from slotline.pools.place import Place
from tests.harness.interrupts import Interrupts
from tests.harness.waiting import wait_until


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


def limits_of(store: MemoryStore, several: bool) -> Pool | Limits:
    return Limits(Pool("p", 1, store=store), Pool("q", 1, store=store)) if several else Pool("p", 1, store=store)


@pytest.mark.parametrize("several", [False, True], ids=["one", "several"])
def test_a_waiter_that_finds_its_slot_before_it_is_told_of_it_keeps_it(store, monkeypatch, several):
    pool = limits_of(store, several)
    held = pool.sync.acquire()
    place = Place(pool)
    assert place.sync.enter() is None
    ring, found = store.wakeups.ring, []

    def look_first(token: str, payload: bytes) -> bool:
        found.append(place.sync.enter())
        return ring(token, payload)

    monkeypatch.setattr(store.wakeups, "ring", look_first)
    pool.sync.release(held)
    assert [slot is not None and not slot.lost for slot in found] == [True]
    assert [one.sync.size() for one in pool.pools] == [1 for _ in pool.pools]
    pool.sync.release(found[0])


@pytest.mark.parametrize("several", [False, True], ids=["one", "several"])
def test_a_waiter_that_is_about_to_leave_is_passed_over(store, several):
    pool = limits_of(store, several)
    held = pool.sync.acquire()
    first, second = Place(pool), Place(pool)
    assert (first.sync.enter(), second.sync.enter()) == (None, None)
    first.close()
    pool.sync.release(held)
    slot = second.sync.enter()
    assert slot is not None
    first.sync.leave()
    assert not slot.lost
    assert [one.sync.size() for one in pool.pools] == [1 for _ in pool.pools]
    pool.sync.release(slot)


@pytest.mark.parametrize("several", [False, True], ids=["one", "several"])
def test_a_waiter_whose_event_loop_was_closed_gets_nothing(store, several):
    pool = limits_of(store, several)
    held = pool.sync.acquire()
    loop = asyncio.new_event_loop()
    waits: Any = loop.create_task(pool.acquire(timeout=None))
    waits._log_destroy_pending = False
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()
    assert pool.pools[0].sync.info().waiting == 1
    pool.sync.release(held)
    assert [(one.sync.size(), one.sync.info().waiting) for one in pool.pools] == [(0, 0) for _ in pool.pools]


def test_garbage_that_holds_a_slot_may_be_collected_in_the_midst_of_a_command(store):
    pool, other = Pool("p", 1, store=store), Pool("q", 1, store=store)

    def rows() -> Iterator[int]:
        with pool:
            yield 1

    garbage = rows()
    next(garbage)

    class Books(dict[Any, Any]):
        def get(self, *args: Any) -> Any:
            garbage.close()
            return super().get(*args)

    store.pools = Books(store.pools)
    asks = threading.Thread(target=other.sync.acquire, daemon=True)
    asks.start()
    wait_until("the command has ended", lambda: not asks.is_alive())
    assert (pool.sync.size(), other.sync.size()) == (0, 1)


def test_neither_taking_nor_giving_back_looks_through_all_who_hold(store):
    pool = Pool("p", 3, store=store)

    class Holders(dict[Any, Any]):
        def items(self) -> Any:
            raise AssertionError("all of them")

        values = __iter__ = items

    pool.sync.acquire()
    (state,) = store.pools.values()
    state.slots = Holders(state.slots)
    pool.sync.release(pool.sync.acquire())
    with pool.slot(timeout=1):
        pass


@pytest.mark.parametrize("act", ["acquire", "release"])
def test_an_interrupt_at_any_moment_leaves_the_books_of_a_pool_right(store, act):
    number, interrupted = 0, True
    while interrupted:
        number += 1
        interrupts = Interrupts(number, lambda path, _: path[-1].startswith("_memory_"))
        pool = Pool(f"p{number}", 2, max_per_partition=1, store=store)
        if act == "acquire":
            interrupted = interrupts.during(lambda pool=pool: pool.sync.release(pool.sync.acquire(partition="a")))
        else:
            held = pool.sync.acquire(partition="a")
            waits = Place(pool, partition="a")
            assert waits.sync.enter() is None
            interrupted = interrupts.during(lambda pool=pool, held=held: pool.sync.release(held))
            slot = waits.sync.enter()
            assert slot is not None
            pool.sync.release(slot)
        assert (pool.sync.size(), pool.sync.info().waiting) == (0, 0), number
        slots = [pool.sync.acquire(partition=name) for name in ("a", "b")]
        for slot in slots:
            pool.sync.release(slot)
    assert number > 10
