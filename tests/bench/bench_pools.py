"""Pools: a slot against two PINGs of redis-py, the hand-off under contention, and py-cachify and redis-py's lock."""

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

ROUNDS, IN_A_ROW = 1500, 25
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


async def medians(calls: dict[str, Callable[[], Awaitable[object]]], rounds: int = ROUNDS) -> dict[str, float]:
    """Return the median seconds of each call, measured in turns so that the machine's moods hit all alike."""
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds // IN_A_ROW):
        for name, call in calls.items():
            for _ in range(IN_A_ROW):
                started = time.perf_counter()
                await call()
                taken[name].append(time.perf_counter() - started)
    return {name: statistics.median(values) for name, values in taken.items()}


def blocking_medians(calls: dict[str, Callable[[], object]], rounds: int = ROUNDS) -> dict[str, float]:
    """Return the median seconds of each blocking call; see :func:`medians`."""
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds // IN_A_ROW):
        for name, call in calls.items():
            for _ in range(IN_A_ROW):
                started = time.perf_counter()
                call()
                taken[name].append(time.perf_counter() - started)
    return {name: statistics.median(values) for name, values in taken.items()}


def show(what: str, seconds: float, limit: float, note: str = "") -> None:
    print(f"  {what:<44}{seconds * 1e6:>10.0f} us {seconds / limit:>8.2f} x  {note}", flush=True)


async def one_slot(server: RedisServer) -> None:
    store = RedisStore(server.url)
    pool, memory = Pool("bench", 10, store=store), Pool("bench", 10, store=MemoryStore())

    bare = redis.asyncio.Redis.from_url(server.url)

    async def pings() -> None:
        await bare.execute_command("PING")
        await bare.execute_command("PING")

    async def our_pings() -> None:
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
    both = Limits(pool, Pool("bench-too", 10, store=store))

    async def slots_of_both() -> None:
        await both.release(await both.acquire())

    commands = {}
    for name, hold in (("Pool on Redis", lambda: slot(pool)), ("Limits of two pools on Redis", slots_of_both)):
        with server.counting() as counted:
            for _ in range(100):
                await hold()
        commands[name] = f"{counted['evalsha'] / 100:.2f} commands"
    print("acquire + release of one slot, awaiting; x two PINGs of redis-py's client")
    found = await medians(
        {
            "two PINGs": pings,
            "two PINGs through the store": our_pings,
            "two minimal scripts through the store": minimal,
            "Pool on Redis": lambda: slot(pool),
            "Limits of two pools on Redis": slots_of_both,
            "Pool in memory": lambda: slot(memory),
        }
    )
    limit = found["two PINGs"]
    for name, seconds in found.items():
        show(name, seconds, limit, commands.get(name, ""))
    await peers_alone(server, limit)
    await bare.aclose()
    await store.close()


async def peers_alone(server: RedisServer, limit: float) -> None:
    client = redis.asyncio.Redis.from_url(server.url)

    async def lock() -> None:
        async with client.lock("bench-lock", timeout=30):
            pass

    show("redis-py Lock (one slot only)", (await medians({"lock": lock}, 300))["lock"], limit)
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
    show(
        "py-cachify pool",
        (await medians({"pool": theirs}, 300))["pool"],
        limit,
        f"{sum(counted.values()) / 20:.0f} commands",
    )
    await awaiting.aclose()
    blocking.close()


def one_slot_blocking(server: RedisServer) -> None:
    store = RedisStore(server.url)
    pool = Pool("bench", 10, store=store)

    client = redis.Redis.from_url(server.url)

    def pings() -> None:
        client.execute_command("PING")
        client.execute_command("PING")

    def our_pings() -> None:
        store.sync.execute(PING)
        store.sync.execute(PING)

    def slot() -> None:
        pool.sync.release(pool.sync.acquire())

    take, give = client.script_load(MINIMAL_ACQUIRE), client.script_load(MINIMAL_RELEASE)

    def minimal() -> None:
        client.evalsha(take, 1, "minimal", "token", 10)
        client.evalsha(give, 1, "minimal", "token")

    slot()
    print("the same, blocking")
    found = blocking_medians(
        {
            "two PINGs": pings,
            "two PINGs through the store": our_pings,
            "two minimal scripts": minimal,
            "Pool on Redis": slot,
        }
    )
    for name, seconds in found.items():
        show(name, seconds, found["two PINGs"])
    client.close()
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
    with server.counting() as counted:
        started = time.perf_counter()
        await asyncio.gather(*(use() for _ in range(1000)))
        wall = time.perf_counter() - started
    connections = client.info("clients")["connected_clients"] - before
    print(
        f"1,000 concurrent waiters for 50 slots of 1 ms: all served in {wall:.2f} s over {connections} connections, "
        f"{counted['evalsha'] / 1000:.2f} commands a hold"
    )
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
