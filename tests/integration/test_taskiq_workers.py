"""The middlewares in real ``taskiq worker`` processes, on real brokers."""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import psutil
import pytest
import redis
from taskiq import TaskiqMessage

from slotline import Pool
from slotline.errors import InvalidOptionError, PoolFullError
from tests.harness.waiting import await_until, wait_until
from tests.harness.workers import TaskiqWorker

pytestmark = pytest.mark.leaves("keys", reason="the broker's own queue, and the history that the tasks write")

APP = """
import asyncio, inspect, json, os, time
from typing import Annotated
import redis
from taskiq import TaskiqDepends
from taskiq_redis import ListQueueBroker, RedisAsyncResultBackend, RedisStreamBroker
from slotline import RedisStore, Slot
from slotline.caches import RedisCacheAdapter
from taskiq_ext import CacheMiddleware, ExecutorMiddleware, PoolLimitMiddleware, current_slot

URL = "{url}"
# One worker must not take all messages before the other has looked; older brokers cannot be told so.
FEW_AT_ONCE = {{"xread_count": 2}} if "xread_count" in inspect.signature(RedisStreamBroker).parameters else {{}}
# redis-py 8 on Python 3.11 loses cancellations when it has a socket timeout, and the list broker loses messages.
broker = {broker}(URL, queue_name="work", socket_timeout=None{options}).with_result_backend(
    RedisAsyncResultBackend(URL, result_ex_time=60, socket_timeout=None)
)
store = RedisStore(URL)
broker.add_middlewares(
    CacheMiddleware(RedisCacheAdapter(URL, lock_timeout=5)),
    PoolLimitMiddleware(store, pools={{"api": 3}}),
    ExecutorMiddleware({{"cpu": {{"backend": "process", "max_pools": 1, "workers_per_pool": 1}}}}),
)
history = redis.Redis.from_url(URL)


def enter(kind):
    history.rpush("history", json.dumps([kind, "in", os.getpid(), time.time()]))


def leave(kind):
    history.rpush("history", json.dumps([kind, "out", os.getpid(), time.time()]))


@broker.task(pool="api")
async def limited(x: int) -> int:
    enter("limited")
    await asyncio.sleep(0.04)
    leave("limited")
    return x


@broker.task(pool="api")
def limited_sync(x: int, slot: Annotated[Slot, TaskiqDepends(current_slot)]) -> int:
    assert slot.key == "api" and slot.fence > 0
    enter("limited")
    time.sleep(0.04)
    leave("limited")
    return x


@broker.task
async def unlimited(x: int) -> int:
    enter("unlimited")
    return x


@broker.task(cache_ttl=60)
async def cached(x: int) -> dict[str, int]:
    enter("cached")
    await asyncio.sleep(0.3)
    return {{"x": x, "pid": os.getpid()}}


@broker.task(cache_ttl=60, pool="one:{{x}}", pool_size=1)
def cached_sync(x: int) -> list[int]:
    enter("cached")
    time.sleep(0.1)
    return [x, os.getpid()]


@broker.task(executor="cpu")
def leased(x: int) -> list[int]:
    return [x, os.getpid(), os.getppid()]


@broker.task(executor="cpu", time_limit=0.5)
def hang() -> None:
    time.sleep(60)


@broker.task(pool="slow", pool_size=1)
async def slow(seconds: float) -> str:
    enter("slow")
    await asyncio.sleep(seconds)
    leave("slow")
    return "done"
"""

BROKERS = {"RedisStreamBroker": ", **FEW_AT_ONCE", "ListQueueBroker": ""}


@asynccontextmanager
async def started(broker: Any) -> AsyncIterator[None]:
    await broker.startup()
    try:
        yield
    finally:
        await broker.shutdown()
        await broker.middlewares[1].store.close()


async def results(sent: list[Any]) -> list[Any]:
    return [await one.wait_result(check_interval=0.02, timeout=60) for one in sent]


def most_at_once(client: redis.Redis, kind: str) -> int:
    running = most = 0
    for _, direction, _, _ in sorted(events(client, kind), key=lambda event: event[3]):
        running += 1 if direction == "in" else -1
        most = max(most, running)
    return most


def events(client: redis.Redis, kind: str) -> list[Any]:
    seen = [json.loads(line) for line in client.lrange("history", 0, -1)]
    return [event for event in seen if event[0] == kind]


@pytest.fixture(params=list(BROKERS))
def app(request: pytest.FixtureRequest, app_module: Callable[[str], str], redis_url: str) -> str:
    return app_module(APP.format(url=redis_url, broker=request.param, options=BROKERS[request.param]))


@pytest.fixture
def stream_app(app_module: Callable[[str], str], redis_url: str) -> str:
    return app_module(APP.format(url=redis_url, broker="RedisStreamBroker", options=""))


async def test_a_limit_holds_across_worker_processes_and_delays_nobody_else(
    app: str, taskiq_worker: Callable[..., TaskiqWorker], redis_client: redis.Redis
) -> None:
    # Neither process has places for all that may run at once.
    worker = taskiq_worker(f"{app}:broker", workers=2, args=("--max-async-tasks", "2"))
    module = importlib.import_module(app)
    async with started(module.broker):
        pool = Pool("api", 3, store=module.store)
        held = [await pool.acquire() for _ in range(3)]
        sent = [await (module.limited if x % 2 else module.limited_sync).kiq(x) for x in range(60)]
        free = [await module.unlimited.kiq(x) for x in range(20)]
        assert [result.return_value for result in await results(free)] == list(range(20))
        assert not events(redis_client, "limited"), "all of them wait still"
        for slot in held:
            await pool.release(slot)
        assert [result.return_value for result in await results(sent)] == list(range(60))
    assert most_at_once(redis_client, "limited") <= 3
    assert {event[2] for event in events(redis_client, "limited")} == set(worker.children())


async def test_a_stampede_over_two_workers_runs_once(
    app: str, taskiq_worker: Callable[..., TaskiqWorker], redis_client: redis.Redis
) -> None:
    taskiq_worker(f"{app}:broker", workers=2)
    module = importlib.import_module(app)
    async with started(module.broker):
        served = await results([await module.cached.kiq(7) for _ in range(40)])
        again = (await results([await module.cached.kiq("7")]))[0]
    assert len(events(redis_client, "cached")) == 1
    assert {json.dumps(result.return_value) for result in served} == {json.dumps(again.return_value)}
    assert again.return_value["x"] == 7
    assert sum(bool(result.labels.get("cache_hit")) for result in [*served, again]) == 40


@pytest.mark.needs("taskiq>=0.13", reason="older process pools run no plain function: they try to pickle its context")
async def test_a_process_pool_runs_limited_and_cached_functions(
    stream_app: str, taskiq_worker: Callable[..., TaskiqWorker], redis_client: redis.Redis
) -> None:
    args = ("--use-process-pool", "--max-process-pool-processes", "4")
    worker = taskiq_worker(f"{stream_app}:broker", workers=1, args=args)
    module = importlib.import_module(stream_app)
    async with started(module.broker):
        sent = [await module.limited_sync.kiq(x) for x in range(16)]
        assert [result.return_value for result in await results(sent)] == list(range(16))
        served = await results([await module.cached_sync.kiq(x % 2) for x in range(10)])
    assert most_at_once(redis_client, "limited") <= 3
    assert len(events(redis_client, "cached")) == 2
    pids = {result.return_value[1] for result in served}
    assert pids.isdisjoint({*worker.children(), os.getpid()})


async def test_leased_functions_run_in_processes_that_end_with_their_worker(
    stream_app: str, taskiq_worker: Callable[..., TaskiqWorker]
) -> None:
    worker = taskiq_worker(f"{stream_app}:broker", workers=1)
    module = importlib.import_module(stream_app)
    async with started(module.broker):
        (result,) = await results([await module.leased.kiq("5")])
        x, pid, _ = result.return_value
        assert x == 5
        assert pid not in {*worker.children(), os.getpid()}
        (hung,) = await results([await module.hang.kiq()])
        assert "WorkTimeLimitError" in repr(hung.error)
    worker.terminate()
    wait_until("no process is left", lambda: not worker.processes(), timeout=20)


async def test_leased_processes_end_with_a_worker_that_is_killed(
    stream_app: str, taskiq_worker: Callable[..., TaskiqWorker]
) -> None:
    worker = taskiq_worker(f"{stream_app}:broker", workers=1)
    module = importlib.import_module(stream_app)
    async with started(module.broker):
        (result,) = await results([await module.leased.kiq(1)])
    leased = result.return_value[1]
    worker.kill_child()
    wait_until("the leased process has ended", lambda: not psutil.pid_exists(leased), timeout=20)


async def test_sigterm_lets_a_run_end_and_frees_its_slot(
    stream_app: str, taskiq_worker: Callable[..., TaskiqWorker], redis_client: redis.Redis
) -> None:
    worker = taskiq_worker(f"{stream_app}:broker", workers=1)
    module = importlib.import_module(stream_app)
    async with started(module.broker):
        sent = await module.slow.kiq(1.0)
        await await_until("the task runs", lambda: events(redis_client, "slow"))
        worker.terminate()
        assert (await results([sent]))[0].return_value == "done"
        wait_until("the worker has ended", lambda: not worker.processes(), timeout=20)
        assert await Pool("slow", 1, store=module.store).size() == 0


async def test_errors_of_the_middlewares_survive_the_result_backend(
    stream_app: str, taskiq_worker: Callable[..., TaskiqWorker], redis_client: redis.Redis
) -> None:
    taskiq_worker(f"{stream_app}:broker", workers=1)
    module = importlib.import_module(stream_app)
    async with started(module.broker):
        holding = await module.slow.kicker().with_task_id("holder").kiq(1.0)
        await await_until("the task runs", lambda: events(redis_client, "slow"))
        (full,) = await results([await module.slow.kicker().with_labels(pool_on_full="fail").kiq(0.0)])
        assert isinstance(full.error, PoolFullError)
        assert (full.error.key, full.error.max_size, full.error.holders) == ("slow", 1, ("holder",))
        labels = {"pool": "slow", "pool_size": "-1"}
        message = TaskiqMessage(task_id="bad", task_name=module.slow.task_name, labels=labels, args=[0], kwargs={})
        await module.broker.kick(module.broker.formatter.dumps(message))
        await await_until("the bad message has a result", lambda: module.broker.result_backend.is_result_ready("bad"))
        bad = await module.broker.result_backend.get_result("bad")
        assert isinstance(bad.error, InvalidOptionError)
        assert bad.error.option == "pool_size"
        assert (await results([holding]))[0].return_value == "done"
