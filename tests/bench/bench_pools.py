"""Pools: a slot against two PINGs, the hand-off under contention, and py-cachify and redis-py's lock beside it."""

from __future__ import annotations

import asyncio
import statistics
import threading
import time
from collections.abc import Awaitable, Callable

import redis
import redis.asyncio

from slotline import Limits, MemoryStore, Pool, RedisStore
from slotline.stores import Command
from tests.harness.redis_server import RedisServer

ROUNDS = 1500
PING = Command("PING", ())
MINIMAL_ACQUIRE = """
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
if redis.call('ZCARD', KEYS[1]) >= tonumber(ARGV[2]) then return 0 end
redis.call('ZADD', KEYS[1], now + 30000, ARGV[1])
redis.call('PEXPIRE', KEYS[1], 60000)
return 1
"""
MINIMAL_RELEASE = "return redis.call('ZREM', KEYS[1], ARGV[1])"
"""The least that a limit can be: no fence, no line, no owner, no heartbeat."""


async def median(call: Callable[[], Awaitable[object]], rounds: int = ROUNDS) -> float:
    """Return the median seconds of one call."""
    taken = []
    for _ in range(rounds):
        started = time.perf_counter()
        await call()
        taken.append(time.perf_counter() - started)
    return statistics.median(taken)


def blocking_median(call: Callable[[], object], rounds: int = ROUNDS) -> float:
    """Return the median seconds of one blocking call."""
    taken = []
    for _ in range(rounds):
        started = time.perf_counter()
        call()
        taken.append(time.perf_counter() - started)
    return statistics.median(taken)


def show(what: str, seconds: float, limit: float, note: str = "") -> None:
    print(f"  {what:<44}{seconds * 1e6:>10.0f} us {seconds / limit:>8.2f} x  {note}", flush=True)


async def one_slot(server: RedisServer) -> None:
    store = RedisStore(server.url)
    pool, memory = Pool("bench", 10, store=store), Pool("bench", 10, store=MemoryStore())

    async def pings() -> None:
        await store.execute(PING)
        await store.execute(PING)

    async def slot(of: Pool) -> None:
        await of.release(await of.acquire())

    scripts = server.client()
    take, give = scripts.script_load(MINIMAL_ACQUIRE), scripts.script_load(MINIMAL_RELEASE)
    scripts.close()

    async def minimal() -> None:
        await store.execute(Command("EVALSHA", (), (take, 1, "minimal", "token", 10)))
        await store.execute(Command("EVALSHA", (), (give, 1, "minimal", "token")))

    await slot(pool)
    print("acquire + release of one slot, awaiting; x two PINGs on the same client")
    limit = await median(pings)
    show("two PINGs", limit, limit)
    show("two minimal scripts", await median(minimal), limit)
    with server.counting() as counted:
        for _ in range(100):
            await slot(pool)
    show("Pool on Redis", await median(lambda: slot(pool)), limit, f"{counted['evalsha'] / 100:.2f} commands")
    show("Pool in memory", await median(lambda: slot(memory)), limit)
    both = Limits(pool, Pool("bench-too", 10, store=store))

    async def slots_of_both() -> None:
        await both.release(await both.acquire())

    with server.counting() as counted:
        for _ in range(100):
            await slots_of_both()
    show("Limits of two pools on Redis", await median(slots_of_both), limit, f"{counted['evalsha'] / 100:.2f} commands")
    await peers_alone(server, limit)
    await store.close()


async def peers_alone(server: RedisServer, limit: float) -> None:
    client = redis.asyncio.Redis.from_url(server.url)

    async def lock() -> None:
        async with client.lock("bench-lock", timeout=30):
            pass

    show("redis-py Lock (one slot only)", await median(lock, 300), limit)
    await client.aclose()
    try:
        import py_cachify
    except ImportError:
        print("  py-cachify is not installed")
        return
    blocking, awaiting = redis.Redis.from_url(server.url), redis.asyncio.Redis.from_url(server.url)
    py_cachify.init_cachify(sync_client=blocking, async_client=awaiting)
    peer = py_cachify.pool(key="bench", max_size=10)

    async def theirs() -> None:
        async with peer:
            pass

    with server.counting() as counted:
        for _ in range(20):
            await theirs()
    show("py-cachify pool", await median(theirs, 300), limit, f"{sum(counted.values()) / 20:.0f} commands")
    await awaiting.aclose()
    blocking.close()


def one_slot_blocking(server: RedisServer) -> None:
    store = RedisStore(server.url)
    pool = Pool("bench", 10, store=store)

    def pings() -> None:
        store.sync.execute(PING)
        store.sync.execute(PING)

    def slot() -> None:
        pool.sync.release(pool.sync.acquire())

    client = store.client()
    take, give = client.script_load(MINIMAL_ACQUIRE), client.script_load(MINIMAL_RELEASE)

    def minimal() -> None:
        client.evalsha(take, 1, "minimal", "token", 10)
        client.evalsha(give, 1, "minimal", "token")

    slot()
    print("the same, blocking")
    limit = blocking_median(pings)
    show("two PINGs", limit, limit)
    show("two minimal scripts", blocking_median(minimal), limit)
    show("Pool on Redis", blocking_median(slot), limit)
    store.sync.close()


async def contention(server: RedisServer, tasks: int, slots: int, work: float) -> None:
    ideal = tasks / slots * work
    print(f"{tasks} tasks for {slots} slots, {work * 1000:.0f} ms each; x the ideal wall time of {ideal:.2f} s")
    store = RedisStore(server.url)
    for name, pool in (
        ("Pool on Redis", Pool("c", slots, store=store)),
        ("Pool in memory", Pool("c", slots, store=MemoryStore())),
    ):
        waits: list[float] = []

        async def use(pool: Pool, waits: list[float]) -> None:
            asked = time.perf_counter()
            async with pool.slot():
                waits.append(time.perf_counter() - asked)
                await asyncio.sleep(work)

        await pool.release(await pool.acquire())
        with server.counting() as counted:
            started = time.perf_counter()
            await asyncio.gather(*(use(pool, waits) for _ in range(tasks)))
            wall = time.perf_counter() - started
        per_hold = counted["evalsha"] / tasks
        print(
            f"  {name:<44}{wall:>10.2f} s  {wall / ideal:>8.2f} x  "
            f"{per_hold:.2f} commands a hold, longest wait {max(waits) / statistics.mean(waits):.2f} x the mean"
        )
    await store.close()


def polling(server: RedisServer, tasks: int, work: float) -> None:
    """redis-py's Lock polls: what that costs a waiter."""
    client, waits = redis.Redis.from_url(server.url), []

    def use() -> None:
        asked = time.perf_counter()
        with client.lock("poll", timeout=30):
            waits.append(time.perf_counter() - asked)
            time.sleep(work)

    threads = [threading.Thread(target=use) for _ in range(tasks)]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    wall, ideal = time.perf_counter() - started, tasks * work
    print(f"  {'redis-py Lock (polls), one slot, ' + str(tasks) + ' tasks':<44}{wall:>10.2f} s  {wall / ideal:>8.2f} x")
    client.close()


async def crowd(server: RedisServer) -> None:
    store, client = RedisStore(server.url), redis.Redis.from_url(server.url)
    pool = Pool("crowd", 50, store=store)

    async def use() -> None:
        async with pool.slot():
            await asyncio.sleep(0.001)

    before = client.info("clients")["connected_clients"]
    started = time.perf_counter()
    await asyncio.gather(*(use() for _ in range(1000)))
    wall = time.perf_counter() - started
    connections = client.info("clients")["connected_clients"] - before
    print(f"1,000 concurrent waiters for 50 slots: all served in {wall:.2f} s over {connections} connections")
    client.close()
    await store.close()


def main() -> None:
    """Print the table."""
    with RedisServer() as server:
        asyncio.run(one_slot(server))
        one_slot_blocking(server)
        asyncio.run(contention(server, 64, 4, 0.005))
        polling(server, 16, 0.005)
        asyncio.run(crowd(server))


if __name__ == "__main__":
    main()
