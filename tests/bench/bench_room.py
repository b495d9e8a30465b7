"""The waiting room with many parked messages: time and memory of a park, and what the line costs those who come."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable
from contextlib import suppress
from statistics import median
from typing import TypeVar

from slotline import Pool, PoolFullError, RedisStore
from slotline.pools import Parked, Room, Slot
from tests.harness.redis_server import RedisServer

PARKED, FEW, TOGETHER = 100_000, 10, 500
PAYLOAD = 300
ROUNDS = 300

T = TypeVar("T")


def message(number: int) -> bytes:
    return b"%012d" % number + b"x" * (PAYLOAD - 12)


class Costs:
    """The seconds of each thing that was done, by its name."""

    def __init__(self) -> None:
        self.taken: dict[str, list[float]] = {}

    async def of(self, name: str, done: Awaitable[T]) -> T:
        """Return what ``done`` returns."""
        began = time.perf_counter()
        result = await done
        self.taken.setdefault(name, []).append(time.perf_counter() - began)
        return result

    def __getitem__(self, name: str) -> float:
        return median(self.taken[name])


async def come_and_go(room: Room, pool: Pool, held: Slot, number: int, costs: Costs) -> Slot:
    """Park a message and take one, so that as many are parked afterwards; return the slot that is held then."""
    assert isinstance(await costs.of("park", room.park(pool, message(number), lane="q")), Parked)
    assert isinstance(await costs.of("the broker's copy of it", room.park(pool, message(number), lane="q")), Parked)
    with suppress(PoolFullError):
        await costs.of("size", pool.size())
        began = time.perf_counter()
        await pool.acquire()
    costs.taken.setdefault("a caller finds it full", []).append(time.perf_counter() - began)
    await costs.of("release", pool.release(held))
    room.call(pool.key)
    taken = await costs.of("take", room.take())
    assert taken is not None
    await costs.of("settle", taken.settle())
    return taken.slot


async def measure(server: RedisServer) -> None:
    store = RedisStore(server.url)
    room, client = Room(store, ["q"]), server.client()
    few, many = Pool("few", 1, store=store), Pool("many", 1, store=store)
    held = {pool: await pool.acquire() for pool in (few, many)}
    for number in range(FEW):
        await room.park(few, message(number), lane="q")
    before = client.info("memory")["used_memory"]
    began = time.perf_counter()
    for start in range(0, PARKED, TOGETHER):
        await asyncio.gather(*(room.park(many, message(number), lane="q") for number in range(start, start + TOGETHER)))
    each_park = (time.perf_counter() - began) / PARKED
    memory = (client.info("memory")["used_memory"] - before) / PARKED
    print(
        f"{PARKED} messages of {PAYLOAD} bytes, {TOGETHER} at a time: {each_park * 1e6:.0f} us a park, "
        f"{memory:.0f} bytes each: payload + {memory - PAYLOAD:.0f} (aim 300)"
    )
    costs = {pool: Costs() for pool in held}
    for number in range(PARKED, PARKED + ROUNDS):
        for pool in (few, many):
            held[pool] = await come_and_go(room, pool, held[pool], number, costs[pool])
    print(f"beside {FEW} parked messages and beside {PARKED}; median")
    for name in costs[few].taken:
        print(
            f"  {name:<28}{costs[few][name] * 1e6:>8.0f} us {costs[many][name] * 1e6:>8.0f} us "
            f"  x {costs[many][name] / costs[few][name]:.2f}"
        )
    room.close()
    client.close()
    await store.close()


def main() -> None:
    """Print the table."""
    with RedisServer() as server:
        asyncio.run(measure(server))


if __name__ == "__main__":
    main()
