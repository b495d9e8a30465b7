"""A task with bad labels is not registered, a call with bad labels is not sent, and a message with bad labels fails."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated, Any

import pytest
from taskiq import InMemoryBroker, TaskiqDepends, TaskiqMessage
from taskiq.brokers.shared_broker import async_shared_broker

from slotline import Slot
from slotline.errors import InvalidOptionError, PoolFullError
from slotline.stores import MemoryStore
from taskiq_ext import CacheMiddleware, ExecutorMiddleware, PoolLimitMiddleware, current_slot
from taskiq_ext._labels import CACHE_LABELS, POOL_LABELS, pick
from tests.unit.test_taskiq_labels import function


@pytest.mark.parametrize(
    "options",
    [
        {"pools": {"a": 0}},
        {"pools": {"a": {"size": 1, "colour": "red"}}},
        {"pools": {"a": {}}},
        {"pools": {"a": {"burst": 2}}},
        {"pools": {"a": {"rate": "often"}}},
        {"pools": {"": 1}},
        {"pools": {"a": "3"}},
        {"pools": ["a"]},
        {"store": "redis://127.0.0.1"},
        {"on_store_error": "shrug"},
    ],
)
def test_a_bad_argument_of_the_middleware_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InvalidOptionError):
        PoolLimitMiddleware(**options)


def test_other_peoples_labels_are_left_alone() -> None:
    labels = {"pooling": 1, "cached_at": 2, "retry_on_error": True, "queue_name": "a"}
    assert pick(POOL_LABELS, labels) == {}
    assert pick(CACHE_LABELS, labels) == {}


@pytest.fixture
async def broker() -> AsyncIterator[InMemoryBroker]:
    broker = InMemoryBroker().with_middlewares(PoolLimitMiddleware(MemoryStore()))
    yield broker
    await broker.shutdown()


async def test_a_task_with_bad_labels_is_not_registered(broker: InMemoryBroker) -> None:
    with pytest.raises(InvalidOptionError, match="pool_size"):

        @broker.task(task_name="bad", pool="a", pool_size=-1)
        async def bad() -> None: ...

    with pytest.raises(InvalidOptionError, match="pool_size"):
        broker.register_task(function, task_name="bad", pool="a", pool_size=-1)
    assert broker.find_task("bad") is None


async def test_a_task_registered_before_the_middleware_is_checked_when_it_comes() -> None:
    broker = InMemoryBroker()

    @broker.task(pool_size=3)
    async def early() -> None: ...

    with pytest.raises(InvalidOptionError, match="pool_size") as caught:
        broker.add_middlewares(PoolLimitMiddleware(MemoryStore()))
    assert caught.value.__notes__ == [f"It is an option of task {early.task_name!r}."]
    await broker.shutdown()


async def test_a_bad_shared_task_is_refused_at_startup(broker: InMemoryBroker) -> None:
    @async_shared_broker.task(pool="a", pool_size=-1)
    async def shared() -> None: ...

    try:
        with pytest.raises(InvalidOptionError, match="pool_size") as caught:
            broker.middlewares[0].startup()
        assert caught.value.__notes__ == [f"It is an option of task {shared.task_name!r}."]
    finally:
        async_shared_broker.global_task_registry.pop(shared.task_name)


async def test_bad_labels_of_a_call_are_refused_when_it_is_sent(broker: InMemoryBroker) -> None:
    @broker.task(pool="a", pool_size=1)
    async def work(x: int) -> int:
        return x

    for labels in ({"pool_size": True}, {"pool_timeout": "nan"}, {"pool_sizes": 2}, {"pool": "a:{y}"}):
        with pytest.raises(InvalidOptionError, match=next(iter(labels))):
            await work.kicker().with_labels(**labels).kiq(1)
    sent = await work.kicker().with_labels(pool_size=2, pool_timeout=None).kiq(1)  # type: ignore[arg-type] # taskiq's own hint forbids None
    assert (await sent.wait_result(check_interval=0.01)).return_value == 1


async def test_a_call_may_lift_the_limit(broker: InMemoryBroker) -> None:
    @broker.task(pool="a", pool_size=1)
    async def limited(slot: Annotated[Slot | None, TaskiqDepends(current_slot)]) -> bool:
        return slot is not None

    for pool, expected in (("a", True), (None, False), ("None", False)):
        sent = await limited.kicker().with_labels(pool=pool).kiq()  # type: ignore[arg-type, call-overload] # as above
        assert (await sent.wait_result(check_interval=0.01)).return_value is expected


async def test_a_message_that_arrives_with_bad_labels_ends_with_the_error_as_its_result(broker: InMemoryBroker) -> None:
    ran = []

    @broker.task
    async def work(x: int) -> int:
        ran.append(x)
        return x

    message = TaskiqMessage(
        task_id="1", task_name=work.task_name, labels={"pool": "a", "pool_size": "-3"}, args=[1], kwargs={}
    )
    await broker.kick(broker.formatter.dumps(message))
    await broker.wait_all()
    result = await broker.result_backend.get_result("1")
    assert isinstance(result.error, InvalidOptionError)
    assert "pool_size" in str(result.error)
    assert ran == []


async def test_labels_without_types_count(broker: InMemoryBroker) -> None:
    @broker.task
    async def work(x: int) -> int:
        await asyncio.sleep(0.1)
        return x

    for task_id, size in (("1", "1"), ("2", 1)):
        labels = {"pool": "a", "pool_size": size, "pool_on_full": "fail"}
        message = TaskiqMessage(task_id=task_id, task_name=work.task_name, labels=labels, args=[1], kwargs={})
        await broker.kick(broker.formatter.dumps(message))
    await broker.wait_all()
    assert (await broker.result_backend.get_result("1")).error is None
    assert isinstance((await broker.result_backend.get_result("2")).error, PoolFullError)


async def test_the_workers_own_labels_hold_for_messages_without_them(broker: InMemoryBroker) -> None:
    @broker.task(pool="a", pool_size=1, pool_on_full="fail")
    async def work(x: int) -> int:
        await asyncio.sleep(0.1)
        return x

    for task_id in ("1", "2"):
        message = TaskiqMessage(task_id=task_id, task_name=work.task_name, labels={}, args=[1], kwargs={})
        await broker.kick(broker.formatter.dumps(message))
    await broker.wait_all()
    assert isinstance((await broker.result_backend.get_result("2")).error, PoolFullError)


@pytest.mark.parametrize("shared", [False, True])
async def test_labels_of_a_call_do_not_stick_to_the_task(broker: InMemoryBroker, shared: bool) -> None:
    registering = async_shared_broker if shared else broker

    @registering.task(pool="a", pool_size=1)
    async def work(x: int) -> int:
        return x

    try:
        broker.middlewares[0].startup()
        async_shared_broker.default_broker(broker)
        await work.kicker().with_labels(pool_size=2, other="label").kiq(1)
        await broker.wait_all()
        assert work.labels == {"pool": "a", "pool_size": 1}
    finally:
        async_shared_broker.global_task_registry.pop(work.task_name, None)
        async_shared_broker._default_broker = None


async def test_one_middleware_serves_one_broker(broker: InMemoryBroker) -> None:
    other = InMemoryBroker()
    with pytest.raises(InvalidOptionError, match="broker"):
        other.add_middlewares(broker.middlewares[0])
    await other.shutdown()


def executors() -> ExecutorMiddleware:
    return ExecutorMiddleware({"cpu": {"max_pools": 1}})


@pytest.mark.parametrize("make", [PoolLimitMiddleware, CacheMiddleware, executors])
async def test_a_broker_has_one_middleware_of_a_kind(make: Any) -> None:
    broker = InMemoryBroker().with_middlewares(make())
    with pytest.raises(InvalidOptionError, match="one for each broker"):
        broker.add_middlewares(make())
    await broker.shutdown()
