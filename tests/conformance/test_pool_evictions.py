"""Holders can be told to end, on every store and through both faces."""

from __future__ import annotations

import asyncio

import pytest

from slotline import InvalidOptionError, Pool
from tests.harness.waiting import await_until


async def _waiting(pool: Pool, count: int) -> bool:
    return (await pool.info()).waiting == count


async def test_an_evicted_holder_is_told_once_and_its_slot_counts_until_it_is_released(store, call):
    told: list = []
    pool = Pool("p", 1, store=store, on_lost=told.append)
    slot = await pool.acquire()
    assert await call(pool, "evict", slot.token) == slot.token
    assert await call(pool, "evict", slot.token) == slot.token
    await await_until("its holder is told", lambda: told)
    assert (told, slot.evicted, slot.lost, await pool.size()) == ([slot], True, False, 1)
    assert await pool.release(slot) is True
    assert await pool.size() == 0
    assert await call(pool, "evict", slot.token) is None
    assert told == [slot]


async def test_those_who_wait_get_the_slots_of_the_longest_holders_one_for_each(store, call):
    told: list = []
    pool = Pool("p", 3, store=store, on_lost=told.append)
    slots = [await pool.acquire() for _ in range(3)]
    assert await call(pool, "evict") is None, "nobody waits"
    waiters = [asyncio.create_task(pool.acquire(timeout=None)) for _ in range(2)]
    await await_until("two wait", lambda: _waiting(pool, 2))
    assert [await call(pool, "evict") for _ in range(3)] == [slots[0].token, slots[1].token, None]
    await await_until("both are told", lambda: len(told) == 2)
    assert told == slots[:2]
    await pool.release(slots[2])  # it was not told, and ends all the same: one told too many, at most
    await waiters[0]
    assert await call(pool, "evict") is None, "one waits, for whom two are told"
    await pool.release(slots[0])
    await waiters[1]


async def test_nobody_is_told_to_end_where_that_helps_nobody(store, call):
    pool = Pool("p", 1, store=store)
    slot = await pool.acquire()
    await pool.pause()
    waiter = asyncio.create_task(pool.acquire(timeout=None))
    await await_until("it waits", lambda: _waiting(pool, 1))
    assert await call(pool, "evict") is None, "a slot that is free would not be given"
    await pool.resume()
    assert await call(pool, "evict") == slot.token
    await pool.release(slot)
    await waiter
    rated = Pool("rated", 5, rate="1/h", store=store)
    await rated.acquire()
    waiter = asyncio.create_task(rated.acquire(timeout=None))
    await await_until("it waits", lambda: _waiting(rated, 1))
    assert await call(rated, "evict") is None, "its rate is what it waits for"
    waiter.cancel()
    assert await call(Pool("unknown", 1, store=store), "evict") is None


async def test_a_holder_without_on_lost_goes_on(store):
    pool = Pool("p", 1, store=store)
    slot = await pool.acquire()
    assert await pool.evict(slot.token) == slot.token
    assert (await pool.size(), slot.lost) == (1, False)
    assert await pool.release(slot) is True


@pytest.mark.parametrize("token", ["", 7])
async def test_a_token_is_text(store, call, token):
    with pytest.raises(InvalidOptionError, match="token"):
        await call(Pool("p", 1, store=store), "evict", token)
