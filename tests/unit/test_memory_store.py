"""The memory store among threads: who is told of a slot, and who finds it by himself."""

from __future__ import annotations

import pytest

from slotline import Limits, MemoryStore, Pool
from slotline.pools.place import Place


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
