"""Cached results of tasks, in one process."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Annotated, Any

import pytest
from pydantic import BaseModel
from taskiq import Context, InMemoryBroker, SimpleRetryMiddleware, TaskiqDepends, TaskiqResult
from taskiq.exceptions import NoResultError

from slotline.caches import BaseCacheAdapter, InMemoryCacheAdapter
from slotline.errors import InvalidOptionError
from taskiq_ext import CacheMiddleware
from tests.harness.waiting import await_until


class PlainCache(BaseCacheAdapter):
    """A cache as a user may write one: a dict behind a lock, and nothing but the interface."""

    def __init__(self) -> None:
        self.entries: dict[str, Any] = {}
        self.lock = asyncio.Lock()
        self.hits = self.misses = 0

    async def get_or_create(self, key: str, creator: Callable[[], Any], ttl_seconds: float | None = 3600) -> Any:
        async with self.lock:
            if key in self.entries:
                self.hits += 1
            else:
                self.misses += 1
                self.entries[key] = await creator()
            return self.entries[key]

    async def get(self, key: str) -> Any | None:
        return self.entries.get(key)

    async def set(self, key: str, value: Any, ttl_seconds: float | None = 3600) -> None:
        self.entries[key] = value

    async def invalidate(self, key: str) -> bool:
        return self.entries.pop(key, None) is not None

    async def clear(self) -> None:
        self.entries.clear()

    def get_stats(self) -> dict[str, Any]:
        return {
            "hits": self.hits,
            "misses": self.misses,
            "hit_rate": 0.0,
            "size": len(self.entries),
            "keys": [*self.entries],
        }


@pytest.fixture(params=[InMemoryCacheAdapter, PlainCache])
def cache(request: pytest.FixtureRequest) -> BaseCacheAdapter:
    made: BaseCacheAdapter = request.param()
    return made


@pytest.fixture
async def broker(cache: BaseCacheAdapter) -> AsyncIterator[InMemoryBroker]:
    broker = InMemoryBroker().with_middlewares(CacheMiddleware(cache, answer_senders=False))
    yield broker
    await broker.shutdown()


async def result_of(sent: Any) -> TaskiqResult[Any]:
    return await sent.wait_result(check_interval=0.01, timeout=30)


async def test_a_hit_returns_the_value_without_a_run_and_says_so(
    broker: InMemoryBroker, cache: BaseCacheAdapter
) -> None:
    ran = []

    @broker.task(cache_ttl=60)
    async def double(x: int) -> int:
        ran.append(x)
        return 2 * x

    first, second = await result_of(await double.kiq(2)), await result_of(await double.kiq(2))
    assert (first.return_value, first.labels.get("cache_hit")) == (4, None)
    assert (second.return_value, second.labels.get("cache_hit")) == (4, True)
    assert (await result_of(await double.kiq(3))).return_value == 6
    assert ran == [2, 3]
    assert cache.get_stats()["hits"] >= 1
    assert cache.get_stats()["misses"] == 2


async def test_a_plain_function_is_cached_and_runs_in_the_receivers_thread(broker: InMemoryBroker) -> None:
    threads = []

    @broker.task(cache=True)
    def double(x: int) -> int:
        threads.append(threading.current_thread())
        return 2 * x

    assert [(await result_of(await double.kiq(2))).return_value for _ in range(3)] == [4, 4, 4]
    assert len(threads) == 1
    assert threads[0] is not threading.main_thread()


async def test_a_task_that_does_not_ask_for_the_cache_always_runs(broker: InMemoryBroker) -> None:
    ran = []

    @broker.task
    async def work() -> None:
        ran.append(1)

    for _ in range(3):
        await result_of(await work.kiq())
    assert len(ran) == 3


@pytest.mark.parametrize("value", [None, False, 0, "", [], {}])
async def test_an_empty_value_is_a_value(cache: BaseCacheAdapter, broker: InMemoryBroker, value: object) -> None:
    ran = []

    @broker.task(cache_ttl=60)
    async def work() -> Any:
        ran.append(1)
        return value

    for _ in range(2):
        assert (await result_of(await work.kiq())).return_value == value
    assert len(ran) == 1


async def test_messages_that_ask_at_once_share_one_run(broker: InMemoryBroker) -> None:
    ran, go = [], asyncio.Event()

    @broker.task(cache_ttl=60)
    async def work(x: int) -> int:
        ran.append(x)
        await go.wait()
        return x

    sent = [await work.kiq(1) for _ in range(10)]
    await await_until("the first runs", lambda: ran)
    go.set()
    results = [await result_of(one) for one in sent]
    assert [result.return_value for result in results] == [1] * 10
    assert ran == [1]
    assert sum("cache_hit" not in result.labels for result in results) == 1


async def test_one_call_in_many_spellings_is_one_entry_and_other_calls_are_others(broker: InMemoryBroker) -> None:
    ran = []

    @broker.task(cache_ttl=60)
    async def typed(x: int, y: int = 2, *, z: str = "a") -> str:
        ran.append((x, y, z))
        return f"{x}{y}{z}"

    @broker.task(cache_ttl=60)
    async def untyped(x) -> str:
        ran.append(x)
        return repr(x)

    spellings: list[Any] = [((1,), {}), ((), {"x": 1}), (("1",), {}), ((1, 2), {}), ((1,), {"z": "a", "y": "2"})]
    for args, kwargs in spellings:
        assert (await result_of(await typed.kiq(*args, **kwargs))).return_value == "12a"
    assert len(ran) == 1
    for x in (1, "1", True, 1.5, None):
        assert (await result_of(await untyped.kiq(x))).return_value == repr(x)
    assert len(ran) == 6


async def test_a_template_names_the_entry(broker: InMemoryBroker, cache: BaseCacheAdapter) -> None:
    ran = []

    @broker.task(cache_ttl=60, cache_key="user:{user}")
    async def page(user: int, request: str, context: Annotated[Context, TaskiqDepends()]) -> str:
        ran.append(request)
        return f"page of {user}"

    for request in ("a", "b"):
        assert (await result_of(await page.kiq(7, request))).return_value == "page of 7"
    assert ran == ["a"]
    assert await cache.get("user:7") == "page of 7"


async def test_dependencies_are_no_part_of_the_key(broker: InMemoryBroker) -> None:
    ran = []

    @broker.task(cache_ttl=60)
    async def work(x: int, context: Annotated[Context, TaskiqDepends()]) -> int:
        ran.append(context.message.task_id)
        return x

    for _ in range(3):
        assert (await result_of(await work.kiq(1))).return_value == 1
    assert len(ran) == 1


class Model(BaseModel):
    x: int


@dataclass
class Record:
    x: int


@pytest.mark.parametrize("kind", [Model, Record])
async def test_a_hit_has_the_type_of_a_run_and_arguments_may_be_models(broker: InMemoryBroker, kind: type[Any]) -> None:
    ran = []

    async def work(arg: Any) -> Any:
        ran.append(arg)
        return arg

    work.__annotations__ = {"arg": kind, "return": kind}
    task = broker.register_task(work, cache_ttl=60)
    first, second = await result_of(await task.kiq(kind(x=1))), await result_of(await task.kiq(kind(x=1)))
    assert first.return_value == second.return_value == kind(x=1)
    assert len(ran) == 1


async def test_an_error_is_shared_by_those_who_wait_and_not_kept(broker: InMemoryBroker) -> None:
    ran, go = [], asyncio.Event()

    @broker.task(cache_ttl=60)
    async def work() -> None:
        ran.append(1)
        await go.wait()
        raise ValueError("no luck")

    sent = [await work.kiq() for _ in range(3)]
    await await_until("one runs", lambda: ran)
    await asyncio.sleep(0.05)
    go.set()
    for one in sent:
        assert str((await result_of(one)).error) == "no luck"
    assert isinstance((await result_of(await work.kiq())).error, ValueError)
    assert len(ran) >= 2


@pytest.mark.parametrize("wanted", [True, "true"])
async def test_an_error_is_kept_on_request(broker: InMemoryBroker, wanted: Any) -> None:
    ran = []

    @broker.task(cache_ttl=60, cache_errors=wanted)
    async def work() -> None:
        ran.append(1)
        raise ValueError("no luck", 7)

    first, second = await result_of(await work.kiq()), await result_of(await work.kiq())
    assert len(ran) == 1
    assert isinstance(second.error, ValueError)
    assert second.error.args == ("no luck", 7)
    assert second.is_err
    assert (first.labels.get("cache_hit"), second.labels.get("cache_hit")) == (None, True)


async def test_no_result_and_retries_are_never_kept(cache: BaseCacheAdapter) -> None:
    broker = InMemoryBroker().with_middlewares(
        SimpleRetryMiddleware(default_retry_count=3), CacheMiddleware(cache, answer_senders=False)
    )
    ran = []

    @broker.task(cache_ttl=60, cache_errors=True, retry_on_error=True)
    async def flaky() -> int:
        ran.append(1)
        if len(ran) < 3:
            raise ValueError
        return len(ran)

    @broker.task(cache_ttl=60, cache_errors=True)
    async def nothing() -> None:
        ran.append(1)
        raise NoResultError

    assert (await result_of(await flaky.kiq())).return_value == 3
    assert (await result_of(await flaky.kiq())).return_value == 3
    assert len(ran) == 3
    for _ in range(2):
        await nothing.kiq()
        await broker.wait_all()
    assert len(ran) == 5
    await broker.shutdown()


async def test_those_who_wait_for_a_run_that_comes_to_nothing_run_themselves(broker: InMemoryBroker) -> None:
    ran, go = [], asyncio.Event()

    @broker.task(cache_ttl=60)
    async def work() -> int:
        ran.append(1)
        if len(ran) == 1:
            await go.wait()
            raise NoResultError
        return len(ran)

    sent = [await work.kiq() for _ in range(3)]
    await await_until("the first runs", lambda: ran)
    go.set()
    assert [(await result_of(one)).return_value for one in sent[1:]] == [2, 2]
    assert not await sent[0].is_ready()


async def test_cancelling_the_first_or_a_later_message_disturbs_nobody(broker: InMemoryBroker) -> None:
    ran, go = [], asyncio.Event()

    @broker.task(cache_ttl=60)
    async def work() -> int:
        ran.append(1)
        await go.wait()
        return len(ran)

    sent = []
    callbacks = []
    for _ in range(4):
        sent.append(await work.kiq())
        callbacks.append(next(task for task in broker._running_tasks if task not in callbacks))
    await await_until("the first runs", lambda: ran)
    callbacks[2].cancel()
    await asyncio.sleep(0.02)
    assert len(ran) == 1
    callbacks[0].cancel()
    await await_until("another one runs", lambda: len(ran) == 2)
    go.set()
    assert [(await result_of(sent[at])).return_value for at in (1, 3)] == [2, 2]
    assert isinstance((await result_of(sent[0])).error, asyncio.CancelledError)
    with pytest.raises(asyncio.CancelledError):
        await callbacks[2]


async def test_labels_of_a_call_override_the_decorators(broker: InMemoryBroker) -> None:
    ran = []

    @broker.task(cache_ttl=60)
    async def cached() -> int:
        ran.append(1)
        return len(ran)

    @broker.task
    async def uncached() -> int:
        ran.append(1)
        return len(ran)

    await result_of(await cached.kiq())
    assert (await result_of(await cached.kicker().with_labels(cache=False).kiq())).return_value == 2
    assert (await result_of(await cached.kiq())).return_value == 1
    for _ in range(2):
        assert (await result_of(await uncached.kicker().with_labels(cache_ttl=5).kiq())).return_value == 3
    with pytest.raises(InvalidOptionError, match="cache_ttl"):
        await cached.kicker().with_labels(cache_ttl=-5).kiq()


async def test_a_ttl_passes() -> None:
    broker = InMemoryBroker().with_middlewares(CacheMiddleware())
    ran = []

    @broker.task(cache_ttl=0.05)
    async def work() -> int:
        ran.append(1)
        return len(ran)

    assert (await result_of(await work.kiq())).return_value == 1
    await asyncio.sleep(0.1)
    assert (await result_of(await work.kiq())).return_value == 2
    await broker.shutdown()
