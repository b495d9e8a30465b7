"""Workers die with messages that they have taken, and the server dies with all of them."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time

import pytest

from slotline import Pool, RedisStore, Slot, StoreUnavailableError, configure
from slotline.pools import Parked, Room, Taken
from tests.harness.waiting import await_until

LEASE = 1.5

TAKER = """
import sys, time
import slotline
from slotline.pools import Room
slotline.configure(heartbeat_lease={lease})
room = Room(slotline.RedisStore({url!r}), ["q"])
while (taken := room.sync.take()) is None:
    time.sleep(0.01)
print("taken", taken.message.decode(), flush=True)
if {released}:
    taken.pool.sync.release(taken.slot)
    print("released", flush=True)
sys.stdin.read()
"""


@pytest.fixture
async def store(redis_url):
    configure(heartbeat_lease=LEASE)
    store = RedisStore(redis_url)
    yield store
    await store.close()


async def taken(room: Room, timeout: float = 10) -> Taken:
    found: list[Taken] = []

    async def look() -> bool:
        try:
            one = await room.take()
        except StoreUnavailableError:
            return False
        if one is not None:
            found.append(one)
        return bool(found)

    await await_until("a message can be taken", look, timeout)
    return found[0]


@pytest.mark.parametrize("released", [False, True], ids=["while it runs", "between its run and its acknowledgement"])
async def test_a_killed_workers_message_is_at_the_head_of_its_lane_again_within_twice_the_lease(
    store, room, redis_url, released
):
    pool = Pool("p", 1, slot_exp=None, store=store)
    first = await room.park(pool, b"a", lane="q")
    for message in (b"b", b"c"):
        await room.park(pool, message, lane="q")
    await pool.release(first)
    source = TAKER.format(lease=LEASE, url=redis_url, released=released)
    process = subprocess.Popen([sys.executable, "-c", source], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "taken b\n"
        assert not released or process.stdout.readline() == "released\n"
    finally:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()
    killed = time.monotonic()
    order = []
    while b"b" not in order:
        one = await taken(room)
        order.append(one.message)
        await pool.release(one.slot)
        await one.settle()
    assert time.monotonic() - killed < 2 * LEASE + 3  # for a busy machine
    # A slot that was free meanwhile need not wait for the dead: then the next message came first.
    assert order in ([b"b"], [b"c", b"b"]) if released else order == [b"b"]


async def test_a_parked_message_survives_an_answer_that_never_came(redis_proxy, redis_server):
    configure(heartbeat_lease=LEASE)
    store, direct = RedisStore(redis_proxy.redis_url, timeout=1, retries=5), RedisStore(redis_server.url)
    pool, room, seen = Pool("p", 1, store=store), Room(store, ["q"]), Pool("p", 1, store=direct)
    held = await seen.acquire()
    await room.park(pool, b"warm", lane="q")
    for number in range(3):
        cut = redis_proxy.cut_after("to_client", 1)
        assert isinstance(await room.park(pool, b"%d" % number, lane="q"), Parked)
        assert cut.happened.is_set()
    assert (await seen.info()).waiting == 4
    await seen.release(held)
    messages = []
    while len(messages) < 4:
        cut = redis_proxy.cut_after("to_client", 1)
        one = await taken(room)
        messages.append(one.message)
        await pool.release(one.slot)
        await one.settle()
        assert (await seen.info()).used == 0
    assert messages == [b"warm", b"0", b"1", b"2"]
    room.close()
    await store.close()
    await direct.close()


@pytest.mark.parametrize("fault", ["its worker is cancelled", "the store is away"])
async def test_a_message_that_is_given_back_takes_its_slot_along(redis_proxy, redis_server, fault):
    configure(heartbeat_lease=30.0)
    store, direct = RedisStore(redis_proxy.redis_url, timeout=0.5, retries=0), RedisStore(redis_server.url)
    room, other, seen = Room(store, ["q"]), Room(direct, ["q"]), Pool("p", 1, slot_exp=None, store=direct)
    held = await seen.acquire()
    await room.park(Pool("p", 1, slot_exp=None, store=store), b"a", lane="q")
    await seen.release(held)
    one = await taken(room)
    redis_proxy.stall()
    giving = asyncio.create_task(one.give_back())
    if fault == "its worker is cancelled":
        await asyncio.sleep(0)
        giving.cancel()
    (outcome,) = await asyncio.gather(giving, return_exceptions=True)
    assert isinstance(outcome, asyncio.CancelledError | StoreUnavailableError)
    assert (await seen.info()).used == 1
    redis_proxy.resume()
    again = await taken(other, timeout=15)  # long before its lease ends
    assert again.message == b"a"
    assert (await seen.info()).used == 1
    await again.settle()
    assert await seen.release(again.slot) is True
    assert (await seen.info()).used == 0
    for closing in (room, other):
        closing.close()
    await store.close()
    await direct.close()


async def test_cancelling_a_take_at_any_moment_loses_no_message(store, room):
    pool = Pool("p", 1, slot_exp=None, store=store)
    held = await room.park(pool, b"a", lane="q")
    await room.park(pool, b"b", lane="q")
    await room.take()
    assert isinstance(held, Slot)
    await pool.release(held)
    for rounds in range(12):
        task = asyncio.create_task(room.take())
        for _ in range(rounds):
            await asyncio.sleep(0)
        task.cancel()
        (outcome,) = await asyncio.gather(task, return_exceptions=True)
        if isinstance(outcome, Taken):
            await outcome.give_back()
    assert (await taken(room, timeout=4 * LEASE)).message == b"b"


async def test_what_is_parked_survives_a_server_that_comes_back_with_its_data(make_redis):
    server = make_redis(keep_data=True)
    configure(heartbeat_lease=LEASE)
    store = RedisStore(server.url, timeout=1, retries=6)
    pool, room = Pool("p", 2, slot_exp=None, store=store), Room(store, ["q"])
    outcomes = [await room.park(pool, b"%02d" % number, lane="q") for number in range(12)]
    server.kill()
    await asyncio.to_thread(server.restart)
    for slot in outcomes[:2]:
        await pool.release(slot)
    seen = set()
    while len(seen) < 10:
        one = await taken(room, timeout=20)
        seen.add(one.message)
        await pool.release(one.slot)
        await one.settle()
    assert seen == {b"%02d" % number for number in range(2, 12)}
    room.close()
    await store.close()
