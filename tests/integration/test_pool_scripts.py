"""The pool scripts on a real server: repeated calls, owners of any text, and a server that evicts keys."""

from __future__ import annotations

from contextlib import suppress

import pytest

from slotline import Pool, PoolFullError, Slot, configure
from slotline.pools import Parked
from slotline.pools.place import Place
from tests.harness.waiting import wait_until

STATE = "slotline:{pool:p}:state"


@pytest.mark.parametrize("owner", ["a|b", "3|a", "zwei\nZeilen", "ü|"])
def test_a_message_is_the_same_byte_for_byte_whoever_owns_it(store, room, owner):
    pool = Pool("p", 1, store=store)
    slot = room.sync.park(pool, b"first", lane="q")
    assert room.sync.park(pool, b"1|message", lane="q", owner=owner) == Parked(0)
    pool.sync.release(slot)
    taken = room.sync.take()
    assert (taken.message, taken.slot.owner) == (b"1|message", owner)
    taken.sync.settle()
    pool.sync.release(taken.slot)


def test_a_call_repeated_after_its_slot_has_ended_gets_a_new_slot_with_an_end(store):
    pool = Pool("p", 2, slot_exp=0.05, store=store)
    command = pool.acquire_command(Place(pool), 0, "")
    _, fence, *_ = store.sync.execute(command)
    wait_until("the slot has ended", lambda: pool.sync.size() == 0)
    code, later_fence, life_ms, *_ = store.sync.execute(command)
    assert code == 1
    assert int(later_fence) > int(fence)
    assert 0 < life_ms <= 50
    assert pool.sync.size() == 1


def test_a_slow_rate_is_remembered_until_its_next_start(store, redis_client):
    Pool("p", None, rate="1/30d", store=store).sync.acquire()
    assert redis_client.pttl(STATE) >= 30 * 24 * 3600 * 1000


def test_a_rate_goes_on_when_the_servers_clock_was_set_back(store, redis_client):
    pool = Pool("p", None, rate="1000/s", store=store)
    pool.sync.acquire()
    for field in ("arrival", "started"):
        redis_client.hincrby(STATE, field, 24 * 3600 * 1_000_000)
    pool.sync.acquire(timeout=10)


def test_a_server_whose_clock_was_set_forward_makes_no_slot_last_longer(store):
    pool, given = Pool("p", 1, store=store), []
    held = pool.sync.acquire()
    place = Place(pool, on_grant=given.append)
    assert place.sync.enter() is None
    an_hour_later = round((pool.sync.info().now + 3600) * 1000)
    store.wakeups.ring(place.token, b"%d 30000 %d" % (held.fence + 1, an_hour_later))
    assert given[0].remaining <= 30
    for slot in (held, *given):
        pool.sync.release(slot)


def test_a_partition_whose_waiters_have_died_leaves_no_key_without_a_ttl(store, redis_client):
    pool = Pool("p", 2, max_per_partition=1, store=store)
    held, place = pool.sync.acquire(partition="t"), Place(pool, partition="t")
    assert place.sync.enter() is None
    assert pool.sync.resize(3) == 2  # serves, and finds that the partition has all that it may have
    place.close()
    ttls = {key: redis_client.pttl(key) for key in redis_client.keys("*:line") + redis_client.keys("*:ring")}
    assert all(0 < ttl <= 90_000 for ttl in ttls.values())
    redis_client.delete(*ttls)
    pool.sync.release(held)
    assert [key for key in redis_client.keys("*") if redis_client.pttl(key) < 0] == []
    assert [field for field in redis_client.hkeys(STATE) if field.startswith(b"t:")] == []


@pytest.mark.parametrize("decide", ["resize", "pause"])
def test_what_was_decided_of_a_pool_lasts_as_long_as_somebody_asks_for_it_every_other_month(
    store, redis_client, decide
):
    def kept_for_days() -> float:
        return redis_client.pttl(STATE) / (24 * 3600 * 1000)

    pool = Pool("p", 5, store=store)
    pool.sync.resize(2) if decide == "resize" else pool.sync.pause()
    assert kept_for_days() > 59
    redis_client.pexpire(STATE, 60_000)
    with suppress(PoolFullError):
        pool.sync.release(pool.sync.acquire())
    assert kept_for_days() > 58
    assert (pool.sync.info().max_size, pool.sync.info().paused) == ((2, False) if decide == "resize" else (5, True))
    redis_client.pexpire(STATE, 60_000)
    with suppress(PoolFullError):
        pool.sync.release(pool.sync.acquire())
    assert kept_for_days() > 58


def test_a_pool_whose_state_was_evicted_goes_on(store, room, redis_client):
    pool = Pool("p", 1, store=store)
    slot = room.sync.park(pool, b"first", lane="q")
    room.sync.park(pool, b"lost with the state", lane="q")
    redis_client.delete(STATE)
    pool.sync.release(slot)
    messages = {b"next", b"last"}
    with pool:
        for message in messages:
            assert isinstance(room.sync.park(pool, message, lane="q"), Parked)
    for _ in range(2):
        room.call("p")
        taken = room.sync.take()
        messages.remove(taken.message)
        taken.sync.settle()
        pool.sync.release(taken.slot)
    room.call("p")
    assert room.sync.take() is None
    with pool:
        assert pool.sync.info().waiting == 0


def test_a_lane_is_called_once_by_a_command_however_much_is_free(store, room, redis_server):
    pool = Pool("p", 50, store=store)
    assert room.sync.take() is None, "it listens now"
    pool.sync.pause()
    for number in range(50):
        room.sync.park(pool, b"%d" % number, lane="q")
    with redis_server.counting() as counted:
        pool.sync.resume()
    assert counted["publish"] == 1
    assert {taken.message for taken in iter(room.sync.take, None)} == {b"%d" % number for number in range(50)}


def test_while_slots_may_only_rest_nobody_looks_through_all_holders_for_one_to_end(store, redis_server):
    pool = Pool("p", 100, store=store)
    held = [pool.sync.acquire(timeout=10) for _ in range(100)]
    place = Place(pool)
    assert place.sync.enter() is None
    with redis_server.counting() as counted:
        assert pool.sync.evict() == held[0].token
    assert counted["evalsha"] + counted.get("eval", 0) > 2, "it has asked again while one might rest"
    assert counted["hmget"] < 200
    for slot in held:
        pool.sync.release(slot)
    place.sync.leave()


def test_many_who_may_come_in_at_once_keep_the_server_busy_for_a_part_of_them_only(store, redis_client):
    pool, waiting = Pool("p", 1, store=store), 1500
    held, place = pool.sync.acquire(), Place(pool)
    listener = redis_client.pubsub()
    listener.subscribe("everybody")
    asks = [pool.acquire_command(Place(pool), 60_000, "everybody") for _ in range(waiting)]
    assert all(reply[0] == 0 for reply in store.sync.execute_many(asks))
    pool.sync.resize(2000)
    assert (pool.sync.info().used, pool.sync.info().waiting) == (1001, 500)
    assert place.sync.enter() is not None, "whoever looks next serves the rest"
    assert (pool.sync.info().used, pool.sync.info().waiting) == (1502, 0)
    listener.close()
    for slot in (held, place.sync.enter()):
        pool.sync.release(slot)


def test_a_partition_whose_slots_were_evicted_by_the_server_may_have_its_share_again(store, redis_client):
    pool = Pool("p", 4, max_per_partition=1, store=store)
    held = pool.sync.acquire(partition="t")
    redis_client.delete("slotline:{pool:p}:slots")
    again = pool.sync.acquire(partition="t")
    pool.sync.release(held)
    with pytest.raises(PoolFullError):
        pool.sync.acquire(partition="t")
    pool.sync.release(again)
    pool.sync.release(pool.sync.acquire(partition="t"))


def test_the_last_waiter_of_a_partition_that_has_its_share_leaves_nothing_of_it(store, redis_client):
    pool = Pool("p", 4, max_per_partition=3, store=store)
    slot = pool.sync.acquire(partition="a", weight=3)
    before, last = Place(pool, weight=2), Place(pool, partition="a")
    for place in (before, last):
        assert place.sync.enter() is None
    for place in (before, last):
        place.sync.leave()
    pool.sync.release(slot)
    assert redis_client.exists("slotline:{pool:p}:ring", "slotline:{pool:p}:line") == 0


def test_a_pool_whose_last_holders_died_again_and_again_keeps_nothing_of_them(store, redis_client):
    pool = Pool("p", 1, store=store)
    while redis_client.hlen(STATE) <= 64:  # with more, any call may clear it
        store.keeper.drop(pool.sync.acquire().token)
        redis_client.delete("slotline:{pool:p}:slots")  # as its TTL does when nobody comes for long

    def is_cleared() -> bool:
        pool.sync.release(pool.sync.acquire())
        return redis_client.hlen(STATE) < 20

    wait_until("what was left of them is gone", is_cleared)
    assert pool.sync.info().max_size == 1


def test_many_waiters_of_a_dead_process_delay_nobody(store, redis_client):
    pool = Pool("p", 1, store=store)
    slot = pool.sync.acquire()
    for _ in range(300):
        store.sync.execute(pool.acquire_command(Place(pool), 30_000, "slotline:wake:dead"))
    granted: list[Slot] = []
    waiter = Place(pool, on_grant=granted.append)
    assert waiter.sync.enter() is None
    pool.sync.release(slot)
    wait_until("the waiter behind them has the slot", lambda: bool(granted), timeout=2)
    waiter.sync.leave()
    assert pool.sync.size() == 0


def test_a_place_that_is_left_loses_no_slot(store):
    configure(heartbeat_lease=0.6)
    lost: list[Slot] = []
    granted: list[Slot] = []
    pool = Pool("p", 1, store=store, on_lost=lost.append)
    slot = pool.sync.acquire()
    place = Place(pool, on_grant=granted.append)
    assert place.sync.enter() is None
    pool.sync.release(slot)
    wait_until("the slot has come", lambda: bool(granted))
    place.sync.leave()
    assert store.keeper.drop(granted[0].token) is False
    assert (granted[0].lost, lost) == (False, [])


def test_a_parking_whose_answer_was_lost_parks_nothing_once_its_message_has_run(store, room):
    pool = Pool("p", 1, store=store)
    slot = pool.sync.acquire()
    message, lane = b"message", next(iter(room.lanes))
    parking = pool.park_command("asks-1", "owner", lane, "digest", message, "slotline:lane:")
    assert store.sync.execute(parking)[0] == 0
    assert store.sync.execute(parking)[0] == 0
    pool.sync.release(slot)
    room.call("p")
    taken = room.sync.take()
    taken.sync.settle()
    pool.sync.release(taken.slot)
    assert store.sync.execute(parking)[0] == 0
    assert (pool.sync.info().used, pool.sync.info().waiting) == (0, 0)
    again = pool.park_command("asks-2", "owner", lane, "digest", message, "slotline:lane:")
    assert store.sync.execute(again)[0] == 1


def test_what_is_remembered_of_messages_that_have_run_is_forgotten_after_a_minute(store, room, redis_client):
    pool, claims = Pool("p", 1, store=store), "slotline:{pool:p}:claims"

    def run(message: bytes) -> None:
        slot = pool.sync.acquire()
        assert isinstance(room.sync.park(pool, message, lane="q"), Parked)
        pool.sync.release(slot)
        room.call("p")
        taken = room.sync.take()
        taken.sync.settle()
        pool.sync.release(taken.slot)

    for message in (b"a", b"b"):
        run(message)
    marks = dict(redis_client.zrange(claims, 0, -1, withscores=True))
    assert len(marks) == 2
    redis_client.zadd(claims, {mark: score + 60_000 for mark, score in marks.items()})
    run(b"c")
    assert redis_client.zcard(claims) == 1
    assert room.sync.take() is None
