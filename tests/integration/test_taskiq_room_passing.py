"""A run from the room that ends makes way for the next one at once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import redis
from taskiq import AckableMessage, TaskiqResult
from taskiq.brokers.inmemory_broker import InmemoryResultBackend

from slotline import Pool, RedisStore, configure
from slotline.pools import Room
from taskiq_ext._delivery import TakenDelivery
from tests.harness.redis_server import RedisServer
from tests.harness.waiting import await_until
from tests.integration.taskiq_rooms import LEASE, QueueBroker, Work, in_room, info, waiting, working


@pytest.fixture
def store(store: RedisStore) -> RedisStore:
    configure(heartbeat_lease=LEASE)
    return store


class Results(InmemoryResultBackend[Any]):
    """Notes in ``events`` when a result is written."""

    def __init__(self, events: list[str]) -> None:
        super().__init__()
        self.events = events

    async def set_result(self, task_id: str, result: TaskiqResult[Any]) -> None:
        self.events.append(f"result {result.return_value}")
        await super().set_result(task_id, result)


def noting(work: Work) -> list[str]:
    """Return what happens, as it happens."""
    events: list[str] = []
    work.broker.result_backend = Results(events)

    @work.broker.task("noted", pool="api")
    async def noted(x: int) -> int:
        events.append(f"begin {x}")
        await asyncio.sleep(0.01)
        events.append(f"end {x}")
        return x

    work.limited = noted  # type: ignore[assignment] # another function
    return events


async def some_parked(work: Work, store: RedisStore, count: int) -> None:
    for x in range(count):
        await work.limited.kiq(x)
        await waiting(store, x + 1)


async def test_the_next_run_begins_before_the_result_of_the_last_one_is_written(store: RedisStore) -> None:
    work = Work(QueueBroker(), store)
    events = noting(work)
    held = await Pool("api", 1, store=store).acquire()
    async with working(work.broker):
        await some_parked(work, store, 5)
        await Pool("api", 1, store=store).release(held)
        await await_until("all have run", lambda: "result 4" in events)
    assert [event for event in events if not event.startswith("result")] == [
        f"{what} {x}" for x in range(5) for what in ("begin", "end")
    ]
    for x in range(4):
        assert events.index(f"begin {x + 1}") < events.index(f"result {x}")


async def test_a_turn_costs_one_command_for_both_and_one_for_the_end_of_the_message(
    store: RedisStore, redis_server: RedisServer, redis_client: redis.Redis
) -> None:
    configure(heartbeat_lease=60)
    work = Work(QueueBroker(), store)
    events = noting(work)
    held = await Pool("api", 1, store=store).acquire()
    async with working(work.broker):
        await some_parked(work, store, 12)
        await Pool("api", 1, store=store).release(held)
        # By then the server knows each of the scripts: the first of its kind comes twice, once with its text.
        await await_until("the first has left the room", lambda: in_room(redis_client) < 12)
        with redis_server.recording() as sent:
            await await_until("ten have ended", lambda: "result 11" in events)
    assert [command.name for command in sent if command.name != "evalsha"] == []
    assert len(sent) <= 2 * 11 + 1, "and one that finds nothing left"


@pytest.mark.needs("taskiq>=0.13", reason="older receivers ask for the next message before they have a place for it")
async def test_a_worker_without_a_place_for_another_only_gives_the_slot_back(
    store: RedisStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    passed: list[object] = []
    pass_on = Room.pass_on

    async def counted(self: Room, *what: Any) -> Any:
        passed.append(what)
        return await pass_on(self, *what)

    monkeypatch.setattr(Room, "pass_on", counted)
    work = Work(QueueBroker(), store)
    held = await Pool("api", 1, store=store).acquire()
    async with working(work.broker, max_async_tasks=1):
        await some_parked(work, store, 5)
        await Pool("api", 1, store=store).release(held)
        work.go.set()
        await work.all_ended(5)
    assert work.ended == list(range(5))
    assert passed == []


@asynccontextmanager
async def one_taken(store: RedisStore) -> AsyncIterator[tuple[Any, TakenDelivery]]:
    """Have three messages parked and one of them taken, by a receiver that asks for no other."""
    work = Work(QueueBroker(), store)
    held = await Pool("api", 1, store=store).acquire()
    await work.broker.startup()
    async with working(work.broker, run_startup=False):
        await some_parked(work, store, 3)
    feed = work.broker.listen()
    await Pool("api", 1, store=store).release(held)
    message = await asyncio.wait_for(anext(feed), 20)
    assert isinstance(message, AckableMessage)
    assert isinstance(message.data, TakenDelivery)
    message.data.feed.started(message.data)
    yield feed, message.data
    await feed.aclose()
    await work.broker.shutdown()


async def test_a_message_that_the_receiver_does_not_ask_for_in_time_is_put_back(store: RedisStore) -> None:
    async with one_taken(store) as (_, delivery):
        taken = delivery._taken
        assert delivery.feed.has_place_of(delivery) is False
        await delivery.feed.pass_on(taken.pool, taken.slot)
        await taken.settle()
        assert (await info(store)).used == 1
        await waiting(store, 2)
        assert (await info(store)).used == 0


async def test_a_message_that_comes_when_the_worker_has_stopped_listening_is_put_back(store: RedisStore) -> None:
    async with one_taken(store) as (feed, delivery):
        taken = delivery._taken
        await feed.aclose()
        await delivery.feed.pass_on(taken.pool, taken.slot)
        await taken.settle()
        await waiting(store, 2)
        assert (await info(store)).used == 0


async def test_a_message_that_waits_to_be_asked_for_is_handed_out_next(store: RedisStore) -> None:
    async with one_taken(store) as (feed, delivery):
        taken = delivery._taken
        await delivery.feed.pass_on(taken.pool, taken.slot)
        message = await asyncio.wait_for(anext(feed), 20)
        await taken.settle()
        assert isinstance(message.data, TakenDelivery)
        assert message.data._taken.place > taken.place
