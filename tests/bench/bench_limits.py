"""Limited tasks end to end, in real workers, beside the same tasks without a limit and beside the ideal.

The ideal counts the tasks alone. What the framework adds to each of them shows in a worker that has room for no more
than the limit allows, and needs none.
"""

from __future__ import annotations

import asyncio
import importlib
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from tests.harness import guardian
from tests.harness.redis_server import RedisServer
from tests.harness.waiting import wait_until
from tests.harness.workers import CeleryWorker, TaskiqWorker, Worker

COUNT, ROUNDS = 1000, 5
SLOTS, BINDING = 2, ((100, 0.02), (30, 0.1))
KINDS = (("no-ops", 0.0), ("tasks of 10 ms", 0.01))
POOLS = {"free": 10_000, "binding": SLOTS}

TASKIQ = """
import asyncio
import redis
from taskiq import TaskiqMiddleware
from taskiq_redis import ListQueueBroker, RedisAsyncResultBackend, RedisStreamBroker
from slotline import RedisStore
from taskiq_ext import PoolLimitMiddleware

history = redis.Redis.from_url(URL)


class Counting(TaskiqMiddleware):
    ended = 0

    def post_save(self, message, result):
        self.ended += 1
        if self.ended == int(message.args[0]):  # the last of its batch
            self.ended = 0
            history.set("ended", 1, ex=60)


Broker = ListQueueBroker if "list" in QUEUE else RedisStreamBroker
broker = Broker(URL, queue_name=QUEUE, socket_timeout=None).with_result_backend(
    RedisAsyncResultBackend(URL, result_ex_time=60, socket_timeout=None)
)
if POOLS:
    broker.add_middlewares(PoolLimitMiddleware(RedisStore(URL), pools=POOLS))
broker.add_middlewares(Counting())


@broker.task(QUEUE + ".free", pool="free")
async def free(batch: int, seconds: float) -> int:
    if seconds:
        await asyncio.sleep(seconds)
    return batch


@broker.task(QUEUE + ".binding", pool="binding")
async def binding(batch: int, seconds: float) -> int:
    await asyncio.sleep(seconds)
    return batch
"""

# "retrying" is the usual way without a waiting room: who finds no place comes back later.
CELERY = """
import time
import redis
from celery import Celery

counter = redis.Redis.from_url(URL)
app = Celery("bench", broker=URL, backend=URL, task_cls="celery_ext:Task" if POOLS else "celery:Task")
app.conf.update(task_default_queue=QUEUE, worker_prefetch_multiplier=8)
if POOLS:
    app.conf.update(slotline_redis_url=URL, slotline_pools=POOLS)


@app.task(shared=False, name=QUEUE + ".free", **({"pool": "free"} if POOLS else {}))
def free(batch, seconds):
    time.sleep(seconds)
    return batch


@app.task(shared=False, name=QUEUE + ".retrying", bind=True, max_retries=None)
def retrying(self, batch, seconds):
    if counter.incr("running") > SLOTS:
        counter.decr("running")
        raise self.retry(countdown=1)
    time.sleep(seconds)
    counter.decr("running")
    return batch


@app.task(shared=False, name=QUEUE + ".binding", **({"pool": "binding"} if POOLS else {}))
def binding(batch, seconds):
    time.sleep(seconds)
    return batch
"""


def application(source: str, directory: Path, url: str, name: str, pools: dict[str, int]) -> Any:
    """Write and import one application."""
    (directory / f"{name}.py").write_text(f"URL, QUEUE, POOLS, SLOTS = {(url, name, pools, SLOTS)!r}\n{source}")
    return importlib.import_module(name)


def timed(worker: Worker, send: Callable[[], None], ended: Callable[[], None]) -> float:
    """Return the seconds in which a worker runs what waits for it already."""
    stopped = worker.processes()  # a look through all of the machine's, tens of milliseconds that are not the worker's
    for process in stopped:
        process.suspend()
    send()
    began = time.perf_counter()
    for process in stopped:
        process.resume()
    ended()
    return time.perf_counter() - began


def compare(what: str, runs: dict[str, Callable[[int, float, str], float]]) -> None:
    """Print what a limit costs where it does not bind, measured in turns, and where it does, beside the ideal."""
    alone, limited_run, narrow = runs.values()
    for kind, seconds in KINDS:
        taken: dict[str, list[float]] = {"alone": [], "limited": []}
        for at in range(ROUNDS + 1):
            for name, run in zip(taken, (alone, limited_run), strict=True):
                one = run(COUNT, seconds, "free")
                if at:  # the first round warms up
                    taken[name].append(one)
        plain, limited = (median(values) for values in taken.values())
        print(
            f"  {what:<16} {COUNT} {kind:<15} {COUNT / plain:>6.0f} /s alone {COUNT / limited:>6.0f} /s with a limit "
            f"that does not bind   x {plain / limited:.2f} (aim 0.85)",
            flush=True,
        )
    for count, seconds in BINDING:
        at_most(f"{what}, a limit", limited_run, "binding", count, seconds)
        at_most(f"{what}, room for {SLOTS}", narrow, "binding", count, seconds)
        if "Celery" in what:
            at_most(f"{what}, retry(countdown=1)", alone, "retrying", count, seconds, rounds=1)


def at_most(
    what: str, run: Callable[[int, float, str], float], task: str, count: int, seconds: float, rounds: int = ROUNDS
) -> None:
    """Print what more tasks than may run at once take, beside the ideal."""
    ideal = count / SLOTS * seconds
    wall = median(run(count, seconds, task) for _ in range(rounds))
    print(
        f"  {what:<36} {count} tasks of {seconds * 1000:.0f} ms, {SLOTS} at once: {wall:>6.2f} s "
        f"  x {wall / ideal:.2f} the ideal (aim 1.15)",
        flush=True,
    )


def taskiq(directory: Path, server: RedisServer, kind: str) -> None:
    """Measure one worker process on a list or a stream in Redis."""
    runs: dict[str, Callable[[int, float, str], float]] = {}
    started: list[Worker] = []
    client = server.client()

    def run_on(worker: Worker, module: Any) -> Callable[[int, float, str], float]:
        def run(count: int, seconds: float, task: str) -> float:
            async def send() -> None:
                await module.broker.startup()
                for _ in range(count):
                    await getattr(module, task).kiq(count, seconds)
                await module.broker.shutdown()

            client.delete("ended")
            return timed(
                worker,
                lambda: asyncio.run(send()),
                lambda: wait_until("all have run", lambda: client.exists("ended"), 120),
            )

        return run

    for sort, pools in (("alone", {}), ("limited", POOLS), ("narrow", {})):
        name = f"taskiq_{kind}_{sort}"
        module = application(TASKIQ, directory, server.url, name, pools)
        room = ("--max-async-tasks", str(SLOTS)) if sort == "narrow" else ()
        worker = TaskiqWorker(f"{name}:broker", directory, args=("--log-level", "WARNING", *room))
        started.append(worker)
        worker.ready = lambda: True
        worker.start()
        runs[name] = run_on(worker, module)
    compare(f"Taskiq, {kind}", runs)
    for worker in started:
        worker.close()
    client.close()


def celery(directory: Path, server: RedisServer, pool: Any) -> None:
    """Measure a worker of four processes or threads on Redis."""
    runs: dict[str, Callable[[int, float, str], float]] = {}
    started: list[Worker] = []

    def run_on(worker: Worker, module: Any) -> Callable[[int, float, str], float]:
        def run(count: int, seconds: float, task: str) -> float:
            sent: list[Any] = []

            def send() -> None:
                sent.extend(getattr(module, task).delay(count, seconds) for _ in range(count))

            return timed(worker, send, lambda: [result.get(timeout=120) for result in sent] and None)

        return run

    for sort, pools in (("alone", {}), ("limited", POOLS), ("narrow", {})):
        name = f"celery_{pool}_{sort}"
        module = application(CELERY, directory, server.url, name, pools)
        room = SLOTS if sort == "narrow" else 4
        worker = CeleryWorker(f"{name}:app", directory, pool=pool, concurrency=room)
        started.append(worker)
        worker.start()
        runs[name] = run_on(worker, module)
    compare(f"Celery, {pool}", runs)
    for worker in started:
        worker.close()


def main() -> None:
    """Print the table."""
    with tempfile.TemporaryDirectory() as place, RedisServer() as server:
        sys.path.insert(0, place)
        for kind in ("list", "stream"):
            taskiq(Path(place), server, kind)
        for pool in ("prefork", "threads"):
            celery(Path(place), server, pool)
        sys.path.remove(place)
    guardian.close()


if __name__ == "__main__":
    main()
