"""Weights: slots that count as several, on every store and through both faces."""

from __future__ import annotations

import asyncio
from functools import partial

import pytest

from slotline import InvalidOptionError, MemoryStore, Pool, PoolFullError, pooled
from tests.harness.waiting import await_until


async def waiting(pool: Pool, count: int) -> bool:
    return (await pool.info()).waiting == count


async def test_a_slot_counts_as_often_as_it_weighs(store, call):
    pool = Pool("p", 3, store=store)
    heavy = await call(pool, "acquire", weight=2)
    assert await call(pool, "size") == 2
    with pytest.raises(PoolFullError, match="not enough"):
        await call(pool, "acquire", weight=2)
    light = await call(pool, "acquire")
    assert (await pool.info()).used == 3
    assert sorted(holder.weight for holder in (await pool.info()).holders) == [1, 2]
    await call(pool, "release", heavy)
    await call(pool, "release", heavy)
    await call(pool, "release", light)
    assert await call(pool, "size") == 0
    async with call.using(pool.slot(weight=3)):
        with pytest.raises(PoolFullError):
            await pool.acquire()


async def test_a_heavy_waiter_is_not_overtaken(store):
    pool = Pool("p", 3, store=store)
    held = [await pool.acquire() for _ in range(3)]
    heavy = asyncio.create_task(pool.acquire(weight=2, timeout=30))
    await await_until("the heavy one waits", partial(waiting, pool, 1))
    light = asyncio.create_task(pool.acquire(timeout=30))
    await await_until("both wait", partial(waiting, pool, 2))
    await pool.release(held[0])
    with pytest.raises(PoolFullError):
        await pool.acquire()
    assert await waiting(pool, 2)
    await pool.release(held[1])
    slot = await heavy
    assert await waiting(pool, 1)
    await pool.release(slot)
    await light
    assert await pool.size() == 2


async def test_a_heavy_slot_that_expires_frees_all_that_it_weighed(store, call):
    pool = Pool("p", 2, slot_exp=0.2, store=store)
    await call(pool, "acquire", weight=2)
    slot = await call(pool, "acquire", weight=2, timeout=20)
    await call(pool, "release", slot)
    assert await call(pool, "size") == 0


async def test_who_needs_more_than_a_pool_was_made_smaller_to_is_passed_over_and_keeps_its_place(store, caplog):
    pool = Pool("p", 3, store=store)
    held = await pool.acquire(weight=3)
    heavy = asyncio.create_task(pool.acquire(weight=3, timeout=30))
    await await_until("it waits", partial(waiting, pool, 1))
    await pool.resize(2)
    with pytest.raises(PoolFullError, match="only 2 slots now, and 3 were asked for"):
        await pool.acquire(weight=3)
    await pool.release(held)
    await pool.release(await pool.acquire(weight=2))
    late = asyncio.create_task(pool.acquire(weight=3, timeout=30))
    await await_until("it says so", lambda: "waits for 3 slots of pool 'p', which has only 2" in caplog.text)
    await pool.resize(3)
    await pool.release(await heavy)
    await pool.release(await late)
    assert await pool.size() == 0


async def test_a_heavy_start_is_one_start_to_a_rate(store, call):
    pool = Pool("p", 4, rate="1/h", burst=2, store=store)
    for _ in range(2):
        await call(pool, "release", await call(pool, "acquire", weight=4))
    with pytest.raises(PoolFullError, match="rate"):
        await call(pool, "acquire")


@pytest.mark.parametrize("weight", [0, -1, 4, 1.5, True, "2", None])
async def test_a_weight_that_can_never_be_met_is_refused_by_name(store, call, weight):
    pool = Pool("p", 3, store=store)
    with pytest.raises(InvalidOptionError, match=r"^weight="):
        await call(pool, "acquire", weight=weight)
    with pytest.raises(InvalidOptionError, match=r"^weight="):
        pool.slot(weight=weight)
    with pytest.raises(InvalidOptionError, match=r"^weight="):
        pooled("p", 3, weight=weight, store=store)


def test_a_decorated_function_weighs_what_it_is_said_to():
    store = MemoryStore()

    @pooled("p", 3, weight=2, store=store)
    def used() -> int:
        return Pool("p", 3, store=store).sync.size()

    assert used() == 2
