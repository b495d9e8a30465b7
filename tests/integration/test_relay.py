"""Slots that pass from run to run within a process: only where nobody waits for them, and as exact as any other."""

from __future__ import annotations

import os
import time

import pytest

from slotline import Pool, RedisStore, Slot, configure
from slotline.pools import Relay, Room
from slotline.pools._passing import PASSES
from slotline.pools.relay import RESTS
from slotline.steps import run_blocking
from tests.harness.fixtures_relays import hurry
from tests.harness.redis_server import RedisServer
from tests.harness.waiting import wait_until


@pytest.fixture
def pool(store):
    return Pool("p", 10, store=store)


def begin(relay: Relay, pool: Pool, owner: str = "run") -> Slot:
    """Do as a queue does for a run."""
    return relay.take(pool, owner) or pool.sync.acquire(owner=owner, timeout=None)


def end(relay: Relay, pool: Pool, slot: Slot) -> bool:
    """Do as a queue does when a run has ended well; return whether the relay has kept its slot."""
    kept = relay.keep(pool, slot)
    if not kept:
        pool.sync.release(slot)
    return kept


def busy(relay: Relay, pool: Pool) -> Slot:
    """Begin and end runs until a slot is kept; return it."""
    for _ in range(100):
        slot = begin(relay, pool)
        if end(relay, pool, slot):
            return slot
    raise AssertionError("no slot was kept")


def test_many_short_runs_cost_the_store_next_to_nothing(relay: Relay, pool: Pool, redis_server: RedisServer) -> None:
    busy(relay, pool)
    fences, tokens = [], set()
    with redis_server.counting() as counted:
        for number in range(1000):
            slot = begin(relay, pool, f"run-{number}")
            assert (slot.owner, slot.lost, slot.evicted) == (f"run-{number}", False, False)
            fences.append(slot.fence)
            tokens.add(slot.token)
            end(relay, pool, slot)
    assert fences == sorted(set(fences)), "fences grow, and each run has one of its own"
    assert counted["evalsha"] < 500, "two for each run, were it not for the relay"
    assert len(tokens) < 250


def test_what_nobody_takes_is_free_again_soon_and_ends_the_holders_slot_object(relay: Relay, pool: Pool) -> None:
    slot = busy(relay, pool)
    assert (slot.lost, slot.is_held) == (False, False)
    wait_until("it is released", lambda: pool.sync.size() == 0, 2)
    assert relay.take(pool, "late") is None


def test_a_process_that_begins_a_run_now_and_then_keeps_nothing(relay: Relay, pool: Pool) -> None:
    for _ in range(4):
        slot = begin(relay, pool)
        assert not end(relay, pool, slot)
        assert pool.sync.size() == 0


@pytest.mark.parametrize("used", [1, 2])
def test_a_pool_that_is_more_than_half_used_keeps_nothing(relay: Relay, store: RedisStore, used: int) -> None:
    pool = Pool("p", 2 * used, store=store)
    others = [pool.sync.acquire(timeout=None) for _ in range(used)]
    assert not any(end(relay, pool, begin(relay, pool)) for _ in range(30))
    for slot in others:
        pool.sync.release(slot)


@pytest.mark.parametrize("options", [{"rate": "1000/s", "burst": 1000}, {"max_per_partition": 5}])
def test_a_pool_with_a_rate_and_a_slot_on_somebodys_account_pass_nothing_on(
    relay: Relay, store: RedisStore, options: dict
) -> None:
    pool = Pool("p", 10, store=store, **options)
    partition = "ann" if "max_per_partition" in options else None
    for _ in range(30):
        slot = relay.take(pool, "run") or pool.sync.acquire(partition=partition, timeout=None)
        assert not end(relay, pool, slot)


def test_nothing_is_kept_while_a_message_of_the_pool_is_in_the_room(
    relay: Relay, store: RedisStore, room: Room
) -> None:
    pool = Pool("p", 1, store=store)
    first = room.sync.park(pool, b"first", lane="q")
    room.sync.park(pool, b"second", lane="q")
    assert isinstance(first, Slot)
    pool.sync.release(first)
    taken = room.sync.take()
    assert taken is not None
    pool.sync.resize(10)
    assert not any(end(relay, pool, begin(relay, pool)) for _ in range(30)), "a copy of it may come"
    pool.sync.release(taken.slot)
    taken.sync.settle()


def test_one_grant_lets_all_slots_of_the_process_pass_on(
    relay: Relay, store: RedisStore, redis_server: RedisServer
) -> None:
    pool = Pool("wide", 1000, store=store)
    busy(relay, pool)
    begun_at = time.monotonic()
    with redis_server.counting() as counted:
        running = [begin(relay, pool) for _ in range(20)]
        while time.monotonic() < begun_at + 5 * PASSES:
            for at, slot in enumerate(running):
                end(relay, pool, slot)
                running[at] = begin(relay, pool)
    for slot in running:
        end(relay, pool, slot)
    assert counted["evalsha"] < 150, "each of them would cost two for each quarter of a second, 240 together"


def test_one_run_asks_before_the_stores_word_is_good_no_more_and_the_others_need_not(
    relay: Relay, store: RedisStore
) -> None:
    pool = Pool("p", 100, store=store)
    first = busy(relay, pool)
    running = [begin(relay, pool) for _ in range(10)]
    word = first._origin.passing
    for slot in running:
        assert end(relay, pool, slot)
    now = word.until - 0.01
    hurry(relay)
    with pytest.MonkeyPatch.context() as late:
        late.setattr("slotline.pools.relay.time.monotonic", lambda: now)
        begun = [relay.take(pool, "run") for _ in range(4)]
    assert [slot is None for slot in begun] == [True, False, False, False]
    before = word.until
    pool.sync.release(pool.sync.acquire(timeout=None))  # as the first of them does
    assert word.until > before, "all pass on"
    for slot in begun[1:]:
        pool.sync.release(slot)


def test_a_slot_that_may_not_pass_on_any_more_hides_none_that_may(relay: Relay, store: RedisStore) -> None:
    pool = Pool("p", 100, store=store, on_lost=lambda _: None)
    busy(relay, pool)
    below, above = (pool.sync.acquire(timeout=None) for _ in range(2))
    hurry(relay)
    assert relay.keep(pool, below)
    assert relay.keep(pool, above)
    assert pool.sync.evict(above.token) == above.token
    slot = relay.take(pool, "run")
    assert slot is not None
    assert slot.token == below.token
    pool.sync.release(slot)
    wait_until("the other is sent back", lambda: pool.sync.size() == 0, 2)


@pytest.mark.parametrize(("cap", "lasts"), [(600, 2.0), (None, 2.0), (1, 0.05)])
def test_a_slot_passes_on_for_a_while_only_and_less_where_slot_exp_is_short(
    store: RedisStore, cap: float | None, lasts: float
) -> None:
    pool = Pool("p", 10, cap, store=store)
    pool.sync.release(pool.sync.acquire(timeout=None))  # a pool's very first slot does not pass on
    asked_at = time.monotonic()
    slot: Slot | None = pool.sync.acquire(timeout=None)
    now, step = asked_at, lasts / 50
    while slot is not None:
        ended, now = slot, now + step
        slot = ended.put_down(now)
        assert slot is None or slot.pick_up("next", now)
        pool._passing.granted(ended.fence, now, now, roomy=True)  # as the grants of other slots do
    assert asked_at + lasts - step <= now <= asked_at + lasts + 1, "it was asked for then, and granted a moment later"
    pool.sync.release(ended)


def test_slots_pass_on_no_longer_than_the_stores_word_is_good(store: RedisStore) -> None:
    pool = Pool("p", 10, store=store)
    pool.sync.release(pool.sync.acquire(timeout=None))
    asked_at = time.monotonic()
    slot = pool.sync.acquire(timeout=None)
    resting = slot.put_down(time.monotonic())
    assert resting is not None
    assert not resting.pick_up("late", asked_at + PASSES + 1)
    others = [pool.sync.acquire(timeout=None) for _ in range(6)]  # more than half of them: the last word is no good
    assert not resting.pick_up("late", time.monotonic() + PASSES)
    assert PASSES < 1, "well within any lease"
    for one in (resting, *others):
        pool.sync.release(one)


def test_the_store_learns_who_has_a_slot_now_if_the_run_is_no_short_one(relay: Relay, pool: Pool) -> None:
    first = busy(relay, pool)
    slot = relay.take(pool, "long run")
    assert slot is not None
    assert (slot.token, slot.owner) == (first.token, "long run")

    def holders() -> list[tuple[str, int]]:
        return [(holder.owner, holder.fence) for holder in pool.sync.info().holders]

    wait_until("the store knows", lambda: ("long run", slot.fence) in holders(), 5)
    (holder,) = pool.sync.info().holders
    assert abs(holder.acquired_at - slot.acquired_at) < 1
    pool.sync.release(slot)
    assert pool.sync.size() == 0


@pytest.mark.parametrize("lasts", [True, False])
def test_who_frees_the_slot_of_a_run_takes_it_from_no_run_after_it(relay: Relay, pool: Pool, lasts: bool) -> None:
    busy(relay, pool)
    slot = begin(relay, pool)
    (known,) = pool.sync.info().holders
    assert known.fence < slot.fence, "the store knows a run that has ended"
    if not lasts:
        assert end(relay, pool, slot)
    assert run_blocking(pool.freeing(known.token, known.fence)) is False
    assert pool.sync.size() == (1 if lasts else 0)
    if lasts:
        assert not slot.lost
        assert run_blocking(pool.freeing(slot.token, slot.fence)) is True
        assert pool.sync.size() == 0
        pool.sync.release(slot)


def test_fences_grow_even_where_the_stores_clock_was_set_back(relay: Relay, store: RedisStore, redis_client) -> None:
    pool = Pool("p", 10, store=store)
    pool.sync.release(pool.sync.acquire(timeout=None))
    ahead = int((time.time() + 3600) * 1_000_000)
    redis_client.hset("slotline:{pool:p}:state", "fence", ahead)
    first = busy(relay, pool)
    assert ahead < first.fence < ahead + 1_000_000
    time.sleep(RESTS / 4)
    passed = begin(relay, pool)
    pool.sync.release(passed)
    assert pool.sync.acquire().fence > passed.fence
    pool.sync.release(passed)


def test_a_run_that_has_a_slot_from_another_is_told_of_its_loss(relay: Relay, store: RedisStore, redis_client) -> None:
    configure(heartbeat_lease=1.5)
    told: list[Slot] = []
    pool = Pool("p", 10, store=store, on_lost=told.append)
    before = busy(relay, pool)
    slot = relay.take(pool, "run")
    assert slot is not None
    redis_client.delete("slotline:{pool:p}:slots")
    wait_until("it is told", lambda: told, 5)
    assert told == [slot]
    assert (slot.lost, before.lost) == (True, False)


def test_a_run_that_has_a_slot_from_another_is_evicted_as_any_other(relay: Relay, store: RedisStore) -> None:
    told: list[Slot] = []
    pool = Pool("p", 10, store=store, on_lost=told.append)
    before = busy(relay, pool)
    slot = relay.take(pool, "run")
    assert slot is not None
    assert pool.sync.evict(slot.token, fence=slot.fence) == slot.token
    wait_until("it is told", lambda: told, 5)
    assert (told, slot.evicted, before.evicted) == ([slot], True, False)
    assert not relay.keep(pool, slot)
    pool.sync.release(slot)


def test_a_slot_that_is_to_end_passes_to_nobody(relay: Relay, store: RedisStore) -> None:
    pool = Pool("p", 10, store=store, on_lost=lambda _: None)
    slot = busy(relay, pool)
    assert pool.sync.evict(slot.token) == slot.token
    assert relay.take(pool, "run") is None
    wait_until("it is released", lambda: pool.sync.size() == 0, 2)


def test_closing_releases_what_is_kept_and_leaves_it_usable(relay: Relay, pool: Pool) -> None:
    busy(relay, pool)
    assert pool.sync.size() == 1
    relay.close()
    assert pool.sync.size() == 0
    busy(relay, pool)
    relay.close()
    assert pool.sync.size() == 0


def test_a_forked_child_has_nothing_of_it(relay: Relay, pool: Pool) -> None:
    busy(relay, pool)
    child = os.fork()
    if child == 0:
        os._exit(0 if relay.take(pool, "child") is None and not relay._kept else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_what_cannot_be_released_now_is_released_when_the_store_is_back(own_redis: RedisServer) -> None:
    store = RedisStore(own_redis.url, retries=0, timeout=1)
    pool, relay = Pool("p", 10, store=store), Relay()
    busy(relay, pool)
    own_redis.pause()
    wait_until("it is given to the heartbeat", lambda: store.keeper._later, 10)
    own_redis.resume()
    wait_until("it is released", lambda: pool.sync.size() == 0, 10)
    relay.close()
    store.sync.close()
