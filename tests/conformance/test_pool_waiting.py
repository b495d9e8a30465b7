"""A pool tells who waits, and what its limits are, on every store and through both faces."""

from __future__ import annotations

import asyncio

from slotline import Limits, Pool
from tests.harness.waiting import await_until


async def lined_up(pool, count):
    await await_until(f"{count} wait", lambda: _waits(pool, count))


async def _waits(pool, count):
    return (await pool.info()).waiting == count


async def test_those_who_came_first_are_told_of_first_whatever_their_partition(store, call):
    pool = Pool("p", 2, store=store)
    held = await pool.acquire(weight=2)
    waits = []
    for number, (partition, weight) in enumerate([("b", 1), ("a", 2), (None, 1), ("b", 1)]):
        asks = pool.acquire(owner=f"w{number}", timeout=None, partition=partition, weight=weight)
        waits.append(asyncio.create_task(asks))
        await lined_up(pool, number + 1)
    told = await call(pool, "waiting")
    assert [(one.owner, one.partition, one.weight) for one in told] == [
        *(("w0", "b", 1), ("w1", "a", 2), ("w2", None, 1), ("w3", "b", 1))
    ]
    assert [one.since for one in told] == sorted(one.since for one in told)
    assert not any(one.parked or one.several for one in told)
    now = (await call(pool, "info")).now
    assert all(0 <= now - one.since < 60 for one in told), "by the same clock"
    assert [one.owner for one in await call(pool, "waiting", most=2)] == ["w0", "w1"]
    for wait in waits:
        wait.cancel()
    await asyncio.gather(*waits, return_exceptions=True)
    await pool.release(held)
    await lined_up(pool, 0)
    assert await call(pool, "waiting") == ()


async def test_who_wants_slots_of_several_pools_is_told_of_at_the_first_of_them(store, call):
    first, second = Pool("a", 1, store=store), Pool("b", 1, store=store)
    held = await second.acquire()
    wait = asyncio.create_task(Limits(first, second).acquire(owner="both", timeout=None))
    await lined_up(first, 1)
    (told,) = await call(first, "waiting")
    assert (told.owner, told.several) == ("both", True)
    assert await call(second, "waiting") == ()
    await second.release(held)
    await Limits(first, second).release(await wait)


async def test_a_pool_that_nobody_knows_has_nobody_waiting(store, call):
    assert await call(Pool("unknown", 1, store=store), "waiting") == ()


async def test_info_tells_the_rate_and_the_most_of_a_partition(store, call):
    pool = Pool("p", 5, rate="90/m", burst=3, max_per_partition=2, store=store)
    await pool.acquire()
    info = await call(pool, "info")
    assert (info.rate.text, info.rate.burst, info.max_per_partition) == ("90/m", 3, 2)
    plain = Pool("plain", 5, store=store)
    await plain.acquire()
    info = await call(plain, "info")
    assert (info.rate, info.max_per_partition) == (None, None)


async def test_those_who_call_are_not_purged(store, call):
    pool = Pool("p", 1, store=store)
    held = await pool.acquire()
    wait = asyncio.create_task(pool.acquire(owner="w", timeout=None))
    await lined_up(pool, 1)
    assert await call(pool, "purge") == 0
    await lined_up(pool, 1)
    await pool.release(held)
    await pool.release(await wait)
