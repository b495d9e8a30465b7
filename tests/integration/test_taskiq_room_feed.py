"""When a worker takes from the room, what it does as it stops, and which messages are parked at all."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from typing import Any

import pytest
import redis
from taskiq import AckableMessage, InMemoryBroker
from taskiq.brokers.shared_broker import AsyncSharedBroker
from taskiq.decor import AsyncTaskiqDecoratedTask
from taskiq.formatters.json_formatter import JSONFormatter

from slotline import MemoryStore, Pool, RedisStore, configure
from slotline.errors import InvalidOptionError
from slotline.pools import Room
from taskiq_ext import PoolLimit, PoolLimitMiddleware
from tests.harness.proxy import TcpProxy
from tests.harness.waiting import await_until
from tests.integration.taskiq_rooms import LEASE, QueueBroker, Work, in_room, info, waiting, working


@pytest.fixture
def store(store: RedisStore) -> RedisStore:
    configure(heartbeat_lease=LEASE)
    return store


async def test_a_busy_worker_lets_no_slot_wait_behind_its_queue_and_starves_no_parked_message(
    store: RedisStore,
) -> None:
    broker = QueueBroker()
    work = Work(broker, store, size=3)
    gate = asyncio.Event()

    @broker.task("step")
    async def step(x: int) -> None:
        await gate.wait()
        await asyncio.sleep(0.01)
        work.ended.append(x)

    held = [await Pool("api", 3, store=store).acquire() for _ in range(3)]
    async with working(broker, max_async_tasks=1, max_prefetch=4):
        for x in range(3):
            await work.limited.kiq(x)
        await waiting(store, 3)
        work.go.set()
        for x in range(100, 140):
            await step.kiq(x)
        await await_until("the worker is full", lambda: broker.queue.qsize() <= 35)
        for slot in held:
            await Pool("api", 3, store=store).release(slot)
        assert (await info(store)).used <= 1
        gate.set()
        await work.all_ended(43)
    assert [x for x in work.ended if x < 3] == [0, 1, 2]
    assert work.ended.index(1) < 42, "the parked ones came when nothing else was left"


@pytest.mark.parametrize("asks_for_acks", [True, False])
async def test_a_stopping_worker_loses_nothing_that_it_has_read(store: RedisStore, asks_for_acks: bool) -> None:
    broker = QueueBroker(asks_for_acks=asks_for_acks)
    work = Work(broker, store)
    held = await Pool("api", 1, store=store).acquire()
    blocked = asyncio.Event()

    @broker.task("block")
    async def block() -> None:
        await blocked.wait()

    async with working(broker, max_async_tasks=1):
        await work.limited.kiq(0)
        await waiting(store, 1)
        await Pool("api", 1, store=store).release(held)
        await await_until("the parked message has overtaken the read", lambda: work.started)
        for x in range(3):
            await work.unlimited.kiq(x)
        asyncio.get_running_loop().call_later(0.2, work.go.set)
    async with working(broker, max_async_tasks=1):
        await await_until("all have run", lambda: sorted(work.free) == [0, 1, 2], timeout=20)
    assert len(broker.acked) == (len(broker.sent) if asks_for_acks else 0)


@pytest.mark.needs("taskiq>=0.13", reason="older receivers drop what they have read when they stop")
@pytest.mark.parametrize("asks_for_acks", [True, False])
async def test_workers_that_come_and_go_lose_nothing_and_repeat_nothing(store: RedisStore, asks_for_acks: bool) -> None:
    queue: asyncio.Queue[bytes] = asyncio.Queue()
    ran: Counter[str] = Counter()
    running = most = 0

    def make() -> tuple[QueueBroker, AsyncTaskiqDecoratedTask[Any, Any], AsyncTaskiqDecoratedTask[Any, Any]]:
        broker = QueueBroker(asks_for_acks=asks_for_acks)
        broker.queue = queue
        broker.add_middlewares(PoolLimitMiddleware(store))

        @broker.task("limited", pool="api", pool_size=2)
        async def limited(x: int) -> None:
            nonlocal running, most
            running += 1
            most = max(most, running)
            await asyncio.sleep(random.uniform(0, 0.01))
            running -= 1
            ran[f"limited {x}"] += 1

        @broker.task("unlimited")
        async def unlimited(x: int) -> None:
            await asyncio.sleep(random.uniform(0, 0.02))
            ran[f"unlimited {x}"] += 1

        return broker, limited, unlimited

    _, limited, unlimited = make()
    for x in range(150):
        await limited.kiq(x)
        await unlimited.kiq(x)

    async def work_in_short_shifts() -> None:
        while len(ran) < 300:
            options = {"max_async_tasks": random.choice([1, 2, 10]), "max_prefetch": random.choice([0, 5])}
            async with working(make()[0], **options):
                await asyncio.sleep(random.uniform(0, 0.3))

    await asyncio.wait_for(asyncio.gather(*(work_in_short_shifts() for _ in range(3))), 60)
    assert set(ran.values()) == {1}
    assert most <= 2
    assert ((await info(store)).used, (await info(store)).waiting) == (0, 0)


async def test_a_slot_that_a_run_from_the_room_gives_back_goes_on_before_its_call_is_heard(
    store: RedisStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    configure(heartbeat_lease=60)  # by itself a worker would look again in a quarter of a minute
    heard, hears = Room._heard, [True]
    monkeypatch.setattr(Room, "_heard", lambda room, message: heard(room, message) if hears else None)
    work = Work(QueueBroker(), store)
    held = await Pool("api", 1, store=store).acquire()
    async with working(work.broker):
        for x in range(5):
            await work.limited.kiq(x)
        await waiting(store, 5)
        await Pool("api", 1, store=store).release(held)
        await await_until("the first runs", lambda: work.started)
        hears.clear()
        work.go.set()
        await work.all_ended(5, timeout=10)
    assert sorted(work.ended) == list(range(5))


async def test_what_was_taken_and_not_begun_is_given_back_when_the_worker_ends(store: RedisStore) -> None:
    broker = QueueBroker()
    work = Work(broker, store)
    await broker.startup()
    held = await Pool("api", 1, store=store).acquire()
    async with working(broker, run_startup=False):
        await work.limited.kiq(0)
        await waiting(store, 1)
    feed = broker.listen()
    await Pool("api", 1, store=store).release(held)
    message = await asyncio.wait_for(anext(feed), 20)
    assert isinstance(message, AckableMessage)
    assert ((await info(store)).used, (await info(store)).waiting) == (1, 0)
    await feed.aclose()
    await broker.shutdown()
    assert ((await info(store)).used, (await info(store)).waiting) == (0, 1)


async def test_a_message_that_was_read_and_not_handed_out_is_sent_again_without_its_delay(store: RedisStore) -> None:
    broker = QueueBroker()
    work = Work(broker, store)
    held = await Pool("api", 1, store=store).acquire()
    async with working(broker):
        await work.limited.kiq(0)
        await waiting(store, 1)
    feed = broker.listen()
    await Pool("api", 1, store=store).release(held)
    await asyncio.wait_for(anext(feed), 20)  # it has overtaken a read
    await work.unlimited.kicker().with_labels(delay=5, queue_name="work").kiq(1)
    await await_until("it has been read", broker.queue.empty)
    await feed.aclose()
    await broker.shutdown()
    first, again = broker.sent[1:]
    assert (again.message, again.task_id, again.task_name) == (first.message, first.task_id, first.task_name)
    assert again.labels == {"queue_name": "work"}
    assert broker.acked == [broker.sent[0].message, first.message]


async def test_a_read_that_nobody_waits_for_any_more_ends_with_the_broker(store: RedisStore) -> None:
    broker = QueueBroker()
    work = Work(broker, store)
    await broker.startup()
    asked = asyncio.ensure_future(anext(broker.listen()))
    asked.cancel()  # before it has begun, and with no word to the iterator, as Taskiq 0.12 stops
    await asyncio.wait({asked})
    await work.unlimited.kiq(1)
    await await_until("it has been read", broker.queue.empty)
    await broker.shutdown()
    assert [message.message for message in broker.sent] == [broker.sent[0].message] * 2, "it was sent again"
    assert broker.acked == [broker.sent[0].message]


async def test_brokers_of_one_process_keep_to_their_own_lanes(store: RedisStore) -> None:
    one, two = Work(QueueBroker("one"), store), Work(QueueBroker("two"), store)
    async with working(one.broker), working(two.broker):
        for x in range(10):
            await (one if x % 2 else two).limited.kiq(x)
        await waiting(store, 9)
        one.go.set()
        two.go.set()
        await one.all_ended(5)
        await two.all_ended(5)
    assert {x % 2 for x in one.ended} == {1}
    assert {x % 2 for x in two.ended} == {0}


async def test_messages_without_a_limit_go_on_while_the_store_is_away(
    redis_proxy: TcpProxy,
) -> None:
    configure(heartbeat_lease=LEASE)
    far = RedisStore(redis_proxy.redis_url, timeout=0.5, retries=1)
    work = Work(QueueBroker(), far, size=1)
    async with working(work.broker):
        await work.unlimited.kiq(0)
        await await_until("the worker works", lambda: work.free)
        redis_proxy.refuse()
        sent = [await work.limited.kiq(x) for x in range(3)]
        for x in range(1, 20):
            await work.unlimited.kiq(x)
        await await_until("the unlimited tasks have run", lambda: len(work.free) == 20, timeout=10)
        assert not work.started
        redis_proxy.resume()
        work.go.set()
        await work.all_ended(3)
        assert sorted([(await one.wait_result(timeout=20)).return_value for one in sent]) == [0, 1, 2]
    await far.close()


async def test_parking_is_refused_where_processes_do_not_share_the_store() -> None:
    broker = QueueBroker()
    broker.add_middlewares(PoolLimitMiddleware(MemoryStore()))
    with pytest.raises(InvalidOptionError, match="pool_on_full"):
        broker.task("refused", pool="api", pool_size=1, pool_on_full="park")(_nothing)
    late = QueueBroker()
    late.add_middlewares(PoolLimitMiddleware())
    late.task("refused", pool="api", pool_size=1, pool_on_full="park")(_nothing)
    with pytest.raises(InvalidOptionError, match="pool_on_full"):
        await late.startup()


def test_what_is_parked_has_no_timeout() -> None:
    with pytest.raises(InvalidOptionError, match="pool_timeout"):
        PoolLimit(size=1, on_full="park", timeout=5)


def _nothing() -> None:
    pass


@pytest.mark.parametrize("labels", [{}, {"pool_on_full": "park"}])
async def test_a_broker_that_delivers_nothing_again_holds_its_messages_itself(
    store: RedisStore, labels: dict[str, Any]
) -> None:
    broker = InMemoryBroker()
    broker.add_middlewares(PoolLimitMiddleware(store))
    running = most = 0

    @broker.task("work", pool="api", pool_size=2, **labels)
    async def work(x: int) -> int:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.01)
        running -= 1
        return x

    sent = [await work.kiq(x) for x in range(8)]
    assert [(await one.wait_result(timeout=20)).return_value for one in sent] == list(range(8))
    assert most <= 2
    await broker.shutdown()


@pytest.mark.parametrize(
    ("labels", "parks"),
    [({}, True), ({"pool_on_full": "park"}, True), ({"pool_timeout": 60}, False), ({"pool_on_full": "wait"}, False)],
)
async def test_the_label_decides_between_parking_and_waiting(
    store: RedisStore, redis_client: redis.Redis, labels: dict[str, Any], parks: bool
) -> None:
    work = Work(QueueBroker(), store)
    async with working(work.broker):
        await work.limited.kiq(0)
        await await_until("it runs", lambda: work.started)
        await work.limited.kicker().with_labels(**labels).kiq(1)
        await waiting(store, 1)
        assert in_room(redis_client) == parks
        work.go.set()
        await work.all_ended(2)


@pytest.mark.parametrize(("lane", "parks"), [(None, False), ("mine", True)])
async def test_a_broker_whose_queue_is_not_known_parks_in_the_lane_that_it_is_given(
    store: RedisStore, redis_client: redis.Redis, lane: str | None, parks: bool
) -> None:
    work = Work(QueueBroker(None), store, lane=lane)
    async with working(work.broker):
        await work.limited.kiq(0)
        await await_until("it runs", lambda: work.started)
        await work.limited.kiq(1)
        await waiting(store, 1)
        assert in_room(redis_client) == parks
        work.go.set()
        await work.all_ended(2)


@pytest.mark.parametrize("kind", ["PubSubBroker", "ZeroMQBroker"])
async def test_a_broadcast_is_parked_only_if_its_label_says_so(
    store: RedisStore, redis_client: redis.Redis, kind: str
) -> None:
    work = Work(type(kind, (QueueBroker,), {})(), store)
    async with working(work.broker):
        await work.limited.kiq(0)
        await await_until("it runs", lambda: work.started)
        await work.limited.kiq(1)
        await waiting(store, 1)
        assert in_room(redis_client) == 0
        await work.limited.kicker().with_labels(pool_on_full="park").kiq(2)
        await waiting(store, 2)
        assert in_room(redis_client) == 1
        work.go.set()
        await work.all_ended(3)


async def test_shared_tasks_are_parked_like_others(store: RedisStore, redis_client: redis.Redis) -> None:
    broker, shared = QueueBroker(), AsyncSharedBroker()
    work = Work(broker, store)
    shared.default_broker(broker)

    @shared.task("shared", pool="api")
    async def task(x: int) -> int:
        return x

    try:
        async with working(broker):
            await work.limited.kiq(0)
            await await_until("it runs", lambda: work.started)
            sent = await task.kiq(7)
            await waiting(store, 1)
            assert in_room(redis_client) == 1
            work.go.set()
            assert (await sent.wait_result(timeout=20)).return_value == 7
    finally:
        shared.global_task_registry.pop("shared")


async def test_a_room_full_of_messages_with_free_slots_does_not_shut_the_broker_out(store: RedisStore) -> None:
    work = Work(QueueBroker(), store, size=50)
    work.go.set()
    pool = Pool("api", 50, store=store)
    held = [await pool.acquire() for _ in range(50)]
    async with working(work.broker, max_async_tasks=1):
        for x in range(120):
            await work.limited.kiq(x)
        await waiting(store, 120)
        for x in range(10):
            await work.unlimited.kiq(x)
        await await_until("they have run", lambda: len(work.free) == 10)
        for slot in held:
            await pool.release(slot)
        for x in range(10, 20):
            await work.unlimited.kiq(x)
        await await_until("they have run", lambda: len(work.free) == 20)
        assert len(work.ended) < 120
        await work.all_ended(120)


async def test_a_custom_lane_and_formatter_are_kept(store: RedisStore, redis_client: redis.Redis) -> None:
    broker = QueueBroker()
    work = Work(broker, store, lane="elsewhere")
    broker.formatter = JSONFormatter()
    stranger = Work(QueueBroker(), store)
    async with working(broker), working(stranger.broker):
        await work.limited.kiq(0)
        await await_until("it runs", lambda: work.started)
        await work.limited.kiq(1)
        await waiting(store, 1)
        work.go.set()
        await work.all_ended(2)
    assert stranger.started == []
