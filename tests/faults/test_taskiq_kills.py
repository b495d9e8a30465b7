"""Taskiq workers are killed at every step of a message's way: nothing is lost, and nothing runs too often."""

from __future__ import annotations

import importlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest
import redis

from slotline import Pool
from tests.faults.dying import Kill, order
from tests.harness.processes import gone
from tests.harness.waiting import await_until
from tests.harness.workers import TaskiqWorker
from tests.integration.losing_slots import ends, fences, one_after_the_other, pids, runs

pytestmark = pytest.mark.leaves("keys", reason="the broker's own queue, and the history that the tasks write")

LEASE = 2.0
RECOVERED = 30.0
"""Seconds after which everything must have run: twice the lease, the broker's own redelivery, and a busy machine."""

BROKERS = {
    "stream": """
from taskiq_redis import RedisStreamBroker
broker = RedisStreamBroker(
    URL, queue_name="work", socket_timeout=None, xread_block=200, idle_timeout=4000, unacknowledged_lock_timeout=2
)
""",
    "rabbitmq": """
from taskiq_aio_pika import AioPikaBroker, Exchange, Queue
broker = AioPikaBroker(
    {amqp!r}, exchange=Exchange(name={name!r}), task_queues=[Queue(name={name!r})],
    dead_letter_queue=Queue(name={name!r} + ".dead_letter"),
)
""",
}

APP = """
import asyncio, time
from typing import Annotated
import redis
from taskiq import Context, TaskiqDepends, TaskiqMiddleware
from taskiq_redis import RedisAsyncResultBackend
from slotline import RedisStore, Slot, configure
from taskiq_ext import PoolLimitMiddleware, current_slot
from tests.faults.dying import Places
from tests.integration.losing_slots import beat, sign

URL = {url!r}
configure(heartbeat_lease={lease})
places = Places(URL)
places.prepare_taskiq()
client = redis.Redis.from_url(URL)
{broker}


class Ending(TaskiqMiddleware):
    def post_save(self, message, result):
        places.here("ended", message.task_id)


store = RedisStore(URL)
broker = broker.with_result_backend(RedisAsyncResultBackend(URL, result_ex_time=60, socket_timeout=None))
broker.add_middlewares(PoolLimitMiddleware(store), Ending())


def fence_of(slot: Annotated[Slot, TaskiqDepends(current_slot)]) -> int:
    return slot.fence


def id_of(context: Annotated[Context, TaskiqDepends()]) -> str:
    return context.message.task_id


Fence, Id = Annotated[int, TaskiqDepends(fence_of)], Annotated[str, TaskiqDepends(id_of)]


def live(name: str, fence: int, task: str) -> None:
    sign(redis.Redis.from_url(URL), name, fence, task)
    outlived = places.here("running", task)
    beat(URL, name, fence, 60 if outlived else 0.2, task)


@broker.task(pool="{{name}}", pool_size=1, pool_slot_exp=None)
async def mortal(name: str, fence: Fence, task: Id) -> None:
    await asyncio.to_thread(live, name, fence, task)


@broker.task(pool=["{{name}}", "zone"], pool_size=[1, 2], pool_slot_exp=None)
async def mortal_of_two(name: str, fence: Fence, task: Id) -> None:
    await asyncio.to_thread(live, name, fence, task)


@broker.task(pool="{{name}}", pool_size=1, pool_slot_exp=None)
def plain(name: str, fence: Fence, task: Id) -> None:
    live(name, fence, task)


@broker.task
async def nudge() -> None:
    pass  # the stream broker looks for the messages of dead workers only after it has got a new one
"""

KILLS = [
    Kill("self", "admitted", (1, 1), (1, 1)),
    Kill("self", "parked", (1, 1), (1, 1)),
    Kill("self", "taken", (1, 1), (1, 1)),
    Kill("self", "running", (1, 0), (2, 1)),
    Kill("self", "ended", (1, 1), (2, 2)),
]


class Drama:
    """A worker whose process dies, and is replaced by Taskiq; it acknowledges early or late."""

    def __init__(self, module: Any, client: redis.Redis, worker: TaskiqWorker, kind: str, *, late: bool) -> None:
        self.module, self.client, self.worker, self.kind, self.late = module, client, worker, kind, late

    async def until(self, description: str, condition: Callable[[], Any]) -> None:
        async def holds() -> bool:
            if condition():
                return True
            await self.module.nudge.kiq()
            return False

        await await_until(description, holds, RECOVERED, 0.2)

    def acknowledged(self, task: str, copies: int = 1) -> bool:
        pending = self.client.xpending("work", "taskiq")["pending"] if self.kind == "stream" else 0
        return self.worker.log.count(f"{task} is parked") == copies and not pending

    async def meet_its_fate(self, kill: Kill, task: Any) -> None:
        """Send a message that has its worker killed, and another one behind it; see what becomes of both."""
        name, before = kill.place, self.worker.children()
        victim, follower = f"{name}-victim", f"{name}-follower"
        pool = Pool(name, 1, store=self.module.store)
        async with AsyncExitStack() as stack:
            if kill.place != "admitted":
                await stack.enter_async_context(pool)
            if kill.place in {"admitted", "parked"}:
                order(self.client, kill.place, victim, kill.who)
            await task.kicker().with_task_id(victim).kiq(name)
            if kill.place not in {"admitted", "parked"}:
                await self.until("it is acknowledged", lambda: self.acknowledged(victim))
                order(self.client, kill.place, victim, kill.who)
                await stack.aclose()
            await self.until("the worker is dead", lambda: not set(before) <= set(self.worker.children()))
            if kill.place == "parked":
                await self.until("its copy is acknowledged", lambda: self.acknowledged(victim, 2))
        await task.kicker().with_task_id(follower).kiq(name)

        def outcome() -> tuple[int, int]:
            return runs(self.client, name)[victim], ends(self.client, name)[victim]

        expected = kill.late if self.late else kill.early
        await self.until("it has run as often as it must", lambda: outcome() >= expected)
        await self.until("what came after it has run", lambda: ends(self.client, name)[follower] == 1)

        async def empty() -> bool:
            infos = [await one.info() for one in (pool, Pool("zone", 2, store=self.module.store))]
            return [(info.used, info.waiting) for info in infos] == [(0, 0)] * 2

        await await_until("nothing is left", empty, RECOVERED)
        assert outcome() == expected
        assert runs(self.client, name)[follower] == 1
        assert one_after_the_other(fences(self.client, name))


@pytest.fixture
async def stage(
    app_module: Callable[[str], str],
    taskiq_worker: Callable[..., TaskiqWorker],
    redis_client: redis.Redis,
    request: pytest.FixtureRequest,
) -> AsyncIterator[Callable[..., Awaitable[Drama]]]:
    """A function that starts a worker on a kind of broker."""
    async with AsyncExitStack() as stack:

        async def start(kind: str, *args: str, late: bool = True) -> Drama:
            amqp, name = "", ""
            if kind == "rabbitmq":
                amqp, name = request.getfixturevalue("amqp_url"), request.getfixturevalue("amqp_name")("kills")
            broker = BROKERS[kind].format(amqp=amqp, name=name)
            app = app_module(APP.format(url=request.getfixturevalue("redis_url"), lease=LEASE, broker=broker))
            module = importlib.import_module(app)
            acks = ("--ack-type", "when_saved" if late else "when_received")
            worker = taskiq_worker(f"{app}:broker", workers=2, args=(*acks, *args))
            await module.broker.startup()
            stack.push_async_callback(module.store.close)
            stack.push_async_callback(module.broker.shutdown)
            return Drama(module, redis_client, worker, kind, late=late)

        yield start


@pytest.mark.parametrize(
    ("kind", "late"),
    [
        ("stream", True),
        pytest.param("stream", False, marks=pytest.mark.soak),
        pytest.param("rabbitmq", True, marks=[pytest.mark.soak, pytest.mark.rabbitmq]),
        pytest.param("rabbitmq", False, marks=pytest.mark.rabbitmq),
    ],
)
async def test_whoever_is_killed_costs_no_more_than_the_broker_allows(
    stage: Callable[..., Awaitable[Drama]], kind: str, late: bool
) -> None:
    drama = await stage(kind, late=late)
    for kill in KILLS:
        try:
            await drama.meet_its_fate(kill, drama.module.mortal)
        except AssertionError as failure:
            raise AssertionError(str(kill)) from failure


async def test_who_is_killed_with_slots_of_two_pools_gives_back_both(
    stage: Callable[..., Awaitable[Drama]],
) -> None:
    drama = await stage("stream")
    for kill in KILLS:
        if kill.place in {"parked", "taken", "running"}:
            await drama.meet_its_fate(kill, drama.module.mortal_of_two)


async def test_a_process_of_a_pool_does_not_outlive_its_worker_with_a_slot(
    stage: Callable[..., Awaitable[Drama]],
) -> None:
    drama = await stage("stream", "--use-process-pool", "--max-process-pool-processes", "1")
    await drama.meet_its_fate(Kill("parent", "running", (1, 0), (2, 1)), drama.module.plain)
    assert gone(pids(drama.client, "running")[0])
