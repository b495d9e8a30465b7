"""The server is killed, stands still, or refuses to write, while slots are held and all kinds of waiters wait."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable

import pytest

from slotline import Pool, PoolFullError, RedisStore, Slot, StoreUnavailableError, configure
from slotline.pools import Parked, Place, Room
from tests.faults.pool_history import PoolHistory
from tests.harness.redis_server import RedisServer
from tests.harness.waiting import await_until

SOON = 20.0


class Crowd:
    """A pool of one slot, held; a coroutine, a thread and two parked messages wait for it."""

    def __init__(self, url: str, history: PoolHistory, *, timeout: float, retries: int = 3) -> None:
        self.store = RedisStore(url, timeout=timeout, retries=retries)
        self.lost: list[Slot] = []
        self.pool = Pool("p", 1, slot_exp=None, store=self.store, on_lost=self.lost.append)
        self.room = Room(self.store, ["q"])
        self.history = history
        self.served: list[str] = []

    async def gather(self) -> None:
        assert await self.room.take() is None  # it listens
        self.held = await self.pool.acquire()
        self.history.enter(self.held.fence)
        self.callers = [asyncio.create_task(self.call("coroutine", self.wait))]
        await self.waiting(1)
        self.callers.append(asyncio.create_task(self.call("thread", self.wait_in_thread)))
        await self.waiting(2)
        for message in (b"first", b"second"):
            assert isinstance(await self.room.park(self.pool, message, lane="q"), Parked)

    async def waiting(self, count: int) -> None:
        async def look() -> bool:
            return (await self.pool.info()).waiting == count

        await await_until(f"{count} wait", look)

    async def wait(self) -> Slot:
        return await self.pool.acquire(timeout=None)

    async def wait_in_thread(self) -> Slot:
        return await asyncio.to_thread(self.pool.sync.acquire, timeout=None)

    async def call(self, name: str, wait: Callable[[], asyncio.Future]) -> None:
        """Wait for a slot, and again if the store is away: that is the caller's to decide."""
        while True:
            try:
                slot = await wait()
                break
            except StoreUnavailableError:
                await asyncio.sleep(0.05)
        self.inside(name, slot)
        await self.pool.release(slot)

    def inside(self, name: str, slot: Slot) -> None:
        assert slot.lost is False
        self.history.enter(slot.fence, message=name)
        self.served.append(name)
        self.history.leave(slot.fence, message=name)

    def leave(self) -> asyncio.Future[bool]:
        self.history.leave(self.held.fence)
        return self.pool.release(self.held)

    async def take(self) -> bool:
        try:
            taken = await self.room.take()
        except StoreUnavailableError:
            return False
        if taken is not None:
            self.inside(taken.message.decode(), taken.slot)
            await self.pool.release(taken.slot)
            await taken.settle()
        return taken is not None

    async def all_served(self, *names: str) -> None:
        """Wait until all have been, each once, and never two at a time."""

        async def look() -> bool:
            await self.take()
            return len(self.served) >= len(names)

        await await_until("everybody is served", look, timeout=60)
        await asyncio.gather(*self.callers)
        assert sorted(self.served) == sorted(names)
        assert self.history.most_inside() == 1
        info = await self.pool.info()
        assert (info.used, info.waiting) == (0, 0)

    async def close(self) -> None:
        self.room.close()
        await self.store.close()


@pytest.fixture
async def crowd_of(redis_client) -> AsyncIterator[Callable[..., Crowd]]:
    """Makes a crowd; its history is kept by another server."""
    made: list[Crowd] = []

    def make(server: RedisServer, **options) -> Crowd:
        made.append(Crowd(server.url, PoolHistory(redis_client), **options))
        return made[-1]

    yield make
    for crowd in made:
        await crowd.close()


async def test_a_server_that_is_killed_and_comes_back_with_its_data_loses_nobody(make_redis, crowd_of):
    configure(heartbeat_lease=30.0)
    server = make_redis(keep_data=True)
    crowd = crowd_of(server, timeout=1, retries=8)
    await crowd.gather()
    server.kill()
    await asyncio.to_thread(server.restart)
    await crowd.waiting(4)
    with pytest.raises(PoolFullError):
        await crowd.pool.acquire()
    assert crowd.held.lost is False
    assert await crowd.leave() is True
    await crowd.all_served("coroutine", "thread", "first", "second")
    assert crowd.lost == []


async def test_a_server_that_comes_back_empty_costs_what_was_in_it_and_hangs_nobody(own_redis, crowd_of):
    configure(heartbeat_lease=3.0)
    crowd = crowd_of(own_redis, timeout=1, retries=8)
    await crowd.gather()
    fence = crowd.held.fence
    own_redis.kill()
    crowd.history.leave(fence)  # the server no longer knows it: nothing can keep others out
    await asyncio.to_thread(own_redis.restart)
    await crowd.all_served("coroutine", "thread")  # what was parked is gone with the data, and nothing else
    await await_until("the holder is told", lambda: crowd.lost == [crowd.held], SOON)
    assert crowd.held.lost is True
    slot = await crowd.pool.acquire()
    assert slot.fence > fence
    await crowd.pool.release(slot)


async def test_a_server_that_stands_still_for_ten_seconds_costs_nobody_anything(own_redis, crowd_of):
    crowd = crowd_of(own_redis, timeout=1)
    await crowd.gather()
    own_redis.pause()
    paused = time.monotonic()
    with pytest.raises(StoreUnavailableError):
        await crowd.pool.size()
    await asyncio.sleep(10 - (time.monotonic() - paused))
    own_redis.resume()
    await crowd.waiting(4)
    assert crowd.held.lost is False
    assert await crowd.leave() is True
    await crowd.all_served("coroutine", "thread", "first", "second")
    assert crowd.lost == []


REFUSALS = {
    "OOM": (("CONFIG", "SET", "maxmemory", "1"), ("CONFIG", "SET", "maxmemory", "0")),
    "READONLY": (("REPLICAOF", "127.0.0.1", "1"), ("REPLICAOF", "NO", "ONE")),
    "NOREPLICAS": (("CONFIG", "SET", "min-replicas-to-write", "1"), ("CONFIG", "SET", "min-replicas-to-write", "0")),
}


@pytest.mark.parametrize("refusal", REFUSALS)
async def test_a_server_that_refuses_to_write_is_called_unavailable_and_loses_nothing(own_redis, crowd_of, refusal):
    configure(heartbeat_lease=30.0)
    crowd = crowd_of(own_redis, timeout=1)
    pool, room = crowd.pool, crowd.room
    await crowd.gather()
    refuse, serve = REFUSALS[refusal]
    with own_redis.client() as client:
        client.execute_command(*refuse)
        for call in (
            lambda: pool.acquire(timeout=1),
            pool.pause,
            lambda: pool.resize(1),
            pool.evict,
            lambda: room.park(pool, b"third", lane="q"),
            lambda: asyncio.to_thread(room.sync.park, pool, b"third", lane="q"),
            lambda: pool.store.execute(crowd.held._kept.renew),
        ):
            with pytest.raises(StoreUnavailableError, match=r"is unavailable"):
                await call()
        with pytest.raises(PoolFullError):  # that much is known
            await pool.acquire()
        info = await pool.info()
        assert (info.used, info.waiting, info.paused, info.max_size) == (1, 4, False, 1)
        released = await asyncio.gather(crowd.leave(), return_exceptions=True)
        assert released == [True] or isinstance(released[0], StoreUnavailableError)
        client.execute_command(*serve)
    await crowd.all_served("coroutine", "thread", "first", "second")


async def test_a_waiter_is_not_told_of_a_slot_that_the_server_then_cannot_write_down(own_redis):
    store = RedisStore(own_redis.url)
    pool = Pool("p", None, rate="2/s", store=store)
    await pool.release(await pool.acquire())
    granted: list[Slot] = []
    place = Place(pool, on_grant=granted.append)
    assert await place.enter() is None
    with own_redis.client() as client:
        client.config_set("maxmemory", 1)

        async def refused_for_its_memory() -> bool:
            try:
                answer = await store.execute(pool.acquire_command(Place(pool), 0, ""))
            except StoreUnavailableError:
                return True
            assert answer[0] == -1, "it has jumped the line"
            return False  # the rate allows no start yet

        await await_until("the server has tried to serve the waiter", refused_for_its_memory, interval=0.05)
        assert await pool.size() == 0
        await asyncio.sleep(0.1)
        assert granted == []
        client.config_set("maxmemory", 0)

    async def served() -> bool:
        granted.extend(filter(None, [await place.enter()]))
        return bool(granted)

    await await_until("it is served when there is memory", served)
    await pool.release(granted[0])
    await store.close()
