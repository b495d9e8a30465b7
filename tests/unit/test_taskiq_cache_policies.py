"""Cached tasks beside pools, without their store, and with options that contradict."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
from taskiq import InMemoryBroker, TaskiqMessage, TaskiqMiddleware, TaskiqResult

from slotline.caches import BaseCacheAdapter
from slotline.errors import CacheRecursionError, InvalidOptionError, PoolFullError, StoreUnavailableError
from slotline.pools import Pool
from slotline.stores import MemoryStore
from taskiq_ext import CacheMiddleware, ExecutorMiddleware, PoolLimitMiddleware
from tests.unit.test_taskiq_cache import PlainCache, broker, cache, result_of  # noqa: F401 - fixtures


async def test_disabled_it_leaves_every_task_alone(cache: BaseCacheAdapter) -> None:
    broker = InMemoryBroker().with_middlewares(CacheMiddleware(cache, enabled=False))
    ran = []

    @broker.task(cache_ttl=60)
    async def work() -> None:
        ran.append(1)

    for _ in range(2):
        assert "cache_hit" not in (await result_of(await work.kiq())).labels
    assert len(ran) == 2
    await broker.shutdown()


async def test_a_hit_needs_no_slot_and_a_full_pool_is_no_answer_for_others(cache: BaseCacheAdapter) -> None:
    store = MemoryStore()
    broker = InMemoryBroker().with_middlewares(CacheMiddleware(cache, answer_senders=False), PoolLimitMiddleware(store))

    @broker.task(cache_ttl=60, cache_errors=True, pool="api", pool_size=1, pool_on_full="fail")
    async def work(x: int) -> int:
        return x

    assert (await result_of(await work.kiq(1))).return_value == 1
    pool = Pool("api", 1, store=store)
    slot = await pool.acquire()
    assert (await result_of(await work.kiq(1))).return_value == 1
    assert isinstance((await result_of(await work.kiq(2))).error, PoolFullError)
    await pool.release(slot)
    assert (await result_of(await work.kiq(2))).return_value == 2
    await broker.shutdown()


async def test_arguments_that_do_not_fit_end_with_the_functions_own_error(broker: InMemoryBroker) -> None:
    @broker.task(cache_ttl=60)
    async def work(x: int) -> int:
        return x

    error = (await result_of(await work.kiq(1, 2, 3))).error  # type: ignore[call-arg] # the mistake in question
    assert isinstance(error, TypeError)
    assert "positional argument" in str(error)


async def test_a_task_that_waits_in_place_for_its_own_value_is_told(cache: BaseCacheAdapter) -> None:
    broker = InMemoryBroker(await_inplace=True).with_middlewares(CacheMiddleware(cache))
    errors = []

    @broker.task(cache_ttl=60)
    async def work() -> int:
        inner = await (await work.kiq()).get_result()
        errors.append(inner.error)
        return 1

    assert (await (await work.kiq()).get_result()).return_value == 1
    assert isinstance(errors[0], CacheRecursionError)
    await broker.shutdown()


class AwayCache(PlainCache):
    def __init__(self, times: int) -> None:
        super().__init__()
        self.times = times

    async def get_or_create(self, key: str, creator: Callable[[], Any], ttl_seconds: float | None = 3600) -> Any:
        if self.times > 0:
            self.times -= 1
            raise StoreUnavailableError("test", "it is away")
        return await super().get_or_create(key, creator, ttl_seconds)


@pytest.mark.parametrize(("policy", "kept"), [("wait", 1), ("open", 0), ("fail", 0)])
async def test_an_outage_holds_opens_or_fails_as_told(policy: Any, kept: int) -> None:
    cache = AwayCache(1)
    broker = InMemoryBroker().with_middlewares(CacheMiddleware(cache, on_store_error=policy))

    @broker.task(cache_ttl=60)
    async def work() -> str:
        return "ran"

    result = await result_of(await work.kiq())
    if policy == "fail":
        assert isinstance(result.error, StoreUnavailableError)
    else:
        assert result.return_value == "ran"
    assert len(cache.entries) == kept
    await broker.shutdown()


@pytest.mark.parametrize(
    "options",
    [{"cache": {}}, {"cache": "redis://"}, {"enabled": 1}, {"enabled": "no"}, {"default_ttl": -1},
     {"default_ttl": True}, {"default_ttl": float("nan")}, {"default_ttl": "1"}, {"on_store_error": "maybe"},
     {"answer_senders": 1}],
)  # fmt: skip
def test_a_bad_argument_is_refused_by_name(options: dict[str, Any]) -> None:
    with pytest.raises(InvalidOptionError, match=next(iter(options))):
        CacheMiddleware(**options)


@pytest.mark.parametrize("labels", [{}, {"executor": "cpu"}, {"executor": "more"}])
@pytest.mark.parametrize("kind", [CacheMiddleware, ExecutorMiddleware], ids=["cache first", "executor first"])
async def test_a_plain_function_is_one_to_a_worker_whose_first_message_is_a_hit(
    cache: BaseCacheAdapter, labels: dict[str, str], kind: type[TaskiqMiddleware]
) -> None:
    def work(x: int) -> str:
        return f"{x} in {threading.current_thread().name.partition('_')[0]}"

    async def result_here(x: int) -> TaskiqResult[Any]:
        message = TaskiqMessage(task_id=f"{x}", task_name="work", labels=labels, args=[x], kwargs={})
        await broker.kick(broker.formatter.dumps(message))  # as another process has sent it
        await broker.wait_all()
        return await broker.result_backend.get_result(f"{x}")

    name = labels.get("executor", "cpu")
    for first in (True, False):
        managers = {name: {"max_pools": 1, "name_prefix": name} for name in ("cpu", "more")}
        middlewares = [CacheMiddleware(cache), ExecutorMiddleware(managers)]
        broker = InMemoryBroker().with_middlewares(*sorted(middlewares, key=lambda one: not isinstance(one, kind)))
        broker.register_task(work, task_name="work", cache_ttl=60, executor="cpu")
        for x in (1, 2 if first else 3):
            result = await result_here(x)
            assert (result.error, result.return_value) == (None, f"{x} in {name}")
            assert ("cache_hit" in result.labels) == (x == 1 and not first)
        await broker.shutdown()
