"""What becomes of a worker's source of messages when the worker, or the source, ends in another way than usual."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import pytest
from taskiq import AckableMessage

from slotline import RedisStore, configure
from taskiq_ext._room import waiting_room
from tests.integration.taskiq_rooms import LEASE, QueueBroker, Work, working


@pytest.fixture
def store(store: RedisStore) -> RedisStore:
    configure(heartbeat_lease=LEASE)
    return store


async def test_a_read_that_fails_as_the_worker_ends_keeps_nothing_from_being_given_back(
    store: RedisStore, caplog: pytest.LogCaptureFixture
) -> None:
    class Breaking(QueueBroker):
        closed = False

        async def listen(self) -> AsyncGenerator[bytes | AckableMessage, None]:
            try:
                await asyncio.Event().wait()
                yield b""
            except asyncio.CancelledError:
                raise ConnectionError("reset") from None
            finally:
                self.closed = True

    broker = Breaking()
    Work(broker, store)
    await broker.startup()
    asked = asyncio.ensure_future(anext(broker.listen()))
    asked.cancel()  # before it has begun, and with no word to the iterator, as Taskiq 0.12 stops
    await asyncio.wait({asked})
    await asyncio.sleep(0)
    await broker.shutdown()
    assert broker.closed
    assert "ConnectionError: reset" in caplog.text


async def test_a_broker_may_have_an_iterator_that_cannot_be_closed(store: RedisStore) -> None:
    class Messages:
        def __init__(self, broker: QueueBroker) -> None:
            self.broker = broker

        def __aiter__(self) -> Messages:
            return self

        async def __anext__(self) -> bytes:
            return await self.broker.queue.get()

    broker = QueueBroker()
    broker.listen = lambda: Messages(broker)  # type: ignore[method-assign,assignment,return-value]
    work = Work(broker, store)
    work.go.set()
    async with working(broker):
        await work.limited.kiq(1)
        await work.all_ended(1)


async def test_a_broker_whose_worker_begins_again_keeps_nothing_of_the_last_time(store: RedisStore) -> None:
    broker = QueueBroker()
    work = Work(broker, store)
    work.go.set()
    for times in range(1, 4):
        async with working(broker):
            await work.limited.kiq(times)
            await work.all_ended(times)
        assert not waiting_room(broker).feeds
