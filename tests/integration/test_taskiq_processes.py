"""A plain function in a process of Taskiq's own pool has its slot until it is done, whatever becomes of its message."""

from __future__ import annotations

import asyncio
import multiprocessing
import time
from collections.abc import AsyncIterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures import process as process_pools
from pathlib import Path

import pytest
from taskiq import InMemoryBroker

from slotline.pools import Pool
from slotline.stores import MemoryStore
from taskiq_ext import PoolLimitMiddleware
from tests.harness.waiting import await_until

pytestmark = pytest.mark.needs("taskiq>=0.13", reason="before, nothing of ours can be sent to a process")
PATIENCE = 60.0


def work(began: str, go_on: str) -> None:
    """Run until a file is there."""
    Path(began).touch()
    until = time.monotonic() + PATIENCE
    while not Path(go_on).exists() and time.monotonic() < until:
        time.sleep(0.02)


work__taskiq_original = work  # by this name Taskiq sends it to processes


@pytest.fixture
async def broker() -> AsyncIterator[InMemoryBroker]:
    work.__name__ = work.__qualname__ = "work"  # it may have been registered before
    broker = InMemoryBroker().with_middlewares(PoolLimitMiddleware(MemoryStore()))
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        broker.receiver.executor, broker.receiver.is_process_pool = pool, True
        yield broker
    await broker.shutdown()


def pool_of(broker: InMemoryBroker) -> Pool:
    (limits,) = broker.middlewares
    return Pool("api", 5, store=limits.store)


async def test_a_process_that_outlives_its_message_keeps_the_slot(
    broker: InMemoryBroker, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pool, began, go_on = pool_of(broker), tmp_path / "began", tmp_path / "go on"
    task = broker.register_task(work, "work", pool="api", pool_size=5)
    sent = await task.kiq(str(began), str(go_on))
    await await_until("the process is at work", began.exists, PATIENCE)
    for running in list(broker._running_tasks):
        running.cancel()
    await asyncio.gather(*broker._running_tasks, return_exceptions=True)
    await await_until("the message is over", lambda: "its thread or process is not" in caplog.text, PATIENCE)
    assert sent.task_id in caplog.text
    assert await pool.size() == 1
    go_on.touch()

    async def free() -> bool:
        return await pool.size() == 0

    await await_until("the slot is free", free, PATIENCE)


async def test_what_times_out_in_a_process_keeps_the_slot_and_what_none_has_taken_does_not_run(
    broker: InMemoryBroker, tmp_path: Path
) -> None:
    pool, go_on = pool_of(broker), tmp_path / "go on"
    task = broker.register_task(work, "work", pool="api", pool_size=5, timeout=1)
    began = [tmp_path / str(number) for number in range(5)]
    sent = [await task.kiq(str(path), str(go_on)) for path in began]
    for one in sent:
        assert isinstance((await one.wait_result(check_interval=0.01, timeout=PATIENCE)).error, TimeoutError)

    def taken() -> int:
        return sum(item.future.running() for item in broker.receiver.executor._pending_work_items.values())

    async def settled() -> bool:
        return await pool.size() == taken()

    await await_until("only those that the pool of processes has taken have slots", settled, PATIENCE)
    assert 0 < (will_run := taken()) < len(began)
    go_on.touch()

    async def free() -> bool:
        return await pool.size() == 0

    await await_until("all slots are free", free, PATIENCE)
    assert sum(path.exists() for path in began) == will_run


def test_pools_of_processes_keep_their_work_where_it_is_looked_for() -> None:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        future = pool.submit(time.sleep, 0.2)
        items = [
            item
            for manager in list(process_pools._threads_wakeups)
            for item in list(manager.pending_work_items.values())
        ]
        assert [(item.future, item.fn, item.args) for item in items if item.future is future] == [
            (future, time.sleep, (0.2,))
        ]
