"""Leased executors in Taskiq: blocking work in a bounded number of pools, with time limits that really end it.

Run it with ``python examples/taskiq_executor.py``. It needs no server.

Expected output:

    8 blocking tasks, 2 executors: never more than 2 at once
    primes below 20000: 2262, counted in another process
    time_limit=0.5: WorkTimeLimitError, after less than 10 s instead of a minute
    one task fanned out over its lease: [0, 1, 4, 9, 16]
"""

import asyncio
import logging
import os
import threading
import time
from typing import Annotated

from taskiq import InMemoryBroker, TaskiqDepends

from slotline.leases import ExecutorLease
from taskiq_ext import ExecutorMiddleware, executor_lease

logging.getLogger("taskiq").setLevel(logging.CRITICAL)  # it logs the errors of tasks, which are shown here

broker = InMemoryBroker(max_async_tasks=100)
broker.add_middlewares(
    ExecutorMiddleware(
        {
            "io": {"backend": "thread", "max_pools": 2, "workers_per_pool": 1},
            "cpu": {"backend": "process", "max_pools": 1, "workers_per_pool": 2},
        }
    )
)


class Meter:
    """Counts how many runs go on at once."""

    def __init__(self):
        self.lock, self.running, self.most = threading.Lock(), 0, 0

    def __enter__(self):
        with self.lock:
            self.running += 1
            self.most = max(self.most, self.running)

    def __exit__(self, *exc):
        with self.lock:
            self.running -= 1


meter = Meter()


@broker.task(executor="io")
def read_slowly() -> None:
    with meter:
        time.sleep(0.05)


@broker.task(executor="cpu")
def count_primes(below: int) -> tuple[int, int]:
    primes = sum(all(n % d for d in range(2, int(n**0.5) + 1)) for n in range(2, below))
    return primes, os.getpid()


@broker.task(executor="cpu", time_limit=0.5)
def hang() -> None:
    time.sleep(60)


def square(n: int) -> int:
    return n * n


@broker.task
async def squares(n: int, lease: Annotated[ExecutorLease, TaskiqDepends(executor_lease("cpu"))]) -> list[int]:
    return list(await asyncio.gather(*(lease.run(square, i) for i in range(n))))


async def result_of(task):
    return await task.wait_result(check_interval=0.01)


async def main() -> None:
    await broker.startup()
    for task in [await read_slowly.kiq() for _ in range(8)]:
        await result_of(task)
    print(f"8 blocking tasks, 2 executors: never more than {meter.most} at once")

    primes, pid = (await result_of(await count_primes.kiq(20000))).return_value
    print(f"primes below 20000: {primes}, counted in {'this' if pid == os.getpid() else 'another'} process")

    started = time.monotonic()
    error = (await result_of(await hang.kiq())).error
    taken = "less than 10 s" if time.monotonic() - started < 10 else "too long"
    print(f"time_limit=0.5: {type(error).__name__}, after {taken} instead of a minute")

    print(f"one task fanned out over its lease: {(await result_of(await squares.kiq(5))).return_value}")
    await broker.shutdown()


if __name__ == "__main__":
    asyncio.run(main())
