"""Weights, partitions and large messages with real workers: what waits, for what, and what is not parked at all."""

from __future__ import annotations

import importlib
import re
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import redis

from slotline import MessageTooLargeError, Pool, configure
from tests.harness.waiting import await_until
from tests.harness.workers import TaskiqWorker
from tests.integration.sharing_slots import HISTORY, OTHERS, Held, check_both, check_turns, check_weights, events

pytestmark = pytest.mark.leaves("keys", reason="the broker's own queue, and the history that the tasks write")

APP = """
import asyncio
from typing import Annotated, Any
from taskiq import TaskiqDepends
from taskiq_redis import RedisAsyncResultBackend
{imports}
from slotline import RedisStore, Slot, configure
from taskiq_ext import PoolLimit, PoolLimitMiddleware, current_slot
from tests.integration.sharing_slots import run

URL = "{url}"
configure(max_parked_bytes=50_000)
store = RedisStore(URL)
shared = PoolLimit(size=3, partition="{{tenant}}", max_per_partition=2)
broker = (
    {broker}
    .with_result_backend(RedisAsyncResultBackend(URL, result_ex_time=60, socket_timeout=None))
    .with_middlewares(PoolLimitMiddleware(store, pools={{"shared": shared}}))
)


@broker.task(pool="shared")
async def share(tenant: str, weight: int = 1, slot: Slot = TaskiqDepends(current_slot)) -> None:
    await asyncio.to_thread(run, URL, tenant, weight, slot.fence)


@broker.task(pool=["db", "api:{{tenant}}"], pool_size=[2, 1])
async def both(tenant: str, slot: Annotated[Slot, TaskiqDepends(current_slot)]) -> list[Any]:
    await asyncio.to_thread(run, URL, tenant, 1, slot.slot_of("db").fence)
    slots = [slot.slot_of("db"), slot.slot_of("api:" + tenant)]
    return [slot.key, *(one.key for one in slot.slots), *(one.fence for one in slots)]


@broker.task
async def free() -> None: ...
"""
NOISY = 100
ON_REDIS = 'ListQueueBroker(URL, queue_name="work", socket_timeout=None)'
ON_RABBITMQ = """
import taskiq_aio_pika as pika
if hasattr(pika, "Queue"):
    dead = pika.Queue(name={name!r} + ".dead_letter")
    OPTIONS = {{"exchange": pika.Exchange(name={name!r}), "task_queues": [pika.Queue(name={name!r})]}}
    OPTIONS["dead_letter_queue"] = dead
else:
    OPTIONS = {{"exchange_name": {name!r}, "queue_name": {name!r}}}
"""


@pytest.fixture
async def app(
    app_module: Callable[[str], str],
    taskiq_worker: Callable[..., TaskiqWorker],
    redis_url: str,
    request: pytest.FixtureRequest,
) -> AsyncIterator[Any]:
    """The application, with two worker processes; on RabbitMQ where the test says so."""
    imports, broker = "from taskiq_redis import ListQueueBroker", ON_REDIS
    if getattr(request, "param", "") == "rabbitmq":
        amqp, queue = request.getfixturevalue("amqp_url"), request.getfixturevalue("amqp_name")("shares")
        imports, broker = ON_RABBITMQ.format(name=queue), f"pika.AioPikaBroker({amqp!r}, **OPTIONS)"
    name = app_module(APP.format(url=redis_url, imports=imports, broker=broker))
    taskiq_worker(f"{name}:broker", workers=2, args=["--max-async-tasks", "200"])
    module = importlib.import_module(name)
    await module.broker.startup()
    yield module
    await module.broker.shutdown()
    await module.store.close()


async def all_ended(sent: list[Any]) -> None:
    for one in sent:
        assert not (await one.wait_result(check_interval=0.02, timeout=60)).is_err


@pytest.mark.parametrize("policy", ["park", "wait"])
async def test_one_tenants_hundred_tasks_delay_nobody_else(
    app: Any, redis_url: str, redis_client: redis.Redis, policy: str
) -> None:
    share, held = app.share.kicker().with_labels(pool_on_full=policy), Held(redis_url, "shared")
    sent = [await share.kiq(tenant) for tenant in [*["noisy"] * NOISY, *OTHERS, *OTHERS]]
    await await_until("all wait", lambda: held.waiting() == len(sent), 60)
    await all_ended([await app.free.kiq()])
    held.let_go()
    await all_ended(sent)
    check_turns(redis_client, NOISY)
    assert await Pool("shared", 3, store=app.store).size() == 0


@pytest.mark.parametrize("policy", ["park", "wait"])
async def test_two_of_three_slots_are_two_for_one_run(app: Any, redis_client: redis.Redis, policy: str) -> None:
    labels = {"pool": "heavy", "pool_size": 3, "pool_on_full": policy}
    light, heavy = (app.share.kicker().with_labels(pool_weight=weight, **labels) for weight in (1, 2))
    sent = [await light.kiq("light") for _ in range(15)]
    sent += [await heavy.kiq("heavy", 2) for _ in range(10)]
    sent += [await light.kiq("light") for _ in range(15)]
    await all_ended(sent)
    check_weights(events(redis_client), 40)


@pytest.mark.parametrize("policy", ["park", "wait"])
async def test_a_task_may_count_in_several_pools_and_its_own_full_one_keeps_nobody_else(
    app: Any, redis_url: str, redis_client: redis.Redis, policy: str
) -> None:
    both = app.both.kicker().with_labels(pool_on_full=policy)
    held = Held(redis_url, "api:a", 1, None)
    waiting = [await both.kiq("a") for _ in range(10)]
    for name in ("b", "c"):
        result = await (await both.kiq(name)).wait_result(check_interval=0.02, timeout=60)
        assert result.return_value[0] == f"api:{name} + db"
    assert not [name for name, _ in events(redis_client) if name == "a"]
    others = [await both.kiq(name) for name in "bcd" * 5]
    held.let_go()
    sent = [*waiting, *others]
    told = [(await one.wait_result(check_interval=0.02, timeout=60)).return_value for one in sent]
    assert told[0][:3] == ["api:a + db", "api:a", "db"]
    assert len({fence for *_, fence, _ in told}) == len(told), "each of them had a slot of its own"
    check_both(events(redis_client), 27)
    for key in ("db", "api:a", "api:b"):
        assert await Pool(key, 2, store=app.store).size() == 0


@pytest.mark.rabbitmq
@pytest.mark.parametrize("app", ["rabbitmq"], indirect=True)
async def test_partitions_weights_and_several_pools_hold_on_rabbitmq(
    app: Any, redis_url: str, redis_client: redis.Redis
) -> None:
    held = Held(redis_url, "shared")
    sent = [await app.share.kiq(tenant) for tenant in [*["noisy"] * 30, *OTHERS, *OTHERS]]
    await await_until("all wait", lambda: held.waiting() == len(sent), 60)
    held.let_go()
    await all_ended(sent)
    check_turns(redis_client, 30)
    redis_client.delete(HISTORY)
    heavy = {"pool": "heavy", "pool_size": 3}
    weights = [("light", 1)] * 10 + [("heavy", 2)] * 10 + [("light", 1)] * 10
    tasks = {weight: app.share.kicker().with_labels(pool_weight=weight, **heavy) for weight in (1, 2)}
    await all_ended([await tasks[one[1]].kiq(*one) for one in weights])
    check_weights(events(redis_client), 30)
    redis_client.delete(HISTORY)
    await all_ended([await app.both.kiq(name) for name in "abc" * 10])
    check_both(events(redis_client), 30)

    async def all_free() -> bool:
        pools = [Pool(key, 3, store=app.store) for key in ("shared", "heavy", "db", "api:a", "api:b", "api:c")]
        return not any([await pool.size() for pool in pools])

    await await_until("no slot is in use", all_free)


async def test_a_message_that_is_too_large_to_be_parked_is_not_sent_or_its_result_says_so(
    app: Any, redis_client: redis.Redis
) -> None:
    large, says = "x" * 60_000, r"6\d{4} bytes .* pool 'shared': max_parked_bytes=50000"
    with pytest.raises(MessageTooLargeError, match=says):
        await app.share.kiq(large)
    configure(max_parked_bytes=None)  # a sender that knows nothing of the worker's limit
    sent = await (await app.share.kiq(large)).wait_result(check_interval=0.02, timeout=60)
    assert re.search(says, str(sent.error))
    assert events(redis_client) == []
    await all_ended([await app.share.kicker().with_labels(pool_on_full="wait").kiq(large)])
    assert [len(tenant) for tenant, _ in events(redis_client)] == [60_000, 60_000]
