"""The waiting room on a real server: parking, taking with a slot, order, lanes, claims and memory."""

from __future__ import annotations

import asyncio

import pytest

from slotline import (
    InvalidOptionError,
    Limits,
    MemoryStore,
    MessageTooLargeError,
    Pool,
    PoolFullError,
    RedisStore,
    Slot,
    configure,
)
from slotline.caches.line import Line
from slotline.pools import Parked, Room, Taken
from slotline.pools._wire import pool_keys
from slotline.steps import run_awaiting
from slotline.stores import Command
from tests.harness.waiting import await_until


async def park_all(room: Room, pool: Pool, messages: list[bytes], lane: str = "q") -> list[Slot | Parked]:
    return [await room.park(pool, message, lane=lane, owner=message.decode()) for message in messages]


async def taken(room: Room, call=None) -> Taken:
    """Take the next message, as soon as there is one."""
    found: list[Taken] = []

    async def look() -> bool:
        one = await (call(room, "take") if call else room.take())
        if one is not None:
            found.append(one)
        return bool(found)

    await await_until("a message can be taken", look)
    return found[0]


async def test_a_message_takes_a_slot_at_once_while_there_is_one_and_is_parked_when_there_is_none(
    store, make_room, call
):
    room, pool = make_room("q"), Pool("p", 1, store=store)
    slot = await call(room, "park", pool, b"a", lane="q", owner="ann")
    assert isinstance(slot, Slot)
    assert await call(room, "park", pool, b"b", lane="q") == Parked(0)
    assert await call(room, "park", pool, b"c", lane="q") == Parked(1)
    assert await call(room, "take") is None
    assert (await pool.info()).waiting == 2


async def test_a_freed_slot_goes_to_the_longest_parked_message_byte_for_byte(store, make_room, call):
    room, pool = make_room("q"), Pool("p", 1, store=store)
    messages = [bytes([0, 255, number]) + "|ü|".encode() * 3 for number in range(4)]
    first, *_ = [await room.park(pool, message, lane="q") for message in messages]
    await pool.release(first)
    for expected in messages[1:]:
        next_one = await taken(room, call)
        assert (next_one.message, next_one.lane) == (expected, "q")
        assert await room.take() is None
        await pool.release(next_one.slot)
        await call(next_one, "settle")
    assert await room.take() is None
    info = await pool.info()
    assert (info.used, info.waiting) == (0, 0)


async def test_nothing_overtakes_what_is_parked(store, make_room):
    room, pool = make_room("q"), Pool("p", 1, store=store)
    first, _ = await park_all(room, pool, [b"a", b"b"])
    await room.take()  # this worker listens
    await pool.release(first)
    with pytest.raises(PoolFullError):
        await pool.acquire()
    assert (await taken(room)).message == b"b"


async def test_what_an_exchange_has_copied_into_two_queues_is_two_messages(store, make_room):
    """As in a broadcast: each worker has a queue of its own, and each of them is to run what comes."""
    one, two, pool = make_room("one"), make_room("two"), Pool("p", 1, store=store)
    async with pool:
        for room, lane in ((one, "one"), (two, "two")):
            assert isinstance(await room.park(pool, b"a", lane=lane), Parked)
        assert (await pool.info()).waiting == 2
    for room in (one, two):
        message = await taken(room)
        assert message.message == b"a"
        await pool.release(message.slot)
        await message.settle()


async def test_a_message_is_not_parked_twice_neither_in_line_nor_while_it_runs(store, make_room):
    room, pool = make_room("q"), Pool("p", 1, store=store)
    first, _ = await park_all(room, pool, [b"a", b"b"])
    assert await room.park(pool, b"b", lane="q") == Parked(0)
    await pool.release(first)
    running = await taken(room)
    assert isinstance(await room.park(pool, b"b", lane="q"), Parked)
    assert (await pool.info()).waiting == 0
    await pool.release(running.slot)
    await running.settle()
    assert isinstance(await room.park(pool, b"b", lane="q"), Slot)


async def test_a_worker_takes_only_from_its_lanes_and_the_oldest_first_across_them(store, make_room):
    pool = Pool("p", 1, store=store)
    mine, other = make_room("q1", "q2"), make_room("q3")
    held = await pool.acquire()
    for message, lane in ((b"1", "q1"), (b"x", "q3"), (b"2", "q2"), (b"3", "q1")):
        await mine.park(pool, message, lane=lane)
    await pool.release(held)
    seen = []
    for _ in range(3):
        one = await taken(mine)
        seen.append((one.message, one.lane))
        await pool.release(one.slot)
        await one.settle()
    assert seen == [(b"1", "q1"), (b"2", "q2"), (b"3", "q1")]
    assert await mine.take() is None
    assert (await taken(other)).message == b"x"


async def test_a_lane_that_nobody_serves_blocks_neither_other_lanes_nor_callers(store, make_room):
    pool = Pool("p", 1, store=store)
    room = make_room("served")
    await room.take()  # it listens
    held = await pool.acquire()
    await room.park(pool, b"nobody's", lane="orphaned")
    await room.park(pool, b"mine", lane="served")
    caller = asyncio.create_task(pool.acquire(timeout=20))
    await await_until("all three wait", lambda: _waiting(pool, 3))
    await pool.release(held)
    one = await taken(room)
    assert one.message == b"mine"
    await pool.release(one.slot)
    await one.settle()
    await pool.release(await caller)
    assert (await pool.info()).waiting == 1


async def _waiting(pool: Pool, count: int) -> bool:
    return (await pool.info()).waiting == count


@pytest.mark.parametrize("several", [False, True])
async def test_a_lane_whose_workers_are_busy_holds_a_slot_back_for_a_second_at_most(store, make_room, several):
    configure(heartbeat_lease=120)  # whoever waits looks every forty seconds, if nothing is said
    pool = Pool("p", 1, store=store)
    waits_for = Limits(pool, Pool("q", 1, store=store)) if several else pool
    busy = make_room("q")
    held = await pool.acquire()
    await busy.park(pool, b"a", lane="q")
    await busy.take()  # it listens, and then takes no more
    caller = asyncio.create_task(waits_for.acquire(timeout=100))
    await await_until("both wait", lambda: _waiting(pool, 2))
    await pool.release(held)
    await waits_for.release(await asyncio.wait_for(caller, 20))


async def test_what_is_given_back_stands_at_its_old_place(store, make_room):
    room, pool = make_room("q"), Pool("p", 1, store=store)
    first, *_ = await park_all(room, pool, [b"a", b"b", b"c"])
    await pool.release(first)
    one = await taken(room)
    await one.give_back()
    assert (await pool.info()).used == 0
    again = await taken(room)
    assert again.message == one.message == b"b"


async def test_a_worker_is_told_when_there_is_something_to_take(store, make_room):
    calls: list[None] = []
    room, pool = make_room("q", on_call=lambda: calls.append(None)), Pool("p", 1, store=store)
    assert await room.take() is None
    first, _ = await park_all(room, pool, [b"a", b"b"])
    calls.clear()
    await pool.release(first)
    await await_until("the call has come", lambda: calls)
    assert room.due


async def test_a_worker_that_starts_later_finds_what_is_parked(store, make_room):
    pool = Pool("p", 1, store=store)
    first, _ = await park_all(make_room(), pool, [b"a", b"b"])
    await pool.release(first)
    late = make_room("q")
    assert (await late.take()).message == b"b"


async def test_a_slot_that_expires_with_its_holder_goes_to_what_is_parked(store, make_room):
    pool = Pool("p", 1, slot_exp=0.5, store=store)
    room = make_room("q")
    await park_all(room, pool, [b"a", b"b"])
    assert (await taken(room)).message == b"b"


async def test_the_slot_keeps_the_expiry_that_its_message_was_parked_with(store, make_room):
    pool = Pool("p", 1, slot_exp=0.3, store=store)
    room = make_room("q")
    first, _ = await park_all(room, pool, [b"a", b"b"])
    await pool.release(first)
    one = await taken(room)
    await await_until("its slot_exp has passed", lambda: one.slot.lost)
    assert one.lost is False
    await one.settle()


async def test_a_taken_message_stays_claimed_for_many_leases(redis_url, make_room):
    configure(heartbeat_lease=0.6)
    store = RedisStore(redis_url)
    room, other, pool = make_room("q", of=store), make_room("q", of=store), Pool("p", 2, store=store)
    slots = await park_all(room, pool, [b"a", b"b", b"c"])
    await pool.release(slots[0])
    one = await taken(room)
    for _ in range(20):
        assert await other.take() is None
        await asyncio.sleep(0.1)
    assert (one.lost, one.slot.lost) == (False, False)
    await one.settle()
    await store.close()


async def test_settling_twice_and_after_the_claim_has_passed_on_changes_nothing(store, make_room):
    room, pool = make_room("q"), Pool("p", 1, store=store)
    first, _ = await park_all(room, pool, [b"a", b"b"])
    await pool.release(first)
    old = await taken(room)
    await old.give_back()
    new = await taken(room)
    await old.settle()
    await old.settle()
    assert isinstance(await room.park(pool, b"b", lane="q"), Parked)
    await new.settle()
    await pool.release(new.slot)
    assert isinstance(await room.park(pool, b"b", lane="q"), Slot)


async def test_a_parked_message_costs_its_payload_and_three_hundred_bytes(store, make_room, redis_client):
    room, pool = make_room("q"), Pool("p", 1, store=store)
    await pool.acquire()
    count, payload = 2000, 200
    await asyncio.gather(*(room.park(pool, b"%0200d" % number, lane="q", owner="task-id") for number in range(count)))
    used = sum(redis_client.memory_usage(key, samples=0) for key in redis_client.scan_iter("*pool:p*"))
    assert used / count <= payload + 300


async def test_parking_costs_one_command_once_the_pool_is_known_in_its_lane(store, make_room, redis_server):
    room, pool = make_room("q"), Pool("p", 1, store=store)
    await pool.acquire()
    await room.park(pool, b"first", lane="q")
    with redis_server.recording() as sent:
        for number in range(10):
            await room.park(pool, b"%d" % number, lane="q")
    assert [command.name for command in sent] == ["evalsha"] * 10


async def test_a_worker_with_nothing_to_take_asks_nothing(store, make_room, redis_server):
    room = make_room("q")
    await room.take()
    with redis_server.recording() as sent:
        for _ in range(10):
            assert await room.take() is None
    assert sent == []


@pytest.mark.parametrize("store", [MemoryStore(), "redis://localhost", None], ids=repr)
def test_a_room_needs_a_store_that_processes_share(store):
    with pytest.raises(InvalidOptionError, match=r"^store="):
        Room(store, ["q"])


@pytest.mark.parametrize("lane", ["", 5, None])
def test_a_lane_needs_a_name(lane):
    with pytest.raises(InvalidOptionError, match=r"^lanes="):
        Room(RedisStore("redis://localhost"), [lane])


async def test_a_paused_pool_is_not_asked_again_until_it_goes_on(store, make_room):
    room, pool = make_room("q"), Pool("p", 1, store=store)
    await pool.release(await room.park(pool, b"a", lane="q"))
    await pool.pause()
    assert await room.park(pool, b"b", lane="q") == Parked(0)
    room.call("p")
    assert await room.take() is None
    command = Command("room_take", pool_keys(store, "p"), ("token", 30_000, *room.lanes))
    assert await store.execute(command) == [0, 1, -1]
    await pool.resume()
    one = await taken(room)
    assert one.message == b"b"
    await one.settle()
    await pool.release(one.slot)


async def test_a_message_out_of_a_cache_line_that_does_not_run_leaves_nothing_of_the_line(
    store, make_room, redis_client
):
    room, line = make_room("q"), Line("cache-line:n:k", store)
    first = await run_awaiting(line.joining(room, b"first", "q", "ann"))
    assert await run_awaiting(line.joining(room, b"revoked", "q", "bob")) == Parked(0)
    await run_awaiting(line.ending(first))
    one = await taken(room)
    await one.settle()
    await one.pool.release(one.slot)
    assert redis_client.keys("*cache-line*") == [pool_keys(store, line.key)[3]], "marks of what was parked just now"
    assert redis_client.pttl(pool_keys(store, line.key)[3]) <= 60_000


@pytest.mark.parametrize("full", [False, True])
async def test_a_message_that_is_too_large_is_refused_by_its_size_and_changes_nothing(
    store, make_room, redis_client, call, full
):
    configure(max_parked_bytes=1000)
    room, pool = make_room("q"), Pool("p", 1, store=store)
    held = await pool.acquire() if full else None
    before = (await pool.info()).used
    with pytest.raises(MessageTooLargeError, match=r"1001 bytes .* pool 'p': max_parked_bytes=1000"):
        await call(room, "park", pool, b"x" * 1001, lane="q")
    assert (before, (await pool.info()).waiting, redis_client.keys("*lane*")) == (int(full), 0, [])
    outcome = await call(room, "park", pool, b"x" * 1000, lane="q")
    assert outcome == Parked(0) if full else isinstance(outcome, Slot)
    configure(max_parked_bytes=None)
    assert await call(room, "park", pool, b"x" * 5_000_000, lane="q") == Parked(int(full))
    await pool.release(held or outcome)


async def test_a_message_that_is_too_large_does_not_stand_in_a_cache_line(store, make_room):
    configure(max_parked_bytes=1000)
    room, line = make_room("q"), Line("cache-line:n:k", store)
    first = await run_awaiting(line.joining(room, b"x" * 2000, "q", "ann"))
    assert isinstance(first, Slot), "a value is made, however large the message"
    with pytest.raises(MessageTooLargeError):
        await run_awaiting(line.joining(room, b"y" * 2000, "q", "bob"))
    await run_awaiting(line.ending(first))
