"""Caches beside a dictionary, a raw GET, an ideal single flight, and the peers that are installed.

Run it with ``python -m tests.bench cache``. Contenders take turns in rounds, and medians of ratios count. Everything
runs on a redis-server of its own.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import logging
import statistics
import sys
import time
import tracemalloc
import uuid
from concurrent.futures import ProcessPoolExecutor
from contextlib import AsyncExitStack
from functools import partial
from typing import Any

import redis.asyncio

from slotline.caches import InMemoryCacheAdapter
from tests.bench.cache_peers import IN_MEMORY, ON_REDIS, installed
from tests.harness.redis_server import RedisServer

ROUNDS, WORK = 7, 0.2
LIFE = 8.0
PATIENCE = 15.0


async def seconds_each(call: Any, count: int, callers: int = 1) -> float:
    """Return the wall time of one call, ``count`` of them shared by ``callers`` concurrent callers."""

    async def caller() -> None:
        for _ in range(count // callers):
            await call()

    began = time.perf_counter()
    if callers == 1:
        await caller()
    else:
        await asyncio.gather(*(caller() for _ in range(callers)))
    return (time.perf_counter() - began) / count


async def ratios(contenders: dict[str, Any], base: str, count: int, callers: int = 1) -> dict[str, float]:
    """Measure all contenders in turn and return each one's median ratio to ``base``."""
    found: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(ROUNDS):
        times = {name: await seconds_each(call, count, callers) for name, call in contenders.items()}
        for name, seconds in times.items():
            found[name].append(seconds / times[base])
    return {name: statistics.median(values) for name, values in found.items()}


async def present() -> dict[str, int]:
    """What the caches hold in these measurements."""
    return {"a": 1}


async def hits(url: str) -> None:
    """Print what a hit costs."""
    table = {"k": {"a": 1}}

    async def look_up(key: str) -> Any:
        return table[key]

    async with AsyncExitStack() as stack:
        calls: dict[str, Any] = {"awaited dict": partial(look_up, "k")}
        for name, (module, make) in IN_MEMORY.items():
            if installed(module):
                calls[name] = await _warmed(await stack.enter_async_context(make(url)))
        for name, ratio in (await ratios(calls, "awaited dict", 20_000)).items():
            print(f"hit in memory      {name:20} {ratio:8.2f} x an awaited dict lookup")
    for callers, count in ((1, 1_500), (50, 5_000)):
        await _hits_on_redis(url, callers, count)


async def _hits_on_redis(url: str, callers: int, count: int) -> None:
    async with AsyncExitStack() as stack:
        client = redis.asyncio.from_url(url, max_connections=1_000)
        stack.push_async_callback(client.aclose)
        await client.set("raw", b'{"a":1}')

        calls: dict[str, Any] = {"raw GET": partial(client.get, "raw")}
        for name, (module, make) in ON_REDIS.items():
            if installed(module):
                try:
                    call = await _warmed(await stack.enter_async_context(make(url)))
                    await asyncio.gather(*(call() for _ in range(callers)))
                except Exception as error:
                    print(f"hit on Redis, {callers:3}  {name:20} failed: {error!r:.60}")
                else:
                    calls[name] = call
        for name, ratio in (await ratios(calls, "raw GET", count, callers)).items():
            print(f"hit on Redis, {callers:3}  {name:20} {ratio:8.2f} x a raw GET")


def blocking_hits(server: RedisServer) -> None:
    """Print what a hit costs a blocking caller, beside dogpile.cache, which has no other face."""
    from slotline.caches import RedisCacheAdapter

    client, cache, memory = redis.Redis.from_url(server.url), RedisCacheAdapter(server.url), InMemoryCacheAdapter()
    table = {"k": {"a": 1}}
    client.set("raw", b'{"a":1}')
    in_memory: dict[str, Any] = {
        "dict": lambda: table["k"],
        "slotline memory": lambda: memory.sync.get_or_create("k", dict),
    }
    on_redis: dict[str, Any] = {
        "raw GET": lambda: client.get("raw"),
        "slotline": lambda: cache.sync.get_or_create("k", dict),
    }
    if installed("dogpile.cache"):
        from dogpile.cache import make_region

        region = make_region().configure("dogpile.cache.memory", expiration_time=3600)
        in_memory["dogpile.cache"] = lambda: region.get_or_create("k", dict)
        where = {"host": "127.0.0.1", "port": server.port, "distributed_lock": True}
        shared = make_region().configure("dogpile.cache.redis", expiration_time=3600, arguments=where)
        on_redis["dogpile.cache"] = lambda: shared.get_or_create("dogpile", dict)
    for where_to, base, calls, count in (
        ("in memory", "dict", in_memory, 20_000),
        ("on Redis", "raw GET", on_redis, 1_500),
    ):
        found: dict[str, list[float]] = {name: [] for name in calls}
        for _ in range(ROUNDS):
            for name, call in calls.items():
                call()
                began = time.perf_counter()
                for _ in range(count):
                    call()
                found[name].append((time.perf_counter() - began) / count)
        for name, seconds in found.items():
            ratio = statistics.median(seconds) / statistics.median(found[base])
            print(f"blocking hit {where_to:9}  {name:20} {ratio:8.2f} x a {base}")
    cache.sync.close()
    client.close()


async def _warmed(get_or_create: Any) -> Any:
    key = uuid.uuid4().hex
    for _ in range(3):
        await get_or_create(key, present)
        await asyncio.sleep(0.1)
    return partial(get_or_create, key, present)


async def _stampede(name: str, where: str, url: str, key: str, callers: int) -> tuple[int, int, float]:
    """Return runs, callers served, and seconds until the last of them was."""
    runs = 0

    async def create() -> dict[str, int]:
        nonlocal runs
        runs += 1
        await asyncio.sleep(WORK)
        return {"a": 1}

    make = (IN_MEMORY if where == "memory" else ON_REDIS)[name][1]
    async with make(url) as get_or_create:
        await asyncio.wait_for(get_or_create(f"warm-{uuid.uuid4().hex}", present), PATIENCE)
        began = time.perf_counter()
        jobs = [asyncio.create_task(get_or_create(key, create)) for _ in range(callers)]
        done, late = await asyncio.wait(jobs, timeout=PATIENCE)
        seconds = time.perf_counter() - began
        served = sum(not job.cancelled() and job.exception() is None for job in done)
        for job in late:
            job.cancel()
        await asyncio.gather(*late, return_exceptions=True)
    return runs, served, seconds


def stampede_in_process(name: str, where: str, url: str, key: str, callers: int) -> tuple[int, int, float]:
    """Run one stampede in an event loop of its own."""
    logging.disable()  # some peers log every failed call
    return asyncio.run(_stampede(name, where, url, key, callers))


def stampedes(server: RedisServer) -> None:
    """Print how often a creator of 0.2 s runs when many want its value at once."""
    # taskiq-flow in memory holds a thread lock across an await, and would hang the measurement.
    for where, names in (("memory", [name for name in IN_MEMORY if name != "taskiq-flow"]), ("Redis", list(ON_REDIS))):
        for name in names:
            if installed((IN_MEMORY if where == "memory" else ON_REDIS)[name][0]):
                for processes, callers in itertools.product((1, 4), (10, 100, 1000)):
                    if processes == 1 or where == "Redis":
                        _stampede_of(server, name, where, processes, callers)


def _stampede_of(server: RedisServer, name: str, where: str, processes: int, callers: int) -> None:
    key = uuid.uuid4().hex
    arguments = (name, where, server.url, key, callers)
    with server.client() as client:
        before = client.info("stats")["total_connections_received"]
    with server.recording() as sent, ProcessPoolExecutor(processes) as pool:
        parts = [part.result() for part in [pool.submit(stampede_in_process, *arguments) for _ in range(processes)]]
    with server.client() as client:
        connections = client.info("stats")["total_connections_received"] - before - 3  # this measurement's own
    commands = sum(key in command.line for command in sent)
    total = {"runs": sum(part[0] for part in parts), "served": sum(part[1] for part in parts)}
    slowest = max(part[2] for part in parts)
    print(
        f"stampede, {where:6} {processes} x {callers:4}  {name:20} {total['runs']:5} runs {total['served']:5} served "
        f"in {slowest:6.2f} s  {commands:6} commands {connections:5} connections"
    )


def memory() -> None:
    """Print what an entry weighs, and what is left of entries that have ended."""
    cache = InMemoryCacheAdapter(max_size=None)
    count = 100_000
    keys = [f"key-{number}" for number in range(count)]
    gc.collect()
    tracemalloc.start()
    for key in keys:
        cache.sync.set(key, 1, LIFE)
    weight = tracemalloc.get_traced_memory()[0]
    entries = len(cache._entries)
    time.sleep(LIFE)
    cache.get_stats()
    gc.collect()
    left = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    print(f"memory             {weight / entries:.0f} bytes an entry beside key and value")
    print(f"memory             after {count} entries have ended {left / 1000:.0f} kB and {len(cache._entries)} entries")


def main() -> None:
    """Run everything."""
    logging.disable()
    missing = {module for module, _ in [*IN_MEMORY.values(), *ON_REDIS.values()] if not installed(module)}
    if missing:
        print(f"not installed, so not measured: {', '.join(sorted(missing))}")
    print(f"Python {sys.version.split()[0]}")
    with RedisServer() as server:
        asyncio.run(hits(server.url))
        blocking_hits(server)
        stampedes(server)
    memory()


if __name__ == "__main__":
    main()
