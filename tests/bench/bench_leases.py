"""Leases beside the executor that they lend out, and the grinder beside the least that could batch.

Run it with ``python tests/bench/bench_leases.py``. The machine's noise falls on all of them alike, so the ratios count:
each is the median over rounds in which the contenders take turns.
"""

from __future__ import annotations

import asyncio
import importlib.util
import multiprocessing
import statistics
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

from slotline.leases import LeasedExecutorManager, WorkGrinder
from slotline.workers import BilliardExecutor

EXECUTORS, WORKERS, ROUNDS = 4, 4, 15
Run = Callable[[], Awaitable[object]]


def work() -> int:
    return 1


async def raw_runs(callers: int, each: int, make: Callable[[], Executor] = ThreadPoolExecutor) -> tuple[Run, Run]:
    """One ``run_in_executor`` for each call, on as many executors as the manager lends."""
    executors = [make(WORKERS) for _ in range(EXECUTORS)]
    loop = asyncio.get_running_loop()

    async def caller(number: int) -> None:
        executor = executors[number % EXECUTORS]
        for _ in range(each):
            await loop.run_in_executor(executor, work)

    async def run() -> None:
        await asyncio.gather(*(caller(number) for number in range(callers)))

    async def close() -> None:
        for executor in executors:
            executor.shutdown()

    return run, close


async def leased_runs(callers: int, each: int, **options: Any) -> tuple[Run, Run]:
    manager = LeasedExecutorManager(max_pools=EXECUTORS, workers_per_pool=WORKERS, **options)
    await manager.start()

    async def caller() -> None:
        for _ in range(each):
            async with await manager.acquire() as lease:
                await lease.run(work)

    async def run() -> None:
        await asyncio.gather(*(caller() for _ in range(callers)))

    return run, manager.stop


async def leasepool_runs(callers: int, each: int, **options: Any) -> tuple[Run, Run]:
    import leasepool

    manager = leasepool.LeasedExecutorManager(max_pools=EXECUTORS, workers_per_pool=WORKERS, **options)
    await manager.start()

    async def caller() -> None:
        for _ in range(each):
            async with await manager.acquire() as lease:
                await lease.run(work)

    async def run() -> None:
        await asyncio.gather(*(caller() for _ in range(callers)))

    return run, manager.stop


class LeastBatcher:
    """Collects calls and runs each full batch as one job; its results come all at once."""

    def __init__(self, size: int) -> None:
        self.size, self.pending = size, []
        self.executor = ThreadPoolExecutor(WORKERS)
        self.tasks: set[asyncio.Task[None]] = set()

    async def submit(self, fn: Callable[[], int]) -> int:
        future = asyncio.get_running_loop().create_future()
        self.pending.append((fn, future))
        if len(self.pending) >= self.size:
            batch, self.pending = self.pending, []
            task = asyncio.get_running_loop().create_task(self.grind(batch))
            self.tasks.add(task)
            task.add_done_callback(self.tasks.discard)
        return await future

    async def grind(self, batch: list) -> None:
        results = await asyncio.get_running_loop().run_in_executor(self.executor, lambda: [fn() for fn, _ in batch])
        for (_, future), result in zip(batch, results, strict=True):
            future.set_result(result)


async def batched(items: int) -> tuple[Run, Run]:
    batcher = LeastBatcher(20)

    async def run() -> None:
        await asyncio.gather(*(batcher.submit(work) for _ in range(items)))

    async def close() -> None:
        batcher.executor.shutdown()

    return run, close


async def unbatched(items: int) -> tuple[Run, Run]:
    executor = ThreadPoolExecutor(WORKERS)
    loop = asyncio.get_running_loop()

    async def run() -> None:
        await asyncio.gather(*(loop.run_in_executor(executor, work) for _ in range(items)))

    async def close() -> None:
        executor.shutdown()

    return run, close


async def ground(items: int) -> tuple[Run, Run]:
    manager = LeasedExecutorManager(max_pools=EXECUTORS, workers_per_pool=WORKERS)
    await manager.start()
    grinder = WorkGrinder(executor_manager=manager)
    await grinder.start()

    async def run() -> None:
        await asyncio.gather(*(grinder.submit(work) for _ in range(items)))

    async def close() -> None:
        await grinder.stop()
        await manager.stop()

    return run, close


async def leasepool_ground(items: int) -> tuple[Run, Run]:
    import leasepool

    manager = leasepool.LeasedExecutorManager(max_pools=EXECUTORS, workers_per_pool=WORKERS)
    await manager.start()
    grinder = leasepool.WorkGrinder(executor_manager=manager)
    await grinder.start()

    async def run() -> None:
        await asyncio.gather(*(grinder.submit(work) for _ in range(items)))

    async def close() -> None:
        await grinder.stop()
        await manager.stop()

    return run, close


class Cost(NamedTuple):
    """Microseconds per operation: on the clock, and of processor time, which a busy machine disturbs less."""

    wall: float
    cpu: float


async def compare(contenders: dict[str, tuple[Run, Run]], count: int) -> dict[str, Cost]:
    """Return the median cost of each, taken in turns."""
    times: dict[str, list[Cost]] = {name: [] for name in contenders}
    for run, _ in contenders.values():
        await run()
    for _ in range(ROUNDS):
        for name, (run, _) in contenders.items():
            begun, spent = time.perf_counter(), time.process_time()
            await run()
            wall, cpu = time.perf_counter() - begun, time.process_time() - spent
            times[name].append(Cost(wall / count * 1e6, cpu / count * 1e6))
    for _, close in contenders.values():
        await close()
    return {
        name: Cost(statistics.median(cost.wall for cost in costs), statistics.median(cost.cpu for cost in costs))
        for name, costs in times.items()
    }


def show(title: str, results: dict[str, Cost], aims: dict[str, float]) -> None:
    """Print one table against its first line; ``aims`` says how many times as much a contender may cost."""
    base_name, base = next(iter(results.items()))
    print(f"\n{title}\n  {'':<16}{'wall':>10}{'x ' + base_name:>18}{'cpu':>12}{'x ' + base_name:>18}")
    for name, cost in results.items():
        aim = f"   aim: {aims[name]} x" if name in aims else ""
        print(
            f"  {name:<16}{cost.wall:7.1f} us{cost.wall / base.wall:18.2f}"
            f"{cost.cpu:9.1f} us{cost.cpu / base.cpu:18.2f}{aim}"
        )


async def measure() -> None:
    peer = importlib.util.find_spec("leasepool") is not None
    for callers, each, most in ((1, 500, 1.3), (64, 20, 1.8), (512, 4, 1.8)):
        contenders = {"raw": await raw_runs(callers, each), "slotline": await leased_runs(callers, each)}
        if peer:
            contenders["leasepool"] = await leasepool_runs(callers, each)
        results = await compare(contenders, callers * each)
        show(f"acquire + run + release, {callers} callers, {EXECUTORS} executors", results, {"slotline": most})
    spawn = multiprocessing.get_context("spawn")  # a fork of this process, which runs threads, may hang
    for name, make, options in (
        ("ProcessPoolExecutor", partial(ProcessPoolExecutor, mp_context=spawn), {"backend": "process"}),
        ("BilliardExecutor", BilliardExecutor, {"backend": "billiard"}),
    ):
        for callers, each in ((1, 100), (64, 10)):
            contenders = {"raw": await raw_runs(callers, each, make)}
            contenders["slotline"] = await leased_runs(callers, each, **options)
            if peer and name == "ProcessPoolExecutor" and callers == 1:  # with more it does not come to an end
                contenders["leasepool"] = await leasepool_runs(callers, each, **options, mp_context=spawn)
            show(f"the same on {name}, {callers} callers", await compare(contenders, callers * each), {})
    items = 2000
    contenders = {
        "least batcher": await batched(items),
        "no batching": await unbatched(items),
        "slotline": await ground(items),
    }
    if peer:
        contenders["leasepool"] = await leasepool_ground(items)
    results = await compare(contenders, items)
    show(f"grinder, {items} items in batches of 20", results, {"slotline": 2.0})
    beside = results["slotline"].wall / results["no batching"].wall
    print(f"  the grinder costs {beside:.2f} x what single calls cost (aim: less than 1)")


def main() -> None:
    """Print all comparisons."""
    asyncio.run(measure())


if __name__ == "__main__":
    main()
