"""Workers are killed and Redis goes away; limits hold, slots come back, and every sender has an answer."""

from __future__ import annotations

import asyncio
import importlib
import json
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import redis
from taskiq import InMemoryBroker

from slotline import Pool, RedisStore
from slotline.caches import RedisCacheAdapter
from slotline.errors import StoreUnavailableError
from taskiq_ext import CacheMiddleware, PoolLimitMiddleware
from tests.harness.proxy import TcpProxy
from tests.harness.redis_server import RedisServer
from tests.harness.waiting import await_until
from tests.harness.workers import TaskiqWorker

LEASE = 1.5

APP = """
import asyncio, json, os, time
import redis
from taskiq_redis import RedisAsyncResultBackend, RedisStreamBroker
from slotline import RedisStore, configure
from slotline.caches import RedisCacheAdapter
from taskiq_ext import CacheMiddleware, PoolLimitMiddleware

URL = "{url}"
configure(heartbeat_lease={lease})
# What a dead worker has not acknowledged is delivered to another one after idle_timeout ms.
broker = RedisStreamBroker(
    URL, queue_name="work", socket_timeout=None, idle_timeout=4000, xread_block=200, unacknowledged_lock_timeout=2
).with_result_backend(RedisAsyncResultBackend(URL, result_ex_time=60, socket_timeout=None))
store = RedisStore(URL)
cache = RedisCacheAdapter(URL, lock_timeout={lease})
broker.add_middlewares(CacheMiddleware(cache), PoolLimitMiddleware(store))
history = redis.Redis.from_url(URL)


def note(direction, x):
    history.rpush("history", json.dumps([direction, x, os.getpid(), time.time()]))


async def until_told(x):
    note("in", x)
    while not history.exists("go"):
        await asyncio.sleep(0.02)
    note("out", x)
    return x


@broker.task(pool="one", pool_size=1)
async def limited(x: int) -> int:
    return await until_told(x)


@broker.task
async def nudge() -> None:
    pass  # this broker looks for the messages of dead workers only after it has got a new one


@broker.task(cache_ttl=60)
async def cached(x: int) -> int:
    return await until_told(x)
"""


def events(client: redis.Redis) -> list[Any]:
    return [json.loads(line) for line in client.lrange("history", 0, -1)]


@pytest.fixture
async def app(app_module: Callable[[str], str], redis_url: str) -> AsyncIterator[Any]:
    name = app_module(APP.format(url=redis_url, lease=LEASE))
    module = importlib.import_module(name)
    await module.broker.startup()
    yield module
    await module.broker.shutdown()
    await module.store.close()


@pytest.fixture
def two_workers(app: Any, taskiq_worker: Callable[..., TaskiqWorker]) -> list[TaskiqWorker]:
    return [taskiq_worker(f"{app.__name__}:broker", workers=1) for _ in range(2)]


def worker_of(workers: list[TaskiqWorker], pid: int) -> TaskiqWorker:
    return next(worker for worker in workers if pid in worker.children())


async def results(sent: list[Any]) -> list[Any]:
    return [(await one.wait_result(check_interval=0.05, timeout=60)).return_value for one in sent]


async def results_after_nudges(app: Any, sent: list[Any]) -> list[Any]:
    async def all_there() -> bool:
        await app.nudge.kiq()
        return all([await one.is_ready() for one in sent])

    await await_until("every message has its result", all_there, timeout=60, interval=0.5)
    return await results(sent)


@pytest.mark.leaves("keys", reason="the broker's own queue, and the history that the tasks write")
async def test_a_killed_workers_slot_is_free_within_the_lease_and_its_messages_run_elsewhere(
    app: Any, two_workers: list[TaskiqWorker], redis_client: redis.Redis
) -> None:
    sent = [await app.limited.kiq(x) for x in range(4)]
    await await_until("one runs", lambda: events(redis_client), timeout=30)
    worker_of(two_workers, events(redis_client)[0][2]).kill_all()
    killed = time.time()
    # Those that waited are parked, and need no redelivery.
    await await_until("another one runs", lambda: len(events(redis_client)) == 2, timeout=4 * LEASE)
    redis_client.set("go", 1, ex=60)
    assert sorted(await results_after_nudges(app, sent)) == [0, 1, 2, 3]
    later = [event for event in events(redis_client) if event[3] > killed]
    assert len(later) % 2 == 0
    for entered, left in zip(later[::2], later[1::2], strict=True):
        assert (entered[0], left[0], entered[1]) == ("in", "out", left[1]), later


@pytest.mark.leaves("keys", reason="the broker's own queue, and the history that the tasks write")
async def test_a_worker_killed_in_a_cached_run_costs_one_more_run(
    app: Any, two_workers: list[TaskiqWorker], redis_client: redis.Redis
) -> None:
    sent = [await app.cached.kiq(7) for _ in range(20)]
    await await_until("one runs", lambda: events(redis_client), timeout=30)
    worker_of(two_workers, events(redis_client)[0][2]).kill_all()
    redis_client.set("go", 1, ex=60)
    assert await results_after_nudges(app, sent) == [7] * 20
    assert sum(event[0] == "in" for event in events(redis_client)) == 2


@pytest.fixture
async def far_store(redis_proxy: TcpProxy) -> AsyncIterator[RedisStore]:
    store = RedisStore(redis_proxy.redis_url, timeout=0.5, retries=1)
    yield store
    redis_proxy.resume()
    await store.close()


async def test_messages_wait_for_a_store_that_is_away_and_then_keep_the_limit(
    far_store: RedisStore, redis_proxy: TcpProxy
) -> None:
    broker = InMemoryBroker().with_middlewares(PoolLimitMiddleware(far_store))
    running = most = 0

    @broker.task(pool="api", pool_size=2)
    async def work(x: int) -> int:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.01)
        running -= 1
        return x

    redis_proxy.refuse()
    sent = [await work.kiq(x) for x in range(8)]
    await asyncio.sleep(1)
    assert not any([await one.is_ready() for one in sent])
    redis_proxy.resume()
    assert await results(sent) == list(range(8))
    assert most <= 2
    await broker.shutdown()


@pytest.mark.parametrize("policy", ["open", "fail"])
async def test_messages_run_or_fail_while_the_store_is_away_if_they_are_told_to(
    far_store: RedisStore, redis_proxy: TcpProxy, policy: Any
) -> None:
    broker = InMemoryBroker().with_middlewares(PoolLimitMiddleware(far_store, on_store_error=policy))

    @broker.task(pool="api", pool_size=2)
    async def work(x: int) -> int:
        return x

    redis_proxy.refuse()
    result = await (await work.kiq(1)).wait_result(check_interval=0.02, timeout=30)
    if policy == "open":
        assert result.return_value == 1
    else:
        assert isinstance(result.error, StoreUnavailableError)
    await broker.shutdown()


@pytest.mark.parametrize("policy", ["wait", "open", "fail"])
async def test_a_store_that_is_out_of_memory_is_one_that_is_away(own_redis: RedisServer, policy: Any) -> None:
    store = RedisStore(own_redis.url, retries=1)
    broker = InMemoryBroker().with_middlewares(PoolLimitMiddleware(store, on_store_error=policy))

    @broker.task(pool="api", pool_size=2)
    async def work(x: int) -> int:
        return x

    with own_redis.client() as client:
        client.config_set("maxmemory", 1)
        sent = await work.kiq(1)
        if policy == "wait":
            await asyncio.sleep(0.5)
            assert not await sent.is_ready()
            client.config_set("maxmemory", 0)
        result = await sent.wait_result(check_interval=0.02, timeout=30)
        client.config_set("maxmemory", 0)
    if policy == "fail":
        assert isinstance(result.error, StoreUnavailableError)
    else:
        assert result.return_value == 1
    await broker.shutdown()
    await store.close()


async def test_a_store_that_goes_away_during_a_run_does_not_change_its_result(
    far_store: RedisStore, redis_proxy: TcpProxy
) -> None:
    broker = InMemoryBroker().with_middlewares(PoolLimitMiddleware(far_store))
    started, go = asyncio.Event(), asyncio.Event()

    @broker.task(pool="api", pool_size=1)
    async def work() -> str:
        started.set()
        await go.wait()
        return "done"

    sent = await work.kiq()
    await asyncio.wait_for(started.wait(), 20)
    redis_proxy.refuse()
    go.set()
    assert await results([sent]) == ["done"]
    redis_proxy.resume()
    pool = Pool("api", 1, store=far_store)

    async def free() -> bool:
        return await pool.size() == 0

    await await_until("the slot is released in the background", free, timeout=20)
    await broker.shutdown()


@pytest.fixture
async def far_cache(redis_proxy: TcpProxy, request: pytest.FixtureRequest) -> AsyncIterator[RedisCacheAdapter]:
    store = RedisStore(redis_proxy.redis_url, timeout=0.5, retries=1)
    cache = RedisCacheAdapter(store=store, lock_timeout=LEASE, on_store_error=getattr(request, "param", "open"))
    yield cache
    redis_proxy.resume()
    await cache.close()
    await store.close()


async def test_a_cached_task_runs_without_its_cache_while_the_server_is_away(
    far_cache: RedisCacheAdapter, redis_proxy: TcpProxy
) -> None:
    broker = InMemoryBroker().with_middlewares(CacheMiddleware(far_cache))
    ran = []

    @broker.task(cache_ttl=60)
    async def work(x: int) -> int:
        ran.append(x)
        return x

    redis_proxy.refuse()
    assert await results([await work.kiq(1)]) == [1]
    assert await results([await work.kiq(1)]) == [1]
    assert ran == [1, 1]
    redis_proxy.resume()

    async def cached_again() -> bool:
        result = await (await work.kiq(2)).wait_result(check_interval=0.02, timeout=30)
        return bool(result.labels.get("cache_hit"))

    await await_until("results are cached again", cached_again, timeout=30, interval=0.2)
    await broker.shutdown()


@pytest.mark.parametrize("far_cache", ["fail"], indirect=True)
@pytest.mark.parametrize("policy", ["wait", "open", "fail"])
async def test_the_middleware_decides_where_the_cache_says_that_it_is_away(
    far_cache: RedisCacheAdapter, redis_proxy: TcpProxy, policy: Any
) -> None:
    broker = InMemoryBroker().with_middlewares(CacheMiddleware(far_cache, on_store_error=policy))

    @broker.task(cache_ttl=60)
    async def work(x: int) -> int:
        return x

    redis_proxy.refuse()
    sent = await work.kiq(1)
    if policy == "wait":
        await asyncio.sleep(1)
        assert not await sent.is_ready()
        redis_proxy.resume()
    result = await sent.wait_result(check_interval=0.02, timeout=30)
    if policy == "fail":
        assert isinstance(result.error, StoreUnavailableError)
    else:
        assert result.return_value == 1
    await broker.shutdown()


@pytest.mark.parametrize("trouble", ["refuse", "cut", "stall"])
async def test_a_cache_that_goes_away_during_a_run_costs_nobody_the_result(
    far_cache: RedisCacheAdapter, redis_proxy: TcpProxy, trouble: str
) -> None:
    broker = InMemoryBroker().with_middlewares(CacheMiddleware(far_cache, answer_senders=False))
    started, go, ran = asyncio.Event(), asyncio.Event(), []

    @broker.task(cache_ttl=60)
    async def work() -> str:
        ran.append(1)
        started.set()
        await go.wait()
        return "done"

    sent = [await work.kiq() for _ in range(5)]
    await asyncio.wait_for(started.wait(), 20)
    getattr(redis_proxy, trouble)()
    go.set()
    assert await results(sent) == ["done"] * 5
    assert len(ran) == 1
    await broker.shutdown()
