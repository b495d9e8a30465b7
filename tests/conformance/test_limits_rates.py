"""Rates of pools that are wanted together with others, on every store."""

from __future__ import annotations

import asyncio
import time

import pytest

from slotline import Limits, Pool, PoolFullError
from tests.harness.waiting import await_until


async def is_empty(*pools: Pool) -> bool:
    return all((info.used, info.waiting) == (0, 0) for info in [await pool.info() for pool in pools])


async def is_used(*pools: Pool) -> bool:
    return all(info.waiting > 0 for info in [await pool.info() for pool in pools])


async def test_a_rate_spaces_the_starts_of_those_who_also_need_another_pool(store):
    slow, b = Pool("slow", None, rate="10/s", store=store, group="g"), Pool("b", 5, store=store, group="g")
    limits = Limits(b, slow)
    loop = asyncio.get_running_loop()
    starts: list[float] = []

    async def use() -> None:
        async with limits.slot(timeout=30):
            starts.append(loop.time())

    await limits.release(await limits.acquire())
    with pytest.raises(PoolFullError) as caught:
        await limits.acquire()
    assert (caught.value.key, 0 < caught.value.retry_after <= 0.1) == ("slow", True)
    began = loop.time()
    await asyncio.gather(*(use() for _ in range(5)))
    assert max(starts) - began >= 0.4
    assert await is_empty(slow, b)


async def test_who_has_a_start_kept_begins_no_sooner_after_another_than_the_rate_allows(store):
    interval = 0.2
    b, c = (Pool(key, 1, store=store, group="g") for key in ("b", "c"))
    a = Pool("a", 2, rate="5/s", store=store, group="g")
    began: list[float] = []

    async def mover() -> None:
        async with Limits(a, b, c).slot(timeout=60):
            began.append(time.monotonic())

    async def waits_at_b() -> bool:
        return (await a.info()).waiting == 1

    async def is_kept() -> bool:
        return await a.size() == 1

    async def other_begins() -> bool:
        asked.append(time.monotonic())
        try:
            await a.release(await a.acquire())
        except PoolFullError:
            return False
        return True

    in_b, in_c = await b.acquire(), await c.acquire()
    waiter, asked = asyncio.create_task(mover()), []
    await await_until("it waits for b", waits_at_b)
    await b.release(in_b)
    in_b = await b.acquire(timeout=30)  # it has moved to c
    await asyncio.sleep(3 * interval)  # from its next move on it keeps what it can have, for as long as that
    await c.release(in_c)
    await await_until("it waits for b again, and keeps a start of a", is_kept)
    await await_until("another has had the next start", other_begins)
    await b.release(in_b)
    await waiter
    assert began[0] - asked[-1] >= interval
    assert await is_empty(a, b, c)


async def test_who_wants_slots_of_two_pools_with_rates_that_are_always_used_up_has_its_turn(store):
    a, b = Pool("a", 3, rate="20/s", store=store, group="g"), Pool("b", 3, rate="35/s", store=store, group="g")
    served = asyncio.Event()

    async def go_on(limit: Pool) -> None:
        while not served.is_set():
            async with limit.slot(timeout=60):
                await asyncio.sleep(0)

    others = [asyncio.create_task(go_on(limit)) for limit in (a, b) * 3]
    await await_until("the others are at work", lambda: is_used(a, b))
    for _ in range(3):
        async with Limits(a, b).slot(timeout=30):
            await asyncio.sleep(0)
    served.set()
    await asyncio.gather(*others)
    assert await is_empty(a, b)
