"""A limit that does not bind costs real workers next to no commands, and is kept as exactly as one that does."""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import AsyncGenerator, Callable
from typing import Any

import pytest
from taskiq import AckableMessage

from slotline import Pool, RedisStore
from tests.harness.redis_server import RedisServer
from tests.harness.waiting import await_until, wait_until
from tests.harness.workers import CeleryWorker, TaskiqWorker
from tests.integration.taskiq_rooms import QueueBroker, Work, working

pytestmark = pytest.mark.leaves("keys", reason="the brokers' own queues and results")

COUNT, SIZE, LEASE = 400, 1000, 2.0

TASKIQ = """
import asyncio
import os
from typing import Annotated
from taskiq import TaskiqDepends
from taskiq_redis import ListQueueBroker, RedisAsyncResultBackend
from slotline import RedisStore, Slot, configure
from taskiq_ext import PoolLimitMiddleware, current_slot

URL = {url!r}
configure(heartbeat_lease={lease})
store = RedisStore(URL)
broker = ListQueueBroker(URL, queue_name="work", socket_timeout=None).with_result_backend(
    RedisAsyncResultBackend(URL, result_ex_time=60, socket_timeout=None)
)
broker.add_middlewares(PoolLimitMiddleware(store, pools={{"free": {size}}}))


@broker.task(pool="free")
async def free(number: int, slot: Annotated[Slot, TaskiqDepends(current_slot)]) -> tuple[int, int]:
    return os.getpid(), slot.fence


@broker.task(pool="free")
def fails(number: int) -> None:
    raise ValueError(number)


@broker.task(pool="free")
async def stays(number: int) -> None:
    await asyncio.sleep(600)
"""

CELERY = """
from celery import Celery

app = Celery("app", broker={url!r}, backend={url!r}, task_cls="celery_ext:Task")
app.conf.update(
    task_default_queue="work", result_expires=60, worker_prefetch_multiplier=8, slotline_redis_url={url!r},
    slotline_heartbeat_lease={lease}, slotline_pools={{"free": {size}}}, broker_connection_retry_on_startup=True,
)


@app.task(shared=False, bind=True, pool="free")
def free(self, number):
    return self.slot.fence


@app.task(shared=False, pool="free")
def fails(number):
    raise ValueError(number)
"""


def check(counted: dict[str, int], fences: list[Any]) -> None:
    """Check what the runs have cost the store, and that each had another fence than the others of its process."""
    assert counted["evalsha"] < 1.8 * COUNT, "two for each run, were it not for the relay; a few where all is slow"
    assert len(set(fences)) == COUNT


@pytest.fixture
async def broker_app(app_module: Callable[[str], str], redis_url: str) -> Any:
    module = importlib.import_module(app_module(TASKIQ.format(url=redis_url, lease=LEASE, size=SIZE)))
    await module.broker.startup()
    yield module
    await module.broker.shutdown()
    await module.store.close()


async def test_taskiq(broker_app: Any, taskiq_worker: Callable[..., TaskiqWorker], redis_server: RedisServer) -> None:
    pool = Pool("free", SIZE, store=broker_app.store)
    sent = [await broker_app.free.kiq(number) for number in range(COUNT)]
    with redis_server.counting() as counted:
        taskiq_worker(f"{broker_app.__name__}:broker")
        results = [await one.wait_result(check_interval=0.02, timeout=60) for one in sent]
    check(counted, [tuple(result.return_value) for result in results])
    await await_until("all slots are back", lambda: _free(pool))
    failing = [await broker_app.fails.kiq(number) for number in range(30)]
    assert all([(await one.wait_result(check_interval=0.02, timeout=60)).is_err for one in failing])
    await await_until("all slots are back", lambda: _free(pool))


async def test_taskiq_worker_that_is_killed_leaves_no_slot_behind(
    broker_app: Any, taskiq_worker: Callable[..., TaskiqWorker]
) -> None:
    pool = Pool("free", SIZE, store=broker_app.store)
    worker = taskiq_worker(f"{broker_app.__name__}:broker")
    long = set()
    for number in range(COUNT):
        await broker_app.free.kiq(number)
        if number % 20 == 0:
            long.add((await broker_app.stays.kiq(number)).task_id)

    async def known() -> bool:
        return {holder.owner for holder in (await pool.info()).holders} == long

    await await_until("the store knows the long runs, some of which have the slots of short ones", known)
    worker.kill_all()
    await await_until("they are free within twice the lease", lambda: _free(pool), 2 * LEASE + 5)


@pytest.mark.parametrize("kind", ["prefork", "threads"])
def test_celery(
    kind: str,
    app_module: Callable[[str], str],
    celery_worker: Callable[..., CeleryWorker],
    redis_url: str,
    redis_server: RedisServer,
) -> None:
    module = importlib.import_module(app_module(CELERY.format(url=redis_url, lease=LEASE, size=SIZE)))
    store = RedisStore(redis_url)
    pool = Pool("free", SIZE, store=store)
    sent = [module.free.delay(number) for number in range(COUNT)]
    with redis_server.counting() as counted:
        celery_worker(f"{module.__name__}:app", pool=kind, concurrency=4)
        fences = [result.get(timeout=60) for result in sent]
    check(counted, fences)
    wait_until("all slots are back", lambda: pool.sync.size() == 0)
    for result in [module.fails.delay(number) for number in range(30)]:
        assert isinstance(result.get(timeout=60, propagate=False), ValueError)
    wait_until("all slots are back", lambda: pool.sync.size() == 0)
    module.app.close()
    store.sync.close()


async def _free(pool: Pool) -> bool:
    return await pool.size() == 0


async def test_taskiq_gives_what_is_delivered_again_no_slot_that_another_run_has_left(redis_url: str) -> None:
    class Incoming:
        """A message as those of brokers on RabbitMQ are."""

        def __init__(self, *, redelivered: bool) -> None:
            self.redelivered = redelivered

        async def ack(self) -> None:
            """Say that it is done."""

    class Broker(QueueBroker):
        async def listen(self) -> AsyncGenerator[AckableMessage, None]:
            for again in (False, True):
                yield AckableMessage(data=await self.queue.get(), ack=Incoming(redelivered=again).ack)
            await asyncio.Event().wait()

    store = RedisStore(redis_url)
    work, asked = Work(Broker(), store, size=10), []
    work.limits._relay.take = lambda _, owner: asked.append(owner)
    async with working(work.broker):
        sent = [await work.limited.kiq(number) for number in range(2)]
        await await_until("both run", lambda: len(work.started) == 2)
        work.go.set()
        for one in sent:
            await one.wait_result(timeout=20)
    assert asked == [sent[0].task_id]
    await store.close()
