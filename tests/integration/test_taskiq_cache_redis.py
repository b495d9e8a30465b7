"""Cached results of tasks on Redis: what senders and workers get, with their types, their grace and their removal."""

from __future__ import annotations

import importlib
import json
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from typing import Any

import pytest
import redis

from taskiq_ext import invalidate
from tests.harness.waiting import await_until
from tests.harness.workers import TaskiqWorker

pytestmark = pytest.mark.leaves("keys", reason="the broker's own queue, and the history that the tasks write")

APP = """
import asyncio, json, os
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
import redis
from pydantic import BaseModel
from taskiq_redis import RedisAsyncResultBackend, RedisStreamBroker
from slotline.caches import RedisCacheAdapter
from taskiq_ext import CacheMiddleware

URL = "{url}"
broker = RedisStreamBroker(URL, queue_name="work", socket_timeout=None).with_result_backend(
    RedisAsyncResultBackend(URL, result_ex_time=60, socket_timeout=None)
)
cache = RedisCacheAdapter(URL, lock_timeout=5)
broker.add_middlewares(CacheMiddleware(cache, answer_senders={answer}))
history = redis.Redis.from_url(URL)


class Model(BaseModel):
    x: int
    when: datetime


@dataclass
class Record:
    name: str
    day: date


def note(what):
    history.rpush("history", json.dumps([what, os.getpid()]))


@broker.task(cache_ttl=60)
async def model(x: int) -> Model:
    note("model")
    return Model(x=x, when=datetime(2024, 1, 2, tzinfo=UTC))


@broker.task(cache_ttl=60)
def record(name: str) -> Record:
    note("record")
    return Record(name, date(2024, 1, 2))


@broker.task(cache_ttl=60)
async def values():
    note("values")
    return [None, True, 1, 1.5, "a", b"b", (1, 2), {{1, 2}}, {{1: "x"}}, date(2024, 1, 2), Decimal("1.10")]


@broker.task(cache_ttl=60, cache_errors=True)
async def broken(x: int) -> None:
    note("broken")
    raise ValueError("no luck", x)


@broker.task(cache_ttl=0.5, cache_grace=60)
async def aging() -> int:
    note("aging")
    runs = len(history.lrange("history", 0, -1))
    while runs == 2 and not history.exists("go"):
        await asyncio.sleep(0.02)
    return runs
"""


def runs(client: redis.Redis) -> list[str]:
    return [json.loads(line)[0] for line in client.lrange("history", 0, -1)]


async def results(sent: list[Any]) -> list[Any]:
    return [await one.wait_result(check_interval=0.02, timeout=60) for one in sent]


@pytest.fixture(params=[True, False], ids=["answered", "sent"])
async def app(request: pytest.FixtureRequest, app_module: Callable[[str], str], redis_url: str) -> AsyncIterator[Any]:
    module = importlib.import_module(app_module(APP.format(url=redis_url, answer=request.param)))
    await module.broker.startup()
    yield module
    await module.broker.shutdown()


@pytest.fixture
def worker(app: Any, taskiq_worker: Callable[..., TaskiqWorker]) -> TaskiqWorker:
    return taskiq_worker(f"{app.__name__}:broker")


@pytest.mark.usefixtures("worker")
async def test_a_hit_has_the_value_and_the_type_of_a_run(app: Any, redis_client: redis.Redis) -> None:
    # What the result backend makes of a value is its own affair: it must make the same of a run's and of a hit's.
    for task, args in ((app.model, (1,)), (app.record, ("a",)), (app.values, ())):
        (ran,) = await results([await task.kiq(*args)])
        (hit,) = await results([await task.kiq(*args)])
        assert ran.return_value == hit.return_value
        assert repr(ran.return_value) == repr(hit.return_value)
        assert (ran.labels.get("cache_hit"), hit.labels.get("cache_hit")) == (None, True)
    assert ran.return_value[0] is None
    assert runs(redis_client) == ["model", "record", "values"]


@pytest.mark.usefixtures("worker")
async def test_a_kept_error_is_the_functions_error(app: Any, redis_client: redis.Redis) -> None:
    for hit in (None, True):
        (result,) = await results([await app.broken.kiq(7)])
        assert isinstance(result.error, ValueError)
        assert result.error.args == ("no luck", 7)
        assert result.labels.get("cache_hit") is hit
    assert runs(redis_client) == ["broken"]


@pytest.mark.usefixtures("worker")
async def test_a_sender_removes_one_call(app: Any, redis_client: redis.Redis) -> None:
    for x in (1, 2):
        await results([await app.model.kiq(x)])
    assert await invalidate(app.model, "1") is True
    assert await invalidate(app.model, 1) is False
    for x in (1, 2):
        await results([await app.model.kiq(x)])
    assert len(runs(redis_client)) == 3


async def test_in_the_grace_one_worker_refreshes_and_nobody_waits_for_it(
    app: Any, taskiq_worker: Callable[..., TaskiqWorker], redis_client: redis.Redis
) -> None:
    taskiq_worker(f"{app.__name__}:broker", workers=2)
    assert (await results([await app.aging.kiq()]))[0].return_value == 1
    await await_until("the value is stale", lambda: not _fresh(app), timeout=20)
    sent = [await app.aging.kiq() for _ in range(10)]
    await await_until("one message refreshes", lambda: len(runs(redis_client)) == 2)

    async def served() -> int:
        return sum([await one.is_ready() for one in sent]) == len(sent) - 1

    await await_until("all others have the old value", served)
    redis_client.set("go", 1, ex=60)
    assert sorted(result.return_value for result in await results(sent)) == [1] * 9 + [2]
    assert len(runs(redis_client)) == 2


def _fresh(app: Any) -> bool:
    return app.cache.sync.lookup(app.cache.sync.stored_keys()[0]) is not None


@pytest.mark.parametrize("app", [True], indirect=True, ids=["answered"])
async def test_a_sender_is_answered_while_no_worker_runs(app: Any, taskiq_worker: Callable[..., TaskiqWorker]) -> None:
    worker = taskiq_worker(f"{app.__name__}:broker")
    await results([await app.model.kiq(1)])
    worker.terminate()
    (result,) = await results([await app.model.kiq(x="1")])
    assert result.return_value == app.Model(x=1, when=datetime(2024, 1, 2, tzinfo=UTC))
    assert result.labels["cache_hit"] is True
