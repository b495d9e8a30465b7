"""One application on every broker of the matrix, each with its own retries, and what its history says."""

from __future__ import annotations

import importlib
import json
import sys
import uuid
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import redis
from packaging.version import Version

from slotline import Pool
from tests.harness.redis_server import RedisServer
from tests.harness.waiting import await_until
from tests.harness.workers import TaskiqScheduler, TaskiqWorker, Worker

SOURCE = """
import asyncio, json, os, time
from contextlib import contextmanager
from types import SimpleNamespace
import redis
from taskiq import Context, InMemoryBroker, SimpleRetryMiddleware, SmartRetryMiddleware, TaskiqDepends, TaskiqScheduler
from taskiq import ScheduledTask, ScheduleSource, ZeroMQBroker, async_shared_broker
from taskiq.schedule_sources import LabelScheduleSource
from taskiq_redis import ListQueueBroker, PubSubBroker, RedisStreamBroker
from taskiq_redis import RedisAsyncResultBackend
import taskiq_aio_pika as pika
from slotline import RedisStore, configure
from slotline.caches import RedisCacheAdapter
from taskiq_ext import CacheMiddleware, PoolLimitMiddleware

configure(heartbeat_lease=3.0)
history, store = redis.Redis.from_url(URL), RedisStore(URL)


class Schedules(ScheduleSource):
    # Older ListRedisScheduleSources lose what is due at the end of a minute; the other one is deprecated.

    async def add_schedule(self, schedule):
        history.hset("taskiq-schedules", schedule.schedule_id, schedule.model_dump_json())

    async def get_schedules(self):
        return [ScheduledTask.model_validate_json(text) for text in history.hvals("taskiq-schedules")]

    async def post_send(self, task):
        history.hdel("taskiq-schedules", task.schedule_id)


schedules = Schedules()
brokers = {
    "list": ListQueueBroker(URL, queue_name="taskiq-list", socket_timeout=None),
    "stream": RedisStreamBroker(URL, queue_name="taskiq-stream", socket_timeout=None, xread_block=200),
    "pubsub": PubSubBroker(URL, queue_name="taskiq-pubsub", socket_timeout=None),
    "zeromq": ZeroMQBroker(ZMQ, ZMQ),
    "memory": InMemoryBroker(),
}
if AMQP and hasattr(pika, "Queue"):
    exchange, queues = pika.Exchange(name=NAME), [pika.Queue(name=NAME)]
    others = {f"{purpose}_queue": pika.Queue(name=f"{NAME}.{purpose}") for purpose in ("delay", "dead_letter")}
    brokers["rabbitmq"] = pika.AioPikaBroker(AMQP, exchange=exchange, task_queues=queues, **others)
elif AMQP:
    brokers["rabbitmq"] = pika.AioPikaBroker(AMQP, exchange_name=NAME, queue_name=NAME)
RETRIES = {
    "memory": SmartRetryMiddleware(default_delay=0),
    "list": SimpleRetryMiddleware(),
    "stream": SmartRetryMiddleware(default_delay=0.1, schedule_source=schedules),
    "rabbitmq": SmartRetryMiddleware(default_delay=0.2),
}


def note(key, what, x):
    history.rpush(f"history:{key}", json.dumps([what, x, os.getpid()]))
    history.expire(f"history:{key}", 600)


@contextmanager
def running(key, x):
    note(key, "in", x)
    try:
        yield
    finally:
        note(key, "out", x)


@async_shared_broker.task("shared", pool="one:{key}", pool_size=1)
async def shared(key: str, x: int) -> int:
    with running(key, x):
        return x


def crunching(key: str, x: int) -> int:  # a process pool finds it by its name
    with running(key, x):
        time.sleep(0.01)
        return x


def tasks_of(kind, broker):
    one = {"pool": "one:{key}", "pool_size": 1}

    @broker.task(f"{kind}.gated", **one)
    async def gated(key: str, x: int) -> int:
        with running(key, x):
            while not history.exists(f"go:{key}"):
                await asyncio.sleep(0.02)
            return x

    @broker.task(f"{kind}.flaky", retry_on_error=True, max_retries=4, **one)
    async def flaky(key: str, x: int, context: Context = TaskiqDepends()) -> int:
        retries = int(context.message.labels.get("_retries", 0))
        with running(key, [x, retries]):
            if retries < 2:
                raise RuntimeError("not yet")
            return x

    @broker.task(f"{kind}.requeued", **one)
    async def requeued(key: str, x: int, context: Context = TaskiqDepends()) -> int:
        with running(key, x):
            if "X-Taskiq-requeue" not in context.message.labels:
                await context.requeue()
            return x

    crunch = broker.register_task(crunching, task_name=f"{kind}.crunch", **one)

    @broker.task(f"{kind}.price", cache_ttl=60, retry_on_error=True)
    async def price(key: str) -> int:
        with running(key, "price"):
            while not history.exists(f"go:{key}"):
                await asyncio.sleep(0.02)
            if history.incr(f"tries:{key}") == 1:
                raise RuntimeError("not yet")
            return os.getpid()

    @broker.task(f"{kind}.limited_price", cache_ttl=60, **one)
    async def limited_price(key: str) -> int:
        with running(key, "limited price"):
            return os.getpid()

    @broker.task(f"{kind}.common", pool="common:{key}", pool_size=2)
    async def common(key: str, x: int) -> int:
        with running(key, x):
            await asyncio.sleep(0.01)
            return x

    @broker.task(f"{kind}.relay")
    async def relay(key: str, to: str, x: int) -> str:
        return (await tasks[to].common.kiq(key, x)).task_id

    return SimpleNamespace(**{name: task for name, task in locals().items() if hasattr(task, "kiq")})


tasks = {}
for kind, broker in brokers.items():
    broker.with_result_backend(RedisAsyncResultBackend(URL, result_ex_time=60, socket_timeout=None))
    broker.add_middlewares(CacheMiddleware(RedisCacheAdapter(store=store, lock_timeout=5)), PoolLimitMiddleware(store))
    if kind in RETRIES:
        broker.add_middlewares(RETRIES[kind])
    tasks[kind] = tasks_of(kind, broker)
    globals()[f"{kind}_broker"] = broker  # as a worker's command line names it


@brokers["stream"].task("tick", pool="tick", pool_size=1, schedule=[{"interval": 1, "args": [1]}])
async def tick(x: int) -> int:
    with running("tick", x):
        return x


@brokers["stream"].task("quote", cache_ttl=60)
async def quote(key: str) -> int:
    with running(key, "quote"):
        return os.getpid()


scheduler = TaskiqScheduler(brokers["stream"], [LabelScheduleSource(brokers["stream"]), schedules])
"""

# Older process pools run no plain function: they try to pickle its context.
POOLS_WORK = Version(version("taskiq")) >= Version("0.13")
ARGUMENTS: dict[str, Sequence[str]] = {
    "list": ("--ack-type", "when_received", *(("--use-process-pool",) if POOLS_WORK else ())),
    "stream": ("--ack-type", "when_executed", "--max-async-tasks", "4"),
    "rabbitmq": ("--ack-type", "when_saved", "--max-async-tasks", "2"),
    "pubsub": (),
    "zeromq": (),
}
BROADCASTS = ("pubsub", "zeromq")


class Matrix:
    """The application's module, its workers, one for each kind of broker, and its scheduler.

    Args:
        directory: Where the module and the logs go.
        server: Its Redis.
        amqp: The URL of a RabbitMQ, or "".
        name: What its queue there is called.
        zmq: The address for ZeroMQ.
    """

    def __init__(self, directory: Path, server: RedisServer, *, amqp: str, name: str, zmq: str) -> None:
        self.directory, self.history = directory, server.client()
        self.name = f"app_{uuid.uuid4().hex[:10]}"
        self.running: dict[str, Worker] = {}
        header = f"URL, AMQP, NAME, ZMQ = {(server.url, amqp, name, zmq)!r}\n"
        (directory / f"{self.name}.py").write_text(header + SOURCE)

    def run(self, kind: str) -> None:
        """Start what serves one kind of broker; ``"scheduler"``: what sends messages at their times."""
        if kind in self.running:
            return
        worker: Worker
        if kind == "scheduler":
            worker = TaskiqScheduler(f"{self.name}:scheduler", self.directory)
        else:
            each = 2 if kind in BROADCASTS else 1
            app = f"{self.name}:{kind}_broker"
            worker = TaskiqWorker(app, self.directory, workers=each, args=ARGUMENTS[kind])
        self.running[kind] = worker
        worker.start()

    def load(self) -> Any:
        """Import the module anew: its clients belong to the event loop of one test."""
        sys.path.insert(0, str(self.directory))
        try:
            sys.modules.pop(self.name, None)
            importlib.invalidate_caches()
            return importlib.import_module(self.name)
        finally:
            sys.path.remove(str(self.directory))

    def close(self) -> None:
        """End everything."""
        for worker in self.running.values():
            worker.close()
        self.history.close()
        sys.modules.pop(self.name, None)


class Trial:
    """One test's part of the application's history.

    Args:
        module: The application.
        history: A client of its Redis.
        key: What tells this test's runs and pools from others.
    """

    def __init__(self, module: Any, history: redis.Redis, key: str) -> None:
        self.module, self.history, self.key = module, history, key

    def go(self) -> None:
        """Let gated tasks end."""
        self.history.set(f"go:{self.key}", 1, ex=600)

    def events(self) -> list[Any]:
        """Return what has happened, ``[what, x, pid]``, in its order."""
        return [json.loads(line) for line in self.history.lrange(f"history:{self.key}", 0, -1)]

    def began(self) -> list[Any]:
        """Return the ``x`` of each run."""
        return [x for what, x, _ in self.events() if what == "in"]

    def peak(self) -> int:
        """Return how many ran at once at the most."""
        running = peak = 0
        for what, _, _ in self.events():
            running += 1 if what == "in" else -1
            peak = max(peak, running)
        return peak

    async def runs(self, count: int = 1) -> None:
        """Wait until so many runs have begun."""
        await await_until(f"{count} run(s) have begun", lambda: len(self.began()) >= count, timeout=30)

    async def parked(self, pool: str, count: int) -> None:
        """Wait until so many messages, or callers, wait for a pool."""

        async def there() -> bool:
            return (await Pool(pool, 1, store=self.module.store).info()).waiting == count

        await await_until(f"{count} wait for {pool}", there, timeout=30)

    def in_room(self, pool: str) -> int:
        """Return how many messages the room has for a pool, parked or running."""
        return sum(field.startswith(b"m:") for field in self.history.hkeys(f"slotline:{{pool:{pool}}}:state"))

    async def over(self, pool: str) -> None:
        """Wait until nobody holds or waits for a pool, and nothing of it is left in the room."""

        async def empty() -> bool:
            info = await Pool(pool, 1, store=self.module.store).info()
            return (info.used, info.waiting, self.in_room(pool)) == (0, 0, 0)

        await await_until(f"{pool} and its room are empty", empty, timeout=30)


async def values(sent: Sequence[Any]) -> list[Any]:
    """Return the results of what was sent."""
    return [(await one.wait_result(check_interval=0.02, timeout=60)).return_value for one in sent]
