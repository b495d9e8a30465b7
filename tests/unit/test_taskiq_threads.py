"""A plain function cannot be ended: whatever becomes of its message, it has its slot until its thread is done."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from typing import Any

import pytest
from taskiq import InMemoryBroker

from slotline.pools import Pool
from slotline.stores import MemoryStore
from taskiq_ext import ExecutorMiddleware, PoolLimitMiddleware
from tests.harness.waiting import await_until


@pytest.fixture
def pool() -> Pool:
    return Pool("api", 1, store=MemoryStore())


@pytest.fixture
async def broker(pool: Pool) -> AsyncIterator[InMemoryBroker]:
    executors = ExecutorMiddleware({"leased": {"backend": "thread", "max_pools": 1}})
    broker = InMemoryBroker(sync_tasks_pool_size=1).with_middlewares(PoolLimitMiddleware(pool.store), executors)
    yield broker
    await broker.shutdown()


async def free(pool: Pool) -> bool:
    return await pool.size() == 0


@pytest.mark.parametrize("labels", [{}, {"executor": "leased"}, {"pool_on_lost": "warn"}], ids=str)
@pytest.mark.parametrize("ending", ["times out", "cancelled"])
async def test_a_thread_that_outlives_its_message_keeps_its_slot(
    broker: InMemoryBroker, pool: Pool, caplog: pytest.LogCaptureFixture, ending: str, labels: dict[str, Any]
) -> None:
    began, go_on = threading.Event(), threading.Event()

    @broker.task(pool="api", pool_size=1, **labels)
    def work() -> None:
        began.set()
        go_on.wait(30)

    timeout: dict[str, Any] = {"timeout": 1} if ending == "times out" else {}
    await work.kicker().with_labels(**timeout).kiq()
    await asyncio.to_thread(began.wait, 20)
    if ending == "cancelled":
        for callback in list(broker._running_tasks):
            callback.cancel()
    await asyncio.gather(*broker._running_tasks, return_exceptions=True)
    await asyncio.sleep(0)
    assert await pool.size() == 1
    assert "is over, and its thread or process is not: it keeps its slot of pool 'api' until then" in caplog.text
    go_on.set()
    await await_until("the slot is free", lambda: free(pool))


async def test_what_no_thread_has_begun_when_its_message_ends_does_not_begin(
    broker: InMemoryBroker, pool: Pool
) -> None:
    go_on, ran = threading.Event(), threading.Event()

    @broker.task
    def busy() -> None:
        go_on.wait(30)

    @broker.task(pool="api", pool_size=1, timeout=0.05)
    def late() -> None:
        ran.set()

    await busy.kiq()
    sent = await late.kiq()
    assert isinstance((await sent.wait_result(check_interval=0.01, timeout=20)).error, TimeoutError)
    await await_until("the slot is free", lambda: free(pool))
    go_on.set()
    await broker.wait_all()
    assert not ran.is_set()


async def test_a_thread_that_outlives_its_event_loop_gives_its_slot_back() -> None:
    pool, began, go_on = Pool("api", 1, store=MemoryStore()), threading.Event(), threading.Event()

    async def of_a_worker_that_ends() -> InMemoryBroker:
        broker = InMemoryBroker().with_middlewares(PoolLimitMiddleware(pool.store))

        @broker.task(pool="api", pool_size=1, timeout=1)
        def work() -> None:
            began.set()
            go_on.wait(30)

        sent = await work.kiq()
        assert (await sent.wait_result(check_interval=0.01, timeout=20)).is_err
        await asyncio.to_thread(began.wait, 20)
        return broker

    broker = await asyncio.to_thread(asyncio.run, of_a_worker_that_ends())
    assert await pool.size() == 1
    go_on.set()
    await await_until("the slot is free", lambda: free(pool))
    broker.executor.shutdown()
