"""What the receiver, the broker and other middlewares see of messages that wait in the room."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Annotated, Any

import pytest
import redis
from taskiq import Context, TaskiqDepends, TaskiqMessage, TaskiqMiddleware, TaskiqResult
from taskiq.acks import AcknowledgeType

from slotline import Pool, RedisStore, configure
from slotline.caches import RedisCacheAdapter
from slotline.errors import InvalidOptionError
from taskiq_ext import CacheMiddleware, PoolLimitMiddleware
from tests.harness.waiting import await_until
from tests.integration.taskiq_rooms import LEASE, QueueBroker, Work, free, in_room, info, waiting, working


@pytest.fixture
def store(store: RedisStore) -> RedisStore:
    configure(heartbeat_lease=LEASE)
    return store


async def test_what_is_parked_is_acknowledged_at_once_and_runs_byte_for_byte(
    store: RedisStore, redis_client: redis.Redis
) -> None:
    broker = QueueBroker()
    seen: list[TaskiqMessage] = []

    class Watching(TaskiqMiddleware):
        def pre_execute(self, message: TaskiqMessage) -> TaskiqMessage:
            seen.append(message.model_copy(deep=True))
            return message

    broker.add_middlewares(Watching())
    work = Work(broker, store)
    async with working(broker):
        first = await work.limited.kiq(0)
        await await_until("it runs", lambda: work.started)
        labels = {"ünïcode": "\x00|%s", "priority": 7, "raw": b"\xff\x00"}
        second = await work.limited.kicker().with_labels(**labels).kiq(1)
        await await_until("the broker's copy is acknowledged", lambda: len(broker.acked) == 1)
        assert broker.acked == [broker.sent[1].message]
        assert (await info(store)).waiting == 1
        assert not await second.is_ready()
        work.go.set()
        assert [(await one.wait_result(timeout=20)).return_value for one in (first, second)] == [0, 1]
        await free(store)
        await await_until("the message has left the room", lambda: in_room(redis_client) == 0)
    assert seen[1] == seen[2]
    assert seen[1].labels.items() >= labels.items()


async def test_a_parked_message_is_no_error_no_result_and_no_warning_to_anybody(
    store: RedisStore, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    broker = QueueBroker()
    calls: list[str] = []

    class Watching(TaskiqMiddleware):
        def post_execute(self, message: TaskiqMessage, result: Any) -> None:
            calls.append(f"post_execute {type(result.error).__name__} {result.return_value!r}")

        def post_save(self, message: TaskiqMessage, result: Any) -> None:
            calls.append("post_save")

        def on_error(self, message: TaskiqMessage, result: Any, exception: BaseException) -> None:
            calls.append("on_error")

    broker.add_middlewares(Watching())
    work = Work(broker, store)
    async with working(broker):
        await work.limited.kiq(0)
        await work.limited.kiq(1)
        await waiting(store, 1)
        await await_until("it has been handled", lambda: calls)
        assert calls == ["post_execute NoResultError None"]
        assert len([line for line in caplog.messages if "is parked" in line]) == 1
        work.go.set()
        await await_until("both are saved", lambda: calls.count("post_save") == 2)
    assert "on_error" not in calls
    ours = [record for record in caplog.records if record.name.startswith(("taskiq", "slotline"))]
    assert not [record for record in ours if record.levelno >= logging.WARNING]


@pytest.mark.parametrize(
    ("ack_type", "in_room_then"),  # during the run, at its post_execute, and at its post_save
    [
        (AcknowledgeType.WHEN_RECEIVED, [0, 0, 0]),
        (AcknowledgeType.WHEN_EXECUTED, [1, 0, 0]),
        (AcknowledgeType.WHEN_SAVED, [1, 1, 1]),
    ],
)
async def test_the_claim_ends_when_the_broker_would_have_its_acknowledgement(
    store: RedisStore, redis_client: redis.Redis, ack_type: AcknowledgeType, in_room_then: list[int]
) -> None:
    broker = QueueBroker()
    seen: list[int] = []

    class Watching(TaskiqMiddleware):
        def post_execute(self, message: TaskiqMessage, result: Any) -> None:
            if result.return_value == "ran":
                seen.append(in_room(redis_client))

        def post_save(self, message: TaskiqMessage, result: Any) -> None:
            self.post_execute(message, result)

    broker.add_middlewares(Watching())
    work = Work(broker, store)

    @broker.task("watched", pool="api")
    async def watched() -> str:
        seen.append(in_room(redis_client))
        return "ran"

    async with working(broker, ack_type=ack_type):
        await work.limited.kiq(0)
        await await_until("it runs", lambda: work.started)
        await watched.kiq()
        await waiting(store, 1)
        work.go.set()
        await await_until("it is saved", lambda: len(seen) == 3)
        await await_until("the message has left the room", lambda: in_room(redis_client) == 0)
        await free(store)
    assert seen == in_room_then


@pytest.mark.needs("taskiq>=0.13", reason="the ack_type label")
async def test_a_task_that_acknowledges_by_itself_is_parked_and_settled_like_others(
    store: RedisStore, redis_client: redis.Redis
) -> None:
    broker = QueueBroker()
    work = Work(broker, store)
    seen: list[int] = []

    @broker.task("manual", pool="api", ack_type="manual")
    async def manual(context: Annotated[Context, TaskiqDepends()]) -> None:
        seen.append(in_room(redis_client))
        await context.ack()
        seen.append(in_room(redis_client))

    async with working(broker):
        await work.limited.kiq(0)
        await await_until("it runs", lambda: work.started)
        sent = await manual.kiq()
        await await_until("it is parked and acknowledged", lambda: broker.acked)
        work.go.set()
        assert not (await sent.wait_result(timeout=20)).is_err
    assert seen == [1, 0]


@pytest.mark.needs("taskiq>=0.13", reason="tasks that acknowledge by themselves")
async def test_what_ends_without_its_function_is_acknowledged_for_functions_that_do_so_themselves(
    store: RedisStore, redis_client: redis.Redis
) -> None:
    broker, go = QueueBroker(), asyncio.Event()
    failed: list[TaskiqMessage] = []

    class Failures(TaskiqMiddleware):
        def on_error(self, message: TaskiqMessage, result: TaskiqResult[Any], exception: BaseException) -> None:
            failed.append(message)

    cache = CacheMiddleware(RedisCacheAdapter(store=store), answer_senders=False)
    broker.add_middlewares(Failures(), cache, PoolLimitMiddleware(store, pools={"api": 1}))

    @broker.task("cached", cache_ttl=60)
    async def cached(context: Annotated[Context, TaskiqDepends()]) -> None:
        await go.wait()
        await context.ack()

    @broker.task("limited", pool="api")
    async def limited() -> None:
        pass

    async with working(broker, ack_type=AcknowledgeType.MANUAL), Pool("api", 1, store=store):
        hits = [await cached.kiq() for _ in range(3)]
        await await_until("two wait for the value of the third", lambda: len(broker.acked) == 2)
        go.set()
        for hit in hits:
            await hit.wait_result(timeout=20)
        await cached.kiq()
        await limited.kicker().with_labels(pool_on_full="drop").kiq()
        await limited.kicker().with_labels(pool_on_full="fail").kiq()
        await await_until("all are acknowledged", lambda: len(broker.acked) == 6)
        await await_until("none is left in the room", lambda: in_room(redis_client) == 0)
    assert [message.labels.get("ack_type") for message in failed] == [None, None], "it would be that of a retry"


async def test_a_copy_of_a_parked_or_running_message_does_not_run_again(
    store: RedisStore, redis_client: redis.Redis
) -> None:
    broker = QueueBroker()
    work = Work(broker, store, size=2)
    gate = asyncio.Event()

    @broker.task("gated", pool="api")
    async def gated(x: int) -> None:
        work.started.append(x)
        await gate.wait()

    async with working(broker):
        for x in (0, 1):
            await work.limited.kiq(x)
        await await_until("both run", lambda: len(work.started) == 2)
        await gated.kiq(2)
        await waiting(store, 1)
        broker.queue.put_nowait(broker.sent[2].message)
        await await_until("the copy is acknowledged", lambda: broker.acked.count(broker.sent[2].message) == 2)
        assert (await info(store)).waiting == 1
        work.go.set()
        await await_until("the parked one runs", lambda: 2 in work.started)
        broker.queue.put_nowait(broker.sent[2].message)
        await await_until("the copy is acknowledged", lambda: broker.acked.count(broker.sent[2].message) == 3)
        gate.set()
        await await_until("the room is empty", lambda: in_room(redis_client) == 0)
    assert sorted(work.started) == [0, 1, 2]


async def test_equal_messages_of_a_broker_that_never_repeats_one_all_run(store: RedisStore) -> None:
    broker = QueueBroker(asks_for_acks=False)
    work = Work(broker, store)
    async with working(broker):
        await work.limited.kiq(0)
        await await_until("it runs", lambda: work.started)
        for _ in range(3):
            await work.limited.kicker().with_task_id("nightly").kiq(1)
        await waiting(store, 3)
        work.go.set()
        await work.all_ended(4)
        await free(store)


async def test_a_message_without_a_task_frees_its_slot(store: RedisStore, caplog: pytest.LogCaptureFixture) -> None:
    parking = Work(QueueBroker(), store)
    async with working(parking.broker):
        await parking.limited.kiq(0)
        await await_until("it runs", lambda: parking.started)
        await parking.limited.kiq(1)
        await waiting(store, 1)
        parking.go.set()
        parking.broker.local_task_registry.clear()
        await await_until("it is not found", lambda: "is not found" in caplog.text)
        await free(store)


async def test_a_message_that_no_longer_needs_its_slot_gives_it_back(
    store: RedisStore, redis_client: redis.Redis
) -> None:
    broker = QueueBroker()
    broker.add_middlewares(CacheMiddleware(RedisCacheAdapter(store=store)))
    work = Work(broker, store)
    runs: list[int] = []

    @broker.task("cached", pool="api", cache_ttl=60)
    async def cached(x: int) -> int:
        runs.append(x)
        return 2 * x

    async with working(broker):
        await work.limited.kiq(0)
        await await_until("it runs", lambda: work.started)
        sent = [await cached.kiq(1) for _ in range(5)]
        await waiting(store, 5)
        work.go.set()
        assert [(await one.wait_result(timeout=20)).return_value for one in sent] == [2] * 5
        await await_until("all messages have left the room", lambda: in_room(redis_client) == 0)
        await free(store)
    assert runs == [1]


async def test_a_message_whose_limit_is_not_declared_any_more_fails_and_frees_its_slot(store: RedisStore) -> None:
    old, new = Work(QueueBroker(), store), QueueBroker()
    new.add_middlewares(PoolLimitMiddleware(store))
    new.task("limited")(_nothing)
    held = await Pool("api", 1, store=store).acquire()
    async with working(old.broker):
        sent = await old.limited.kiq(0)
        await waiting(store, 1)
    async with working(new):
        await Pool("api", 1, store=store).release(held)
        await await_until("it has a result", lambda: new.result_backend.is_result_ready(sent.task_id), timeout=20)
        assert isinstance((await new.result_backend.get_result(sent.task_id)).error, InvalidOptionError)
        await free(store)


async def _nothing(x: int) -> None:
    pass


async def test_a_middleware_that_raises_leaves_the_message_to_its_lease_and_frees_the_slot(
    store: RedisStore, redis_client: redis.Redis
) -> None:
    broker = QueueBroker()
    seen: list[float] = []

    class Raising(TaskiqMiddleware):
        def pre_execute(self, message: TaskiqMessage) -> TaskiqMessage:
            seen.append(time.monotonic())
            if len(seen) == 2:
                raise RuntimeError("on the way from the room to its limit")
            return message

    broker.add_middlewares(Raising())
    work = Work(broker, store)
    work.go.set()
    held = await Pool("api", 1, store=store).acquire()
    async with working(broker):
        await work.limited.kiq(1)
        await waiting(store, 1)
        await Pool("api", 1, store=store).release(held)
        await await_until("the middleware has raised", lambda: len(seen) == 2)
        await free(store)
        assert in_room(redis_client) == 1
        await work.all_ended(1)
        await await_until("the message has left the room", lambda: in_room(redis_client) == 0)
    assert seen[2] - seen[1] > LEASE / 2
