"""Messages over their limit wait in the room, in real ``taskiq worker`` processes, on real brokers."""

from __future__ import annotations

import importlib
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import redis

from slotline import Pool
from slotline.pools import PoolInfo
from tests.harness.waiting import await_until
from tests.harness.workers import TaskiqWorker

pytestmark = pytest.mark.leaves("keys", reason="the broker's own queue, and the history that the tasks write")

MAKE = {
    "list": 'ListQueueBroker(URL, queue_name="work", socket_timeout=None)',
    "stream": 'RedisStreamBroker(URL, queue_name="work", socket_timeout=None, xread_block=200)',
    "rabbitmq": "AioPikaBroker(AMQP, exchange=Exchange(name=NAME), task_queues=[Queue(name=NAME)],"
    ' dead_letter_queue=Queue(name=NAME + ".dead_letter"))',
}
IMPORTS = {
    "list": "from taskiq_redis import ListQueueBroker",
    "stream": "from taskiq_redis import RedisStreamBroker",
    "rabbitmq": "from taskiq_aio_pika import AioPikaBroker, Exchange, Queue",
}

APP = """
import asyncio, json, os, time
import redis
from taskiq import Context, SmartRetryMiddleware, TaskiqDepends
from taskiq_redis import RedisAsyncResultBackend
{imports}
from slotline import RedisStore, configure
from taskiq_ext import PoolLimitMiddleware

URL, AMQP, NAME = "{url}", "{amqp}", "{name}"
configure(heartbeat_lease=2.0)
broker = {make}.with_result_backend(RedisAsyncResultBackend(URL, result_ex_time=60, socket_timeout=None))
store = RedisStore(URL)
limits = PoolLimitMiddleware(store, pools={{"api": 2}})
broker.add_middlewares(SmartRetryMiddleware(default_retry_count=3, default_delay=0, use_jitter=False), limits)
history = redis.Redis.from_url(URL)


def note(kind, what, x):
    history.rpush("history", json.dumps([kind, what, x, os.getpid(), time.time()]))


@broker.task(pool="api")
async def limited(x: int, seconds: float = 0.01) -> int:
    note("limited", "in", x)
    await asyncio.sleep(seconds)
    note("limited", "out", x)
    return x


@broker.task(pool="api")
def limited_sync(x: int) -> int:
    note("limited", "in", x)
    time.sleep(0.01)
    note("limited", "out", x)
    return x


@broker.task
async def unlimited(x: int) -> int:
    note("unlimited", "in", x)
    return x


@broker.task(pool="one", pool_size=1)
async def gated(x: int) -> int:
    note("gated", "in", x)
    while not history.exists("go"):
        await asyncio.sleep(0.02)
    note("gated", "out", x)
    return x


@broker.task(pool="one", pool_size=1, retry_on_error=True)
async def flaky(x: int, context: Context = TaskiqDepends()) -> int:
    note("flaky", "in", int(context.message.labels.get("_retries", 0)))
    if int(context.message.labels.get("_retries", 0)) < 2:
        raise RuntimeError("not yet")
    return x


@broker.task(pool="one", pool_size=1)
async def requeued(x: int, context: Context = TaskiqDepends()) -> int:
    note("requeued", "in", x)
    if "X-Taskiq-requeue" not in context.message.labels:
        await context.requeue()
    return x
"""


@pytest.fixture
def make_app(app_module: Callable[[str], str], redis_url: str, request: pytest.FixtureRequest) -> Callable[[str], str]:
    def make(kind: str) -> str:
        amqp = name = ""
        if kind == "rabbitmq":
            amqp, name = request.getfixturevalue("amqp_url"), request.getfixturevalue("amqp_name")("work")
        return app_module(APP.format(url=redis_url, amqp=amqp, name=name, imports=IMPORTS[kind], make=MAKE[kind]))

    return make


@asynccontextmanager
async def started(app: str) -> AsyncIterator[Any]:
    module = importlib.import_module(app)
    await module.broker.startup()
    try:
        yield module
    finally:
        await module.broker.shutdown()
        await module.store.close()


async def results(sent: list[Any], timeout: float = 60) -> list[Any]:
    return [(await one.wait_result(check_interval=0.02, timeout=timeout)).return_value for one in sent]


def events(client: redis.Redis, kind: str) -> list[Any]:
    return [event for event in map(json.loads, client.lrange("history", 0, -1)) if event[0] == kind]


def most_at_once(client: redis.Redis, kind: str) -> int:
    running = most = 0
    for event in events(client, kind):
        running += 1 if event[1] == "in" else -1
        most = max(most, running)
    return most


async def info_of(module: Any, key: str) -> PoolInfo:
    return await Pool(key, 1, store=module.store).info()


async def parked(module: Any, key: str, count: int) -> None:
    async def there() -> bool:
        return (await info_of(module, key)).waiting == count

    await await_until(f"{count} messages are parked", there, timeout=30)


@pytest.mark.parametrize("kind", ["list", "stream", "rabbitmq"])
async def test_a_backlog_over_its_limit_delays_nobody_and_runs_once_each(
    kind: str,
    make_app: Callable[[str], str],
    taskiq_worker: Callable[..., TaskiqWorker],
    redis_client: redis.Redis,
) -> None:
    app = make_app(kind)
    taskiq_worker(f"{app}:broker", workers=2, args=("--max-async-tasks", "4"))
    async with started(app) as module:
        sent = [await (module.limited if x % 2 else module.limited_sync).kiq(x) for x in range(300)]
        free = [await module.unlimited.kiq(x) for x in range(20)]
        assert await results(free) == list(range(20))
        finished = sum(event[1] == "out" for event in events(redis_client, "limited"))
        assert finished < 200, "the unlimited tasks waited for the limited ones"
        assert await results(sent) == list(range(300))
        ran = sorted(event[2] for event in events(redis_client, "limited") if event[1] == "in")
        assert ran == list(range(300))
        assert most_at_once(redis_client, "limited") <= 2
        info = await info_of(module, "api")
        assert (info.used, info.waiting) == (0, 0)
