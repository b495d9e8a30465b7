"""``pool_on_full="stale"``: a full pool is answered with the last value."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from taskiq import InMemoryBroker

from slotline import MemoryStore, Pool
from slotline.caches import InMemoryCacheAdapter
from slotline.errors import InvalidOptionError
from taskiq_ext import CacheMiddleware, PoolLimitMiddleware
from tests.harness.waiting import await_until

STALE = {"pool": "api", "pool_size": 1, "pool_on_full": "stale"}


async def result_of(sent: Any) -> Any:
    return await sent.wait_result(timeout=20, check_interval=0.01)


async def test_a_full_pool_is_answered_with_the_last_value_and_else_waited_for() -> None:
    store, cache, runs = MemoryStore(), InMemoryCacheAdapter(), []
    broker = InMemoryBroker().with_middlewares(CacheMiddleware(cache), PoolLimitMiddleware(store))

    @broker.task(cache_ttl=0.05, **STALE)
    async def work(x: int) -> int:
        runs.append(x)
        return len(runs)

    assert (await result_of(await work.kiq(1))).return_value == 1
    (key,) = cache.get_stats()["keys"]

    async def ended() -> bool:
        return await cache.get(key) is None

    await await_until("the value has ended", ended)
    pool = Pool("api", 1, store=store)
    slot = await pool.acquire()
    old = await result_of(await work.kiq(1))
    assert (old.return_value, old.labels["cache_hit"]) == (1, True)
    waiting = await work.kiq(2)
    await asyncio.sleep(0)  # it has had its chance
    assert not await waiting.is_ready()
    await pool.release(slot)
    assert (await result_of(waiting)).return_value == 2
    assert (await result_of(await work.kiq(1))).return_value == 3, "with a slot it runs"
    assert runs == [1, 2, 1]
    await broker.shutdown()


async def test_without_a_cache_it_is_refused_early() -> None:
    broker = InMemoryBroker().with_middlewares(PoolLimitMiddleware(MemoryStore()))
    with pytest.raises(InvalidOptionError, match="pool_on_full") as refused:
        broker.task(**STALE)(_nothing)
    assert "cache_ttl" in str(refused.value)
    task = broker.task("plain", pool="api", pool_size=1)(_nothing)
    with pytest.raises(InvalidOptionError, match="pool_on_full"):
        await task.kicker().with_labels(pool_on_full="stale").kiq()


@pytest.mark.needs("taskiq>=0.13", reason="an older InMemoryBroker tells its middlewares nothing when it starts")
async def test_without_a_cache_a_task_that_came_first_is_refused_when_the_worker_starts() -> None:
    late = InMemoryBroker()
    late.task("late", cache_ttl=60, **STALE)(_nothing)
    late.is_worker_process = True
    late.add_middlewares(PoolLimitMiddleware(MemoryStore()))
    with pytest.raises(InvalidOptionError, match="CacheMiddleware"):
        await late.startup()


def _nothing() -> None:
    pass
