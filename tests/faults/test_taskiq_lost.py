"""A run whose slot is lost is over before another worker can have the slot."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import redis

from slotline import Pool, RedisStore, SlotLostError
from tests.harness.processes import gone
from tests.harness.proxy import TcpProxy
from tests.harness.redis_server import RedisServer
from tests.harness.waiting import await_until
from tests.harness.workers import TaskiqWorker
from tests.integration.losing_slots import fences, one_after_the_other, pids

LEASE = 4.0

APP = """
import asyncio, os
from typing import Annotated
from taskiq import TaskiqDepends
from taskiq_redis import ListQueueBroker, RedisAsyncResultBackend
from slotline import RedisStore, Slot, configure
from taskiq_ext import ExecutorMiddleware, PoolLimitMiddleware, current_slot
from tests.integration.losing_slots import PULSE, beat
import redis.asyncio

URL = "{url}"
configure(heartbeat_lease={lease})
store = RedisStore(os.environ.get("STORE_URL", "{store}"), timeout=0.5, retries=1)
broker = ListQueueBroker(URL, queue_name="work", socket_timeout=None).with_result_backend(
    RedisAsyncResultBackend(URL, result_ex_time=60, socket_timeout=None)
)
executors = {{name: {{"backend": name, "max_pools": 1, "workers_per_pool": 1}} for name in ("process", "billiard")}}
broker.add_middlewares(PoolLimitMiddleware(store), ExecutorMiddleware(executors))


def fence_of(slot: Annotated[Slot, TaskiqDepends(current_slot)]) -> int:
    return slot.fence


@broker.task(pool="one", pool_size=1)
async def coroutine(seconds: float, fence: Annotated[int, TaskiqDepends(fence_of)]) -> int:
    until = asyncio.get_running_loop().time() + seconds
    async with redis.asyncio.Redis.from_url(URL) as history:
        while asyncio.get_running_loop().time() < until:
            await history.xadd("history:coroutine", {{"fence": fence, "pid": os.getpid()}})
            await asyncio.sleep(PULSE)
    return fence


def in_process(name, seconds, fence):
    return beat(URL, name, fence, seconds)


@broker.task(pool="one", pool_size=1, executor="process")
def process(seconds: float, fence: Annotated[int, TaskiqDepends(fence_of)]) -> int:
    return in_process("process", seconds, fence)


@broker.task(pool="one", pool_size=1, executor="billiard")
def billiard(seconds: float, fence: Annotated[int, TaskiqDepends(fence_of)]) -> int:
    return in_process("billiard", seconds, fence)
"""


@contextlib.asynccontextmanager
async def deployed(app_module: Callable[[str], str], url: str, store: str) -> AsyncIterator[Any]:
    """Yield the module of the application, whose broker the test sends by."""
    module = importlib.import_module(app_module(APP.format(url=url, store=store, lease=LEASE)))
    await module.broker.startup()
    yield module
    await module.broker.shutdown()
    await module.store.close()


class Scene:
    """Two workers; the store of the first can be cut off."""

    def __init__(self, module: Any, kind: str, client: redis.Redis, store: RedisStore) -> None:
        self.task, self.kind, self.client = getattr(module, kind), kind, client
        self.pool = Pool("one", 1, store=store)

    async def waits(self) -> bool:
        return (await self.pool.info()).waiting == 1

    async def plays(self, start: Callable[[], object], cut: Callable[[], None], join: Callable[[], None]) -> None:
        """Cut off a run, and see that another takes its slot when it is over."""
        first = await self.task.kiq(60)
        await await_until("the first runs", lambda: fences(self.client, self.kind), timeout=60)
        second = await self.task.kicker().with_task_id("second").kiq(1.0)
        await await_until("the second is parked", self.waits)
        start()
        cut()
        try:
            lost = await first.wait_result(check_interval=0.05, timeout=60)
            assert isinstance(lost.error, SlotLostError), lost.error
        finally:
            join()
        assert not (await second.wait_result(check_interval=0.05, timeout=60)).is_err
        seen = fences(self.client, self.kind)
        assert len(set(seen)) == 2
        assert one_after_the_other(seen), "two held the slot at once"


@pytest.mark.leaves("keys", reason="the history that the tasks write")
@pytest.mark.parametrize("kind", ["coroutine", "process", "billiard"])
async def test_a_worker_that_is_cut_off_from_its_store_ends_its_run_before_another_begins(
    app_module: Callable[[str], str],
    taskiq_worker: Callable[..., TaskiqWorker],
    redis_url: str,
    redis_client: redis.Redis,
    redis_proxy: TcpProxy,
    kind: str,
) -> None:
    async with deployed(app_module, redis_url, redis_url) as module:
        taskiq_worker(f"{module.__name__}:broker", workers=1, env={"STORE_URL": redis_proxy.redis_url})
        scene = Scene(module, kind, redis_client, module.store)
        await scene.plays(
            lambda: taskiq_worker(f"{module.__name__}:broker", workers=1), redis_proxy.stall, redis_proxy.resume
        )
        if kind != "coroutine":
            assert gone(pids(redis_client, kind)[0]), "the process of the first is dead"


@pytest.mark.leaves("keys", reason="the history that the tasks write")
async def test_a_store_that_stands_still_longer_than_the_lease_costs_the_run_and_never_two_at_once(
    app_module: Callable[[str], str],
    taskiq_worker: Callable[..., TaskiqWorker],
    redis_url: str,
    redis_client: redis.Redis,
    own_redis: RedisServer,
) -> None:
    async with deployed(app_module, redis_url, own_redis.url) as module:
        taskiq_worker(f"{module.__name__}:broker", workers=1)
        scene = Scene(module, "coroutine", redis_client, module.store)
        await scene.plays(
            lambda: taskiq_worker(f"{module.__name__}:broker", workers=1), own_redis.pause, own_redis.resume
        )


@pytest.mark.leaves("keys", reason="the history that the tasks write")
async def test_a_store_that_comes_back_without_its_data_costs_what_ran_and_what_was_parked_and_nothing_else(
    app_module: Callable[[str], str],
    taskiq_worker: Callable[..., TaskiqWorker],
    redis_url: str,
    redis_client: redis.Redis,
    own_redis: RedisServer,
) -> None:
    async with deployed(app_module, redis_url, own_redis.url) as module:
        worker = taskiq_worker(f"{module.__name__}:broker", workers=1)
        first = await module.coroutine.kiq(60)
        await await_until("the first runs", lambda: fences(redis_client, "coroutine"), 30)
        parked = await module.coroutine.kiq(0.1)
        await await_until("the second is parked", lambda: f"{parked.task_id} is parked" in worker.log, 20)
        waiting = await module.coroutine.kicker().with_labels(pool_on_full="wait").kiq(0.1)

        async def both_wait() -> bool:
            return (await Pool("one", 1, store=module.store).info()).waiting == 2

        await await_until("the third waits in the worker", both_wait, 20)
        own_redis.restart(keep_data=False)
        lost = await first.wait_result(check_interval=0.05, timeout=40)
        assert isinstance(lost.error, SlotLostError)
        for one in (waiting, await module.coroutine.kiq(0.1)):
            assert not (await one.wait_result(check_interval=0.05, timeout=60)).is_err
        assert not await parked.is_ready()
        assert len(set(fences(redis_client, "coroutine"))) == 3
