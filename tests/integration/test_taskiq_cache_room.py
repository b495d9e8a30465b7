"""Messages that want a value which is being made wait in the room, in real ``taskiq worker`` processes."""

from __future__ import annotations

import asyncio
import importlib
import json
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import redis

from tests.harness.proxy import TcpProxy
from tests.harness.waiting import await_until
from tests.harness.workers import TaskiqWorker

pytestmark = [
    pytest.mark.leaves("keys", reason="the broker's own queue, and the history that the tasks write"),
    pytest.mark.needs("taskiq-redis>=1.1", reason="older stream brokers cannot be told when a message comes again"),
]

LEASE = 2.0
APP = """
import asyncio, json, os, time
import redis
from taskiq_redis import ListQueueBroker, RedisAsyncResultBackend, RedisStreamBroker
from slotline import RedisStore, configure
from slotline.caches import RedisCacheAdapter
from taskiq_ext import CacheMiddleware, PoolLimitMiddleware

URL, STORE = "{url}", "{store}"
configure(heartbeat_lease={lease})
if "{broker}" == "list":
    broker = ListQueueBroker(URL, queue_name="work", socket_timeout=None)
else:
    broker = RedisStreamBroker(
        URL, queue_name="work", socket_timeout=None, xread_block=200, idle_timeout=6000, unacknowledged_lock_timeout=2
    )
broker = broker.with_result_backend(RedisAsyncResultBackend(URL, result_ex_time=60, socket_timeout=None))
cache = RedisCacheAdapter(STORE, lock_timeout={lease})
limits = PoolLimitMiddleware(RedisStore(STORE))
broker.add_middlewares(CacheMiddleware(cache), limits)
history = redis.Redis.from_url(URL)


def note(what):
    history.rpush("history", json.dumps([what, os.getpid(), time.time()]))


async def until_told():
    while not history.exists("go"):
        await asyncio.sleep(0.02)


@broker.task(cache_ttl=60)
async def price(item: int) -> str:
    note("price")
    await until_told()
    return f"made by {{os.getpid()}}"


@broker.task(cache_ttl=60)
async def broken(item: int) -> str:
    note("broken")
    await until_told()
    raise ValueError("no luck", item)


@broker.task(cache_ttl=60, pool="one", pool_size=1)
async def limited(item: int) -> int:
    note(f"limited {{item}}")
    await until_told()
    return item


@broker.task
async def free() -> int:
    return 1
"""


both_brokers = pytest.mark.parametrize("broker_kind", ["stream", "list"])


@pytest.fixture
def broker_kind() -> str:
    """The kind of broker, for tests that say nothing else."""
    return "stream"


@pytest.fixture
async def app(app_module: Callable[[str], str], redis_proxy: TcpProxy, broker_kind: str) -> AsyncIterator[Any]:
    """An application that reaches its cache and its room through the proxy, and nothing else."""
    host, port = redis_proxy.target
    source = APP.format(url=f"redis://{host}:{port}/0", store=redis_proxy.redis_url, lease=LEASE, broker=broker_kind)
    module = importlib.import_module(app_module(source))
    await module.broker.startup()
    yield module
    redis_proxy.resume()
    await module.broker.shutdown()
    await module.limits.store.close()


@pytest.fixture
def workers(app: Any, taskiq_worker: Callable[..., TaskiqWorker]) -> list[TaskiqWorker]:
    return [taskiq_worker(f"{app.__name__}:broker", args=("--max-async-tasks", "3")) for _ in range(2)]


async def results(sent: list[Any], timeout: float = 60) -> list[Any]:
    return [await one.wait_result(check_interval=0.02, timeout=timeout) for one in sent]


async def ready(sent: list[Any], count: int) -> bool:
    return sum([await one.is_ready() for one in sent]) == count


def runs(client: redis.Redis) -> list[Any]:
    return [json.loads(line) for line in client.lrange("history", 0, -1)]


def parked(client: redis.Redis) -> int:
    return sum(client.zcard(line) for line in client.scan_iter("slotline:{pool:*}:line"))


def of_lines(client: redis.Redis) -> list[bytes]:
    # Marks of what was parked just now stay a minute longer.
    return [key for key in client.scan_iter("slotline:{pool:cache-line:*") if not key.endswith(b":claims")]


async def all_wait(client: redis.Redis, count: int) -> None:
    await await_until("one runs", lambda: runs(client), timeout=30)
    await await_until(f"{count} wait in the room", lambda: parked(client) == count, timeout=30)


@both_brokers
@pytest.mark.usefixtures("workers")
async def test_two_hundred_calls_run_once_and_those_that_wait_hold_no_worker(
    app: Any, redis_client: redis.Redis
) -> None:
    sent = [await app.price.kiq(7) for _ in range(200)]
    await all_wait(redis_client, 199)
    # The workers have three places each, and nobody who waits is in one of them.
    assert (await results([await app.free.kiq() for _ in range(10)], 10))[-1].return_value == 1
    redis_client.set("go", 1, ex=60)
    told = time.monotonic()
    found = await results(sent)
    assert time.monotonic() - told < 15
    assert len({result.return_value for result in found}) == len(runs(redis_client)) == 1
    assert sum(bool(result.labels.get("cache_hit")) for result in found) == 199
    await await_until("nothing is left of the line", lambda: not of_lines(redis_client))


@both_brokers
async def test_when_the_worker_is_killed_another_runs_once_more_and_everyone_is_served(
    app: Any, workers: list[TaskiqWorker], redis_client: redis.Redis, broker_kind: str
) -> None:
    sent = [await app.price.kiq(7) for _ in range(200)]
    await all_wait(redis_client, 199)
    (_, pid, _) = runs(redis_client)[0]
    next(worker for worker in workers if pid in worker.children()).kill_all()
    await await_until("another worker runs it", lambda: len(runs(redis_client)) == 2, timeout=40)
    redis_client.set("go", 1, ex=60)
    if broker_kind == "stream":
        # It looks for what a dead worker has left, and has idled since, only after it has got something new.
        async def served() -> bool:
            await app.free.kiq()
            return await ready(sent, 200)

        await await_until("the dead worker's message is served", served, timeout=60, interval=0.5)
    else:
        # What a worker has taken from a list dies with it: the message that it ran, since all others are parked.
        await await_until("all others are served", lambda: ready(sent, 199), timeout=60)
        sent = [one for one in sent if await one.is_ready()]
    found = await results(sent)
    assert len(runs(redis_client)) == 2
    assert {result.return_value for result in found} == {f"made by {runs(redis_client)[1][1]}"}


@both_brokers
@pytest.mark.usefixtures("workers")
async def test_an_outage_while_messages_stand_in_line_loses_none_of_them(
    app: Any, redis_client: redis.Redis, redis_proxy: TcpProxy
) -> None:
    sent = [await app.price.kiq(7) for _ in range(40)]
    await all_wait(redis_client, 39)
    redis_proxy.refuse()
    await asyncio.sleep(2 * LEASE)  # the fault is time itself: the line's slot and the claim end
    redis_client.set("go", 1, ex=60)
    redis_proxy.resume()
    found = await results(sent)
    assert {result.return_value for result in found} <= {f"made by {pid}" for _, pid, _ in runs(redis_client)}
    assert len(runs(redis_client)) <= 2
    await await_until("nothing is left of the line", lambda: not of_lines(redis_client))


@pytest.mark.usefixtures("workers")
async def test_when_the_run_fails_everyone_who_waits_gets_its_error_and_the_next_call_runs(
    app: Any, redis_client: redis.Redis
) -> None:
    sent = [await app.broken.kiq(7) for _ in range(20)]
    await all_wait(redis_client, 19)
    redis_client.set("go", 1, ex=60)
    for result in await results(sent):
        assert isinstance(result.error, ValueError)
        assert result.error.args == ("no luck", 7)
    assert len(runs(redis_client)) == 1
    await results([await app.broken.kiq(7)])
    assert len(runs(redis_client)) == 2
    await await_until("nothing is left of the line", lambda: not of_lines(redis_client))


@pytest.mark.usefixtures("workers")
async def test_a_task_with_a_limit_keeps_to_both(app: Any, redis_client: redis.Redis) -> None:
    sent = [await app.limited.kiq(item % 3) for item in range(60)]
    await all_wait(redis_client, 59)
    redis_client.set("go", 1, ex=60)
    assert [result.return_value for result in await results(sent)] == [item % 3 for item in range(60)]
    assert sorted(what for what, _, _ in runs(redis_client)) == ["limited 0", "limited 1", "limited 2"]
    await await_until("nothing is left of the lines", lambda: not of_lines(redis_client))
