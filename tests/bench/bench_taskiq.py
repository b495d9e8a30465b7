"""Taskiq: what the middlewares cost a task that does not use them, and what they cost one that does."""

from __future__ import annotations

import asyncio
import importlib
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import redis.asyncio
from taskiq import InMemoryBroker, TaskiqMessage, TaskiqMiddleware, TaskiqResult

from slotline.caches import RedisCacheAdapter
from slotline.stores import MemoryStore
from taskiq_ext import CacheMiddleware, ExecutorMiddleware, PoolLimitMiddleware
from tests.harness import guardian
from tests.harness.redis_server import RedisServer
from tests.harness.workers import TaskiqWorker

BATCH = 400
ROUNDS = 40


WITH_A_WORKER = """
from taskiq_redis import ListQueueBroker, RedisAsyncResultBackend
from slotline.caches import RedisCacheAdapter
from taskiq_ext import CacheMiddleware


def broker_of(queue, *middlewares):
    backend = RedisAsyncResultBackend(URL, result_ex_time=600, socket_timeout=None)
    broker = ListQueueBroker(URL, queue_name=queue, socket_timeout=None).with_result_backend(backend)
    broker.add_middlewares(*middlewares)
    return broker


alone = broker_of("alone")
ours = broker_of("ours", CacheMiddleware(RedisCacheAdapter(URL)))
unanswered = broker_of("ours", CacheMiddleware(RedisCacheAdapter(URL), answer_senders=False))


async def work(x: int) -> int:
    return x


plain = alone.register_task(work, "plain")
cached = ours.register_task(work, "cached", cache_ttl=600)
cached_in_worker = unanswered.register_task(work, "cached", cache_ttl=600)
"""


class CountingStore(MemoryStore):
    """Counts what it is asked."""

    asked = 0

    async def execute(self, command: Any) -> Any:
        self.asked += 1
        return await super().execute(command)


class Empty(TaskiqMiddleware):
    """The same hooks, doing nothing: what Taskiq itself takes for a middleware."""

    def pre_send(self, message: TaskiqMessage) -> TaskiqMessage:
        return message

    def pre_execute(self, message: TaskiqMessage) -> TaskiqMessage:
        return message

    def post_execute(self, message: TaskiqMessage, result: TaskiqResult[Any]) -> None:
        return None


def broker_with(*middlewares: TaskiqMiddleware) -> tuple[InMemoryBroker, Any]:
    broker = InMemoryBroker(await_inplace=True, max_stored_results=10)
    broker.add_middlewares(*middlewares)

    @broker.task
    async def work(x: int) -> int:
        return x

    return broker, work


async def batch(send: Callable[[], Awaitable[Any]], count: int = BATCH) -> float:
    """Return the seconds of one sent, run and stored task."""
    started = time.perf_counter()
    for _ in range(count):
        await send()
    return (time.perf_counter() - started) / count


async def side_by_side(
    senders: dict[str, Callable[[], Awaitable[Any]]], rounds: int = ROUNDS, count: int = BATCH
) -> dict[str, float]:
    """Return the median seconds of each, measured in turns so that the machine's moods hit all alike."""
    taken: dict[str, list[float]] = {name: [] for name in senders}
    for at in range(rounds):
        for name, send in senders.items():
            seconds = await batch(send, count)
            if at:  # the first round warms up
                taken[name].append(seconds)
    return {name: statistics.median(values) for name, values in taken.items()}


async def unlabelled() -> None:
    store = CountingStore()
    brokers = {
        "without middlewares": broker_with(),
        "an empty middleware": broker_with(Empty()),
        "CacheMiddleware": broker_with(CacheMiddleware()),
        "PoolLimitMiddleware": broker_with(PoolLimitMiddleware(store)),
        "ExecutorMiddleware": broker_with(ExecutorMiddleware({"io": {"max_pools": 1}})),
        "all three": broker_with(
            CacheMiddleware(), PoolLimitMiddleware(store), ExecutorMiddleware({"io": {"max_pools": 1}})
        ),
    }
    seconds = await side_by_side({name: (lambda work=work: work.kiq(1)) for name, (_, work) in brokers.items()})
    base = seconds["without middlewares"]
    print("an unlabelled task, sent, run and stored in one process (aim: 3 us more for each middleware)")
    for name, taken in seconds.items():
        print(f"  {name:<32}{taken * 1e6:>8.1f} us {(taken - base) * 1e6:>+8.1f} us")
    print(f"  commands that the store was asked: {store.asked}")
    for broker, _ in brokers.values():
        await broker.shutdown()


async def labelled() -> None:
    broker = InMemoryBroker(await_inplace=True, max_stored_results=10)
    broker.add_middlewares(CacheMiddleware(), PoolLimitMiddleware(MemoryStore()))

    @broker.task
    async def plain(x: int) -> int:
        return x

    @broker.task(pool="bench", pool_size=10)
    async def limited(x: int) -> int:
        return x

    @broker.task(cache_ttl=3600)
    async def cached(x: int) -> int:
        return x

    seconds = await side_by_side(
        {
            "no labels": lambda: plain.kiq(1),
            "pool, a slot in memory": lambda: limited.kiq(1),
            "cache_ttl, a hit in memory": lambda: cached.kiq(1),
        },
        rounds=15,
    )
    base = seconds["no labels"]
    print("a labelled no-op beside an unlabelled one, both middlewares present")
    for name, taken in seconds.items():
        print(f"  {name:<32}{taken * 1e6:>8.1f} us {taken / base:>8.2f} x")
    await broker.shutdown()


async def hits_on_redis(server: RedisServer) -> None:
    client = redis.asyncio.Redis.from_url(server.url)

    async def raw() -> None:
        await client.get("raw")

    brokers = []
    for answers in (True, False):
        broker = InMemoryBroker(await_inplace=True, max_stored_results=10)
        broker.add_middlewares(CacheMiddleware(RedisCacheAdapter(server.url), answer_senders=answers))
        brokers.append(broker)

    def task_of(broker: InMemoryBroker) -> Any:
        @broker.task(cache_ttl=3600)
        async def cached(x: int) -> int:
            return x

        return cached

    async def noop(x: int) -> int:
        return x

    answered, sent = (task_of(broker) for broker in brokers)
    plain = brokers[0].register_task(noop)
    await client.set("raw", "1", ex=3600)
    await answered.kiq(1)
    seconds = await side_by_side(
        {
            "a raw GET": raw,
            "no labels": lambda: plain.kiq(1),
            "a hit for the sender": lambda: answered.kiq(1),
            "a hit for the worker": lambda: sent.kiq(1),
        },
        rounds=8,
    )
    limit = seconds["a raw GET"]
    print("a cached no-op on Redis; the broker is in memory, so only the cache travels")
    for name, taken in seconds.items():
        print(f"  {name:<32}{taken * 1e6:>8.1f} us {taken / limit:>8.2f} x a raw GET {1 / taken:>10,.0f} /s")
    for broker in brokers:
        await broker.shutdown()
    await client.aclose()


async def with_a_worker(url: str) -> None:
    with tempfile.TemporaryDirectory() as place:
        (Path(place) / "bench_app.py").write_text(f"URL = {url!r}\n{WITH_A_WORKER}")
        sys.path.insert(0, place)
        app = importlib.import_module("bench_app")
        for broker in (app.alone, app.ours, app.unanswered):
            await broker.startup()

        def fetched(task: Any) -> Callable[[], Awaitable[Any]]:
            async def send() -> None:
                await (await task.kiq(1)).wait_result(check_interval=0.001, timeout=60)

            async def together() -> None:
                await asyncio.gather(*(send() for _ in range(20)))

            return together

        with TaskiqWorker("bench_app:alone", Path(place)), TaskiqWorker("bench_app:ours", Path(place)):
            seconds = await side_by_side(
                {
                    "Taskiq alone": fetched(app.plain),
                    "cached, a hit in the worker": fetched(app.cached_in_worker),
                    "cached, a hit on the sending side": fetched(app.cached),
                },
                rounds=6,
                count=20,
            )
        print("no-op tasks sent, run by a worker and fetched, 20 at a time; a list broker and results in Redis")
        for name, taken in seconds.items():
            print(f"  {name:<36}{20 / taken:>8,.0f} /s   x {seconds['Taskiq alone'] / taken:.2f}")
        for broker in (app.alone, app.ours, app.unanswered):
            await broker.shutdown()
        sys.path.remove(place)


def main() -> None:
    asyncio.run(unlabelled())
    asyncio.run(labelled())
    with RedisServer() as server:
        asyncio.run(hits_on_redis(server))
        asyncio.run(with_a_worker(server.url))
    guardian.close()


if __name__ == "__main__":
    main()
