"""Removing what is parked: all of it and nothing else, and nothing is lost with whoever removes it."""

from __future__ import annotations

import pytest

from slotline import Limits, Pool, RedisStore, configure
from slotline.pools import Place, Room, _purging
from slotline.pools._purging import Purge, purging
from slotline.pools._tokens import lane_id_of
from slotline.pools.fleeting import FleetingPool
from slotline.steps import Call, run_blocking
from slotline.stores import Command
from tests.harness.waiting import wait_until


def park(room: Room, pool, *messages: bytes, lane: str = "q", **share) -> None:
    for message in messages:
        room.sync.park(pool, message, lane=lane, owner=f"owner of {message.decode()}", **share)


def left_in(client, pool: Pool) -> list[bytes]:
    """What the pool's state has of messages, claims and places."""
    return [
        name for name in client.hkeys(pool.keys[2]) if name[:2] in (b"m:", b"o:", b"w:", b"t:", b"q:", b"c:", b"s:")
    ]


@pytest.mark.parametrize("at_once", [2, 200])
async def test_what_is_parked_by_now_is_removed_and_what_runs_and_who_calls_stays(
    store, make_room, call, redis_client, monkeypatch, at_once
):
    monkeypatch.setattr(_purging, "_AT_ONCE", at_once)
    room, pool = make_room("q"), Pool("p", 1, store=store)
    slot = pool.sync.acquire()
    park(room, pool, b"runs")
    taken = room.sync.pass_on(pool, slot)
    park(room, pool, b"a", b"b", b"c")
    park(room, pool, b"d", b"e", lane="another")
    park(room, pool, b"f", b"g", b"h", partition="t1")
    park(room, pool, b"i", partition="t2")
    granted: list = []
    caller = Place(pool, owner="caller", on_grant=granted.append)
    caller.sync.enter()
    park(room, pool, b"j")
    assert pool.sync.info().waiting == 11
    assert await call(pool, "purge") == 10
    assert [(waiter.owner, waiter.parked) for waiter in pool.sync.waiting()] == [("caller", False)]
    assert await call(pool, "purge") == 0
    assert {name[:2] for name in left_in(redis_client, pool)} == {b"m:", b"o:", b"w:", b"t:"}, (
        "of the run and the caller"
    )
    pool.sync.release(taken.slot)
    taken.sync.settle()
    wait_until("the caller has the slot", lambda: granted, 10)
    caller.sync.leave()
    assert left_in(redis_client, pool) == []
    park(room, Pool("p", 1, store=store), b"a")  # it is another message by now
    assert room.sync.take() is None


async def test_nothing_is_made_for_a_pool_that_is_not_there(store, redis_client, call):
    assert await call(Pool("p", 1, store=store), "purge") == 0
    assert redis_client.keys("*p*") == []


def test_whoever_waited_behind_a_removed_message_is_served(store, make_room):
    room, pool = make_room("q"), Pool("p", 2, store=store)
    pool.sync.acquire()
    park(room, pool, b"heavy", weight=2)
    granted: list = []
    caller = Place(pool, on_grant=granted.append)
    caller.sync.enter()
    assert granted == []
    assert pool.sync.purge() == 1
    wait_until("the caller has the slot", lambda: granted, 10)
    caller.sync.leave()


def test_a_partition_that_has_its_share_can_be_purged(store, make_room, redis_client):
    room, pool = make_room("q"), Pool("p", 3, max_per_partition=1, store=store)
    slot = pool.sync.acquire(partition="t")
    park(room, pool, b"a", b"b", partition="t")
    pool.sync.release(pool.sync.acquire(partition="other"))
    assert pool.sync.purge() == 2
    assert left_in(redis_client, pool) == []
    pool.sync.release(slot)
    pool.sync.acquire(partition="t")


def test_messages_for_several_pools_are_removed_at_their_first_and_their_lines_go_on(store, make_room, redis_client):
    room = make_room("q")
    first, second = Pool("a", 1, store=store), Pool("b", 1, store=store)
    held = second.sync.acquire()
    both = Limits(first, second)
    park(room, both, b"1", b"2", b"3")
    park(room, both, b"4", lane="another")
    park(room, second, b"alone")
    assert second.sync.purge() == 1, "the others are counted at their first pool"
    assert (first.sync.info().waiting, second.sync.info().waiting) == (4, 0)
    assert first.sync.purge() == 4
    assert first.sync.info().waiting == 0
    assert left_in(redis_client, first) + left_in(redis_client, second) == []
    granted: list = []
    place = Place(both, on_grant=granted.append)
    place.sync.enter()
    second.sync.release(held)
    wait_until("a caller has both", lambda: granted or place.sync.enter(), 10)
    place.sync.leave()
    park(room, both, b"1")
    assert (first.sync.size(), second.sync.size()) == (1, 1)


def test_messages_for_several_pools_of_a_cluster_are_removed(redis_cluster):
    store = RedisStore(redis_cluster.url)
    room = Room(store, ["q"])
    pools = [Pool(key, 1, group="g", store=store) for key in "ab"]
    pools[1].sync.acquire()
    park(room, Limits(*pools), b"1", b"2")
    park(room, pools[1], b"3")
    assert [pool.sync.purge() for pool in pools] == [2, 1]
    assert [pool.sync.info().waiting for pool in pools] == [0, 0]
    room.close()
    store.sync.close()


def test_a_message_that_has_no_answer_stays_where_it_stood(store, make_room):
    room, pool, other = make_room("q"), Pool("a", 1, store=store), Pool("b", 1, store=store)
    slot = pool.sync.acquire()
    park(room, pool, b"1", b"2", b"3")
    park(room, Limits(pool, other), b"4", b"5")
    before = [waiter for waiter in pool.sync.waiting() if waiter.owner not in ("owner of 2", "owner of 4")]
    asked: list = []

    def answer(purged: _purging.Purged) -> bool:
        asked.append((purged.pool, purged.lane_id, purged.owner, purged.message))
        return purged.message in (b"2", b"4")

    assert run_blocking(purging(pool, answer)) == Purge(2, 3)
    lane = lane_id_of("q")
    assert asked == [("a", lane, f"owner of {number}", str(number).encode()) for number in range(1, 6)]
    assert list(pool.sync.waiting()) == before
    for expected in (b"1", b"3", b"5"):
        pool.sync.release(slot)
        room.call("a")
        taken: list = []
        wait_until("the next one is taken", lambda taken=taken: taken.append(room.sync.take()) or taken[-1], 10)
        assert taken[-1].message == expected
        taken[-1].sync.settle()
        slot = taken[-1].slot.slots[0]
        if expected == b"5":
            taken[-1].pool.sync.release(taken[-1].slot)


def test_an_answer_that_fails_leaves_what_was_not_answered(store, make_room):
    room, pool = make_room("q"), Pool("p", 1, store=store)
    pool.sync.acquire()
    park(room, pool, b"1", b"2", b"3")

    def answer(purged: _purging.Purged) -> bool:
        if purged.message == b"2":
            raise ConnectionError("the result backend is away")
        return True

    with pytest.raises(ConnectionError, match="backend is away"):
        run_blocking(purging(pool, answer))
    assert [waiter.owner for waiter in pool.sync.waiting()] == ["owner of 2", "owner of 3"]


@pytest.mark.parametrize("several", [False, True])
def test_what_was_claimed_by_one_who_died_is_parked_again_within_the_lease(store, make_room, several):
    configure(heartbeat_lease=1.0)
    room, pool = make_room("q"), Pool("a", 1, store=store)
    limit = Limits(pool, Pool("b", 1, store=store)) if several else pool
    slot = limit.sync.acquire()
    park(room, limit, b"1", b"2")
    before = [waiter.token for waiter in pool.sync.waiting()]
    steps = purging(pool)
    step = next(steps)
    while isinstance(step, Call):
        step = steps.send(step.blocking())
    steps.close()  # all are claimed; and nobody hears of it again
    assert pool.sync.info().waiting == 0
    seen: list = []

    def back() -> bool:
        room.call("a")
        seen.append(room.sync.take())
        return [waiter.token for waiter in pool.sync.waiting()] == before

    wait_until("they stand at their old places", back, 20)
    assert not any(seen)
    limit.sync.release(slot)
    got: list = []

    def run() -> bool:
        for name in ("a", "b"):
            room.call(name)
        taken = room.sync.take()
        if taken is not None:
            got.append(taken.message)
            taken.sync.settle()
            taken.pool.sync.release(taken.slot)
        return len(got) == 2

    wait_until("both have run", run, 20)
    assert got == [b"1", b"2"]


@pytest.mark.parametrize("several", [False, True])
def test_a_call_whose_answer_was_lost_is_repeated_and_answered_alike(store, make_room, monkeypatch, several):
    room, pool = make_room("q"), Pool("a", 1, store=store)
    limit = Limits(pool, Pool("b", 1, store=store)) if several else pool
    limit.sync.acquire()
    monkeypatch.setattr(_purging, "_AT_ONCE", 2)
    park(room, limit, *(str(number).encode() for number in range(5)))
    execute = store.sync.execute

    def twice(command: Command):
        answer = execute(command)
        if command.script.endswith("_purge"):
            again, told = execute(command), 2 if command.script == "room_purge" else 1
            assert answer[told] or several
            assert sorted(again[told]) == sorted(answer[told])
            answer = again
        return answer

    monkeypatch.setattr(store.sync, "execute", twice)
    assert pool.sync.purge() == 5
    assert pool.sync.info().waiting == 0


def test_a_line_for_a_cached_value_leaves_nothing_when_it_is_purged(store, make_room, redis_client):
    room, pool = make_room("q"), FleetingPool("cache-line:weather", 1, store=store)
    slot = pool.sync.acquire()
    park(room, pool, b"1")
    assert pool.sync.purge() == 1
    pool.sync.release(slot)
    assert redis_client.exists(*pool.keys[:3]) == 0


@pytest.mark.soak
def test_a_hundred_thousand_are_removed_in_parts(redis_url):
    store = RedisStore(redis_url)
    room, pool = Room(store, ["q"]), Pool("p", 1, store=store)
    slot = pool.sync.acquire()
    commands = [pool.park_command(f"t{n}", "o", "q", f"digest-{n}", b"m" * 300, "lane") for n in range(100_000)]
    for start in range(0, len(commands), 1000):
        store.sync.execute_many(commands[start : start + 1000])
    assert pool.sync.purge() == 100_000
    pool.sync.release(slot)
    room.close()
    store.sync.close()
