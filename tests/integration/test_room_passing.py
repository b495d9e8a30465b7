"""A worker gives a slot back and takes the next message with it, in one step."""

from __future__ import annotations

import asyncio

from slotline import Limits, Pool, Slot
from slotline.pools import Parked, Room, Taken
from slotline.pools._wire import pool_keys
from slotline.stores import Command
from tests.harness.waiting import await_until


async def park_all(room: Room, pool: Pool, messages: list[bytes], lane: str = "q") -> list[Slot | Parked]:
    return [await room.park(pool, message, lane=lane) for message in messages]


async def waits(pool: Pool, count: int) -> None:
    async def look() -> bool:
        return (await pool.info()).waiting == count

    await await_until(f"{count} wait", look)


async def test_a_slot_passes_to_the_next_message_with_one_command(store, make_room, call, redis_server):
    room, pool = make_room("q"), Pool("p", 1, store=store)
    first, *_ = await park_all(room, pool, [b"a", b"b", b"c"])
    assert await room.take() is None
    one = await call(room, "pass_on", pool, first)
    with redis_server.recording() as sent:
        two = await call(room, "pass_on", one.pool, one.slot)
        assert await room.take() is None
    assert [command.name for command in sent] == ["evalsha"], "the answer says that there is nothing to look for"
    assert (one.message, two.message, two.slot.fence > one.slot.fence > first.fence) == (b"b", b"c", True)
    assert (first.lost, one.slot.lost, two.slot.lost) == (False, False, False)
    assert await pool.release(first) is False
    await one.settle()
    assert await call(room, "pass_on", two.pool, two.slot) is None
    await two.settle()
    assert ((await pool.info()).used, (await pool.info()).waiting) == (0, 0)


async def test_repeated_it_gives_the_same_message_and_takes_no_second_one(store, make_room):
    room, pool = make_room("q"), Pool("p", 1, store=store)
    held, *_ = await park_all(room, pool, [b"a", b"b", b"c"])
    command = Command("room_pass", pool_keys(store, "p"), ("run", 30_000, held.token, *room.lanes))
    first, again = await store.execute(command), await store.execute(command)
    assert (first[0], again[0], again[3], again[7]) == (1, 1, first[3], b"b")
    assert ((await pool.info()).used, (await pool.info()).waiting) == (1, 1)
    await pool.release(held)


async def test_a_caller_who_came_before_the_message_is_not_overtaken(store, make_room, call):
    room, pool = make_room("q"), Pool("p", 1, store=store)
    held = await pool.acquire()
    caller = asyncio.create_task(pool.acquire(timeout=20))
    await waits(pool, 1)
    assert await room.park(pool, b"a", lane="q") == Parked(0)
    assert await call(room, "pass_on", pool, held) is None
    following = await call(room, "pass_on", pool, await caller)
    assert following.message == b"a"
    await pool.release(following.slot)
    await following.settle()


async def test_a_message_of_another_worker_that_came_before_is_not_overtaken(store, make_room, call):
    mine, other, pool = make_room("q"), make_room("others"), Pool("p", 1, store=store)
    assert await other.take() is None  # it listens
    held = await pool.acquire()
    assert await mine.park(pool, b"theirs", lane="others") == Parked(0)
    assert await mine.park(pool, b"mine", lane="q") == Parked(0)
    assert await call(mine, "pass_on", pool, held) is None
    await await_until("the other is called", lambda: other.due)
    theirs = await other.take()
    assert theirs.message == b"theirs"
    assert (await call(mine, "pass_on", pool, theirs.slot)).message == b"mine"


async def test_partitions_have_turns(store, make_room, call):
    room, pool = make_room("q"), Pool("p", 1, store=store)
    held = await pool.acquire()
    for message, partition in ((b"a1", "a"), (b"a2", "a"), (b"a3", "a"), (b"b1", "b"), (b"b2", "b")):
        await room.park(pool, message, lane="q", partition=partition)
    order, slot = [], held
    for _ in range(5):
        taken = await call(room, "pass_on", pool, slot)
        order.append(taken.message)
        slot = taken.slot
    assert order == [b"a1", b"b1", b"a2", b"b2", b"a3"]


async def test_what_is_left_goes_to_those_who_wait_behind(store, make_room, call):
    room, pool = make_room("q"), Pool("p", 2, store=store)
    held = await pool.acquire(weight=2)
    assert await room.park(pool, b"a", lane="q") == Parked(0)
    caller = asyncio.create_task(pool.acquire(timeout=20))
    await waits(pool, 2)
    taken = await call(room, "pass_on", pool, held)
    assert taken.message == b"a"
    await pool.release(await asyncio.wait_for(caller, 10))
    await pool.release(taken.slot)


async def test_a_worker_that_got_one_message_looks_again_while_there_is_room(store, make_room, call):
    room, pool = make_room("q"), Pool("p", 2, store=store)
    held = await pool.acquire(weight=2)
    await park_all(room, pool, [b"a", b"b", b"c"])
    found = [await call(room, "pass_on", pool, held), await call(room, "take"), await call(room, "take")]
    assert [taken and taken.message for taken in found] == [b"a", b"b", None]


async def test_the_slots_of_several_pools_are_given_back_and_looked_for(store, make_room, call):
    room, pools = make_room("q"), [Pool(key, 1, store=store) for key in ("p", "r")]
    both = Limits(*pools)
    held = await both.acquire()
    assert await room.park(both, b"both", lane="q") == Parked(0)
    assert await call(room, "pass_on", both, held) is None
    found: list[Taken] = []

    async def look() -> bool:
        found.extend(filter(None, [await call(room, "take")]))
        return bool(found)

    await await_until("it is taken", look)
    assert found[0].message == b"both"
    await both.release(found[0].slot)


async def test_a_message_that_wants_other_pools_too_is_taken_when_its_turn_comes(store, make_room, call):
    room, pool, other = make_room("q"), Pool("p", 1, store=store), Pool("r", 1, store=store)
    held = await pool.acquire()
    assert await room.park(Limits(pool, other), b"both", lane="q") == Parked(0)
    assert await room.park(pool, b"one", lane="q") == Parked(0)
    taken = await call(room, "pass_on", pool, held)
    assert (taken.message, len(taken.slot.slots)) == (b"both", 2)
    await taken.pool.release(taken.slot)
