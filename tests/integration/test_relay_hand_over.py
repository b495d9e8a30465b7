"""What passes from one run to the next is the next one's alone, whatever happens at the moment of the hand-over."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from slotline import Limits, Pool, RedisStore, Slot
from slotline.pools import Relay
from slotline.pools._passing import PASSES
from slotline.pools.slot import SHORT
from tests.harness.fixtures_relays import hurry
from tests.harness.proxy import TcpProxy
from tests.harness.waiting import wait_until


@pytest.fixture
def make_store(redis_url: str) -> Any:
    made: list[RedisStore] = []

    def make(url: str = redis_url) -> RedisStore:
        made.append(RedisStore(url))
        return made[-1]

    yield make
    for store in made:
        store.sync.close()


def passable(pool: Pool) -> Slot:
    """Return a slot that may pass on: not a pool's very first."""
    pool.sync.release(pool.sync.acquire(timeout=None))
    return pool.sync.acquire(timeout=None)


def resting(relay: Relay, pool: Pool) -> Slot:
    """Return a slot whose run has ended and that the relay keeps."""
    slot = passable(pool)
    hurry(relay)
    assert relay.keep(pool, slot)
    return slot


def test_a_run_that_gives_its_slot_back_once_more_takes_it_from_nobody(relay: Relay, make_store: Callable) -> None:
    pool = Pool("p", 10, store=make_store())
    before = resting(relay, pool)
    assert pool.sync.release(before) is False
    assert pool.sync.size() == 1, "the relay's"
    slot = relay.take(pool, "run")
    assert slot is not None
    assert pool.sync.release(before) is False
    assert pool.sync.size() == 1, "the next run's"
    assert pool.store.keeper.drop(slot.token), "and it is renewed"
    assert pool.sync.release(slot) is True


def test_a_process_that_is_busy_with_one_pool_does_not_keep_slots_of_several(
    relay: Relay, make_store: Callable
) -> None:
    store = make_store()
    limits = Limits(Pool("p", 10, store=store), Pool("q", 10, store=store))
    holding = limits.sync.acquire(timeout=None)
    hurry(relay)
    assert not relay.keep(limits, holding)
    assert limits.sync.release(holding) is True


def test_whoever_has_a_slot_when_it_is_evicted_is_told(
    relay: Relay, make_store: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[Slot] = []
    pool = Pool("p", 10, store=make_store(), on_lost=told.append)
    slot = passable(pool)
    hurry(relay)
    has_it, evicted = [slot], Slot.evicted.fget

    def hand_over() -> None:
        if relay.keep(pool, slot):
            has_it[:] = [new for new in [relay.take(pool, "run")] if new is not None]

    ending = threading.Thread(target=hand_over)

    def run_ends_meanwhile(asked: Slot) -> bool:
        if asked is slot and threading.current_thread() is not ending and not ending.ident:
            ending.start()
            ending.join(timeout=0.5)  # it may have to wait for what is being decided
        return evicted(asked)

    monkeypatch.setattr(Slot, "evicted", property(run_ends_meanwhile))
    assert pool.sync.evict(slot.token) == slot.token
    ending.join()
    wait_until("whoever has it is told, by whichever thread hears of it first", lambda: told == has_it)
    for one in told:
        pool.sync.release(one)


def test_how_long_a_slot_passes_on_is_counted_from_before_it_was_asked_for(
    relay: Relay, make_store: Callable, redis_proxy: TcpProxy
) -> None:
    pool = Pool("p", 10, store=make_store(redis_proxy.redis_url))
    pool.sync.release(pool.sync.acquire(timeout=None))
    redis_proxy.delay(PASSES)
    slot = pool.sync.acquire(timeout=None)
    redis_proxy.delay(0.0)
    hurry(relay)
    assert not relay.keep(pool, slot)
    pool.sync.release(slot)


def test_the_slot_of_a_run_that_was_no_short_one_is_given_back(relay: Relay, make_store: Callable) -> None:
    pool = Pool("p", 10, store=make_store())
    slot = passable(pool)
    ended_at = time.monotonic() + SHORT
    wait_until("its run is no short one", lambda: time.monotonic() > ended_at)
    hurry(relay)
    assert not relay.keep(pool, slot)
    assert pool.sync.release(slot)


def test_a_run_has_a_higher_fence_than_all_that_had_ended_however_late_the_stores_answer_was(
    relay: Relay, make_store: Callable, redis_proxy: TcpProxy
) -> None:
    pool, elsewhere = Pool("p", 10, store=make_store(redis_proxy.redis_url)), Pool("p", 10, store=make_store())
    pool.sync.release(pool.sync.acquire(timeout=None))
    elsewhere.sync.release(elsewhere.sync.acquire(timeout=None))
    for _ in range(20):
        slots: list[Slot] = []
        redis_proxy.delay(PASSES / 12)
        asking = threading.Thread(target=lambda slots=slots: slots.append(pool.sync.acquire(timeout=None)))
        asking.start()
        wait_until("it is granted", lambda: elsewhere.sync.size() == 1, 5, interval=0.001)
        other = elsewhere.sync.acquire(timeout=None)
        elsewhere.sync.release(other)
        asking.join()
        redis_proxy.delay(0.0)
        hurry(relay)
        if not relay.keep(pool, slots[0]):  # this machine was too slow
            pool.sync.release(slots[0])
            continue
        slot = relay.take(pool, "run")
        assert slot is not None
        assert slot.fence > other.fence
        pool.sync.release(slot)
        return
    raise AssertionError("no slot was kept")


def test_a_release_that_fails_in_whatever_way_is_tried_again_and_later_ones_are_made(
    relay: Relay, make_store: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = Pool("p", 10, store=make_store())
    assert pool.store.keeper is not None, "it is made, with the face as it is"
    face, failed = pool.store.sync, threading.Event()
    right = face.execute_many

    def fails(_: Any) -> Any:
        failed.set()
        monkeypatch.setattr(face, "execute_many", right)
        raise RuntimeError("no such luck")

    monkeypatch.setattr(face, "execute_many", fails)
    resting(relay, pool)
    assert failed.wait(5)
    wait_until("it is released", lambda: pool.sync.size() == 0)
    resting(relay, pool)
    wait_until("it is released", lambda: pool.sync.size() == 0)


def test_what_is_kept_while_the_relay_is_closed_is_released(relay: Relay, make_store: Callable) -> None:
    pool = Pool("p", 10, store=make_store())
    for _ in range(30):
        resting(relay, pool)
        slot = passable(pool)
        closing = threading.Thread(target=relay.close)
        closing.start()
        while not relay.keep(pool, slot):
            hurry(relay)
        closing.join()
        resting(relay, pool)
        wait_until("all is released", lambda: pool.sync.size() == 0, interval=0.001)
