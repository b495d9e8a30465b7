"""An application with limits on real brokers, and what its history says."""

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

LEASE = 2.0

MAKE = {
    "list": 'ListQueueBroker(URL, queue_name="work", socket_timeout=None)',
    "stream": 'RedisStreamBroker(URL, queue_name="work", socket_timeout=None, xread_block=200)',
    # What a dead worker has not acknowledged comes again soon.
    "impatient stream": """DyingBroker(
    URL, queue_name="work", socket_timeout=None, xread_block=200, idle_timeout=1500, unacknowledged_lock_timeout=2
)""",
    "rabbitmq": "AioPikaBroker(AMQP, **OPTIONS)",
}
IMPORTS = {
    "list": "from taskiq_redis import ListQueueBroker",
    "stream": "from taskiq_redis import RedisStreamBroker",
    "impatient stream": "from taskiq_redis import RedisStreamBroker",
    "rabbitmq": """
import taskiq_aio_pika as pika
from taskiq_aio_pika import AioPikaBroker
""",
}

APP = """
import asyncio, json, os, signal, time
import redis
from taskiq import Context, SmartRetryMiddleware, TaskiqDepends, TaskiqMiddleware
from taskiq_redis import RedisAsyncResultBackend
{imports}
from slotline import RedisStore, configure
from taskiq_ext import PoolLimitMiddleware

URL, AMQP, NAME = "{url}", "{amqp}", "{name}"
configure(heartbeat_lease={lease})
if "{kind}" == "rabbitmq":
    if hasattr(pika, "Queue"):
        OPTIONS = {{
            "exchange": pika.Exchange(name=NAME),
            "task_queues": [pika.Queue(name=NAME)],
            "dead_letter_queue": pika.Queue(name=NAME + ".dead_letter"),
        }}
    else:
        OPTIONS = {{"exchange_name": NAME, "queue_name": NAME}}
history = redis.Redis.from_url(URL)


def die_if_told_to(when):
    if history.delete("die " + when):
        os.kill(os.getpid(), signal.SIGKILL)


if "{kind}" == "impatient stream":
    class DyingBroker(RedisStreamBroker):
        def _ack_generator(self, id, queue_name):
            acknowledge = super()._ack_generator(id, queue_name)

            async def ack():
                die_if_told_to("before the broker has its acknowledgement")
                await acknowledge()

            return ack


class Dying(TaskiqMiddleware):
    def post_save(self, message, result):
        die_if_told_to("after the run of " + message.task_id)


broker = {make}.with_result_backend(RedisAsyncResultBackend(URL, result_ex_time=60, socket_timeout=None))
store = RedisStore("{store}")
limits = PoolLimitMiddleware(store, pools={{"api": 2}})
broker.add_middlewares(SmartRetryMiddleware(default_retry_count=3, default_delay=0, use_jitter=False), limits, Dying())


def note(kind, what, x):
    history.rpush("history", json.dumps([kind, what, x, os.getpid(), time.time()]))


@broker.task(pool="api")
async def limited(x: int, seconds: float = 0.01) -> int:
    note("limited", "in", x)
    await asyncio.sleep(seconds)
    note("limited", "out", x)
    return x


@broker.task
async def nudge() -> None:
    pass  # the stream broker looks for the messages of dead workers only after it has got a new one


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


def write_app(kind: str, app_module: Callable[[str], str], request: pytest.FixtureRequest, store_url: str = "") -> str:
    """Write the application for one kind of broker and return its module's name."""
    url, amqp, name = request.getfixturevalue("redis_url"), "", ""
    if kind == "rabbitmq":
        amqp, name = request.getfixturevalue("amqp_url"), request.getfixturevalue("amqp_name")("work")
    made = {"url": url, "store": store_url or url, "amqp": amqp, "name": name, "lease": LEASE}
    return app_module(APP.format(kind=kind, imports=IMPORTS[kind], make=MAKE[kind], **made))


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


def most_at_once(client: redis.Redis, kind: str, killed: dict[int, float] | None = None) -> int:
    """Return how many runs there were at once; those of a killed process end with it."""
    seen = events(client, kind)
    for pid, at in (killed or {}).items():
        mine = [event for event in seen if event[3] == pid]
        left = len([event for event in mine if event[1] == "in"]) - len([event for event in mine if event[1] == "out"])
        seen += [[kind, "out", None, pid, at]] * left
    running = most = 0
    for event in sorted(seen, key=lambda event: (event[4], event[1] == "in")):
        running += 1 if event[1] == "in" else -1
        most = max(most, running)
    return most


async def info_of(module: Any, key: str) -> PoolInfo:
    return await Pool(key, 1, store=module.store).info()


async def parked(module: Any, key: str, count: int) -> None:
    async def there() -> bool:
        return (await info_of(module, key)).waiting == count

    await await_until(f"{count} messages are parked", there, timeout=30)
