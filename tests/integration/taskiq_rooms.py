"""A worker in this process, on a broker that remembers what was sent and acknowledged."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import redis
from taskiq import AckableMessage, AsyncBroker, BrokerMessage
from taskiq.brokers.inmemory_broker import InmemoryResultBackend
from taskiq.receiver import Receiver

from slotline import Pool, RedisStore
from slotline.pools import PoolInfo
from taskiq_ext import PoolLimitMiddleware
from tests.harness.waiting import await_until

LEASE = 1.5


class QueueBroker(AsyncBroker):
    """A broker in memory that remembers what was sent and what was acknowledged."""

    def __init__(self, queue_name: str | None = "work", *, asks_for_acks: bool = True) -> None:
        super().__init__()
        self.result_backend = InmemoryResultBackend()
        self.queue_name, self.asks_for_acks = queue_name, asks_for_acks
        self.queue: asyncio.Queue[bytes] = asyncio.Queue()
        self.sent: list[BrokerMessage] = []
        self.acked: list[bytes] = []
        self.is_worker_process = True

    async def kick(self, message: BrokerMessage) -> None:
        self.sent.append(message)
        self.queue.put_nowait(message.message)

    async def listen(self) -> AsyncGenerator[bytes | AckableMessage, None]:
        while True:
            data = await self.queue.get()
            if self.asks_for_acks:
                yield AckableMessage(data=data, ack=lambda data=data: self.acked.append(data))
            else:
                yield data


@asynccontextmanager
async def working(broker: AsyncBroker, **options: Any) -> AsyncIterator[Receiver]:
    """Let a receiver work as ``taskiq worker`` does."""
    options = {"max_async_tasks": 10, "run_startup": True, **options}
    finish = asyncio.Event()
    receiver = Receiver(broker, **options)
    listening = asyncio.create_task(receiver.listen(finish))
    try:
        yield receiver
        finish.set()
        await asyncio.wait_for(listening, 20)
    finally:
        listening.cancel()
        await asyncio.wait({listening})
        await broker.shutdown()


class Work:
    """Tasks of one broker that note their runs, and go on when they are told to."""

    def __init__(self, broker: QueueBroker, store: Any, *, size: int = 1, **options: Any) -> None:
        self.broker, self.limits = broker, PoolLimitMiddleware(store, pools={"api": size}, **options)
        broker.add_middlewares(self.limits)
        self.started: list[int] = []
        self.ended: list[int] = []
        self.free: list[int] = []
        self.go = asyncio.Event()

        @broker.task("limited", pool="api")
        async def limited(x: int) -> int:
            self.started.append(x)
            await self.go.wait()
            self.ended.append(x)
            return x

        @broker.task("unlimited")
        async def unlimited(x: int) -> int:
            self.free.append(x)
            return x

        self.limited, self.unlimited = limited, unlimited

    async def all_ended(self, count: int, timeout: float = 30) -> None:
        await await_until(f"{count} runs have ended", lambda: len(self.ended) == count, timeout)


async def info(store: RedisStore) -> PoolInfo:
    return await Pool("api", 1, store=store).info()


async def waiting(store: RedisStore, count: int) -> None:
    async def there() -> bool:
        return (await info(store)).waiting == count

    await await_until(f"{count} messages are parked", there, timeout=20)


async def free(store: RedisStore) -> None:
    async def is_free() -> bool:
        return (await info(store)).used == 0

    await await_until("no slot is taken", is_free, timeout=20)


def in_room(client: redis.Redis) -> int:
    """Return how many messages the room has, parked or taken and not settled."""
    hashes = [key for key in client.scan_iter() if client.type(key) == b"hash"]
    return sum(field.startswith(b"m:") for key in hashes for field in client.hkeys(key))
