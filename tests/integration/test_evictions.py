"""Evictions between processes: the holder's process hears of it at once, or with its next renewal."""

from __future__ import annotations

import asyncio
import time

from slotline import Pool, RedisStore, configure
from slotline.caches.line import Line
from slotline.pools import Parked
from slotline.pools._tending import evictions_on
from slotline.steps import run_awaiting
from slotline.stores.wakeups import Listen
from tests.harness.waiting import await_until


async def test_a_process_that_listens_hears_at_once(redis_url):
    theirs, ours = RedisStore(redis_url), RedisStore(redis_url)  # as in two processes
    told: list = []
    pool = Pool("p", 1, store=theirs, on_lost=told.append)
    slot = await pool.acquire()
    await Listen(theirs.wakeups).awaiting()
    began = time.monotonic()
    assert await Pool("p", 1, store=ours).evict(slot.token) == slot.token
    await await_until("it is told", lambda: told)
    assert time.monotonic() - began < 5, "renewals are ten seconds apart"
    assert (told, slot.evicted, slot.lost) == ([slot], True, False)
    await pool.release(slot)
    await theirs.close()
    await ours.close()


async def test_a_process_that_may_have_missed_messages_waits_for_its_renewal(redis_url, caplog):
    store = RedisStore(redis_url)
    pool = Pool("p", 1, store=store, on_lost=print)
    slot = await pool.acquire()
    store.wakeups.nudge_all()  # as when its connection was lost, and when it closes
    assert not slot.evicted
    assert not caplog.records
    await pool.release(slot)
    await store.close()


async def test_a_lost_message_costs_a_delay_and_the_slot_goes_on_counting(redis_url, redis_client):
    configure(heartbeat_lease=1.5)
    theirs, ours = RedisStore(redis_url), RedisStore(redis_url)
    told: list = []
    pool = Pool("p", 1, slot_exp=None, store=theirs, on_lost=told.append)
    slot = await pool.acquire()  # this process listens to nothing
    other = Pool("p", 1, slot_exp=None, store=ours)
    await other.evict(slot.token)
    assert not told
    await await_until("its renewal says so", lambda: told)
    told_at = time.monotonic()
    await await_until("a lease has passed since", lambda: time.monotonic() > told_at + 2)
    assert (await other.size(), slot.lost, told) == (1, False, [slot]), "it is renewed while its holder ends"
    await pool.release(slot)
    assert not [name for name in redis_client.hkeys("slotline:{pool:p}:state") if name.startswith(b"e:")]
    await theirs.close()
    await ours.close()


async def test_a_line_for_a_cached_value_leaves_nothing_with_those_who_hear_of_evictions(store, make_room):
    room = make_room("q", on_lost=lambda _: None)
    line = Line("cache-line:n:k", store)
    first = await run_awaiting(line.joining(room, b"first", "q", "ann"))
    assert await run_awaiting(line.joining(room, b"second", "q", "bob")) == Parked(0)
    await run_awaiting(line.ending(first))
    found: list = []

    async def look() -> bool:
        found.append(await room.take())
        return found[-1] is not None

    await await_until("the second is taken", look)
    taken = found[-1]
    assert taken.slot.token in evictions_on(store)._told
    await taken.settle()
    await run_awaiting(line.ending(taken.slot))
    assert not evictions_on(store)._told
    assert taken.slot.lost is False


async def test_an_eviction_that_is_asked_twice_since_its_answer_was_lost_tells_nobody_else(store, monkeypatch):
    told: list = []
    pool = Pool("p", 2, store=store, on_lost=told.append)
    slots = [await pool.acquire() for _ in range(2)]
    waiters = [asyncio.create_task(pool.acquire(timeout=None))]
    await await_until("it waits", lambda: _waiting(pool, 1))
    execute = store.execute

    async def is_asked_again(command):
        reply = await execute(command)
        if command.script != "pool_evict":
            return reply
        await pool.release(slots[0])  # whoever was told has ended, and others have come
        await waiters[0]
        waiters.append(asyncio.create_task(pool.acquire(timeout=None)))
        await await_until("another waits", lambda: _waiting(pool, 1))
        return await execute(command)

    monkeypatch.setattr(store, "execute", is_asked_again)
    assert await pool.evict() == slots[0].token
    monkeypatch.setattr(store, "execute", execute)
    assert slots[1] not in told
    assert await pool.evict() == slots[1].token, "who asks for the other one is another"
    await await_until("it is told", lambda: slots[1] in told)
    await pool.release(slots[1])
    await pool.release(await waiters[1])
    await pool.release(await waiters[0])


async def _waiting(pool, count):
    return (await pool.info()).waiting == count
