"""Celery: what the gate costs tasks without a limit, what a limit costs, and what a cached result costs."""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from tests.harness import guardian
from tests.harness.redis_server import RedisServer
from tests.harness.workers import CeleryWorker

BATCH, ROUNDS = 200, 3

SOURCE = """
from celery import Celery, Task

app = Celery("bench", broker=URL, backend=URL, task_cls=BASE)
app.conf.update(slotline_redis_url=URL, task_default_queue=QUEUE, worker_prefetch_multiplier=8)


@app.task(shared=False, name=QUEUE + ".plain")
def plain(number):
    return number


@app.task(shared=False, name=QUEUE + ".limited", **LIMIT)
def limited(number):
    return number


@app.task(shared=False, name=QUEUE + ".cached", **CACHE)
def cached(number):
    return number
"""


def application(directory: Path, url: str, queue: str, *, ours: bool) -> Any:
    """Write and import one application: with our base class, or as Celery makes it."""
    settings = {
        "URL": url,
        "QUEUE": queue,
        "BASE": "celery_ext:Task" if ours else "celery:Task",
        "LIMIT": {"pool": "bench", "pool_size": 4} if ours else {},
        "CACHE": {"cache_ttl": 600} if ours else {},
    }
    header = "\n".join(f"{name} = {value!r}" for name, value in settings.items())
    (directory / f"{queue}.py").write_text(header + SOURCE)
    return __import__(queue)


def batch(send: Any) -> float:
    """Return how many tasks a second are sent, run and fetched."""
    began = time.perf_counter()
    results = [send(number) for number in range(BATCH)]
    for result in results:
        result.get(timeout=120)
    return BATCH / (time.perf_counter() - began)


def rates(sends: dict[str, Any]) -> dict[str, float]:
    """Measure all in turns, so that the machine's noise falls on each alike."""
    found: dict[str, list[float]] = {name: [] for name in sends}
    for _ in range(ROUNDS):
        for name, send in sends.items():
            found[name].append(batch(send))
    return {name: median(values) for name, values in found.items()}


def measure(directory: Path, url: str, pool: str) -> None:
    """Print the table of one kind of pool."""
    vanilla = application(directory, url, f"vanilla_{pool}", ours=False)
    ours = application(directory, url, f"slotline_{pool}", ours=True)
    options: dict[str, Any] = {"pool": pool, "concurrency": 4}
    with (
        CeleryWorker(f"vanilla_{pool}:app", directory, **options),
        CeleryWorker(f"slotline_{pool}:app", directory, **options),
    ):
        found = rates(
            {
                "Celery alone": vanilla.plain.delay,
                "with the gate, no limit": ours.plain.delay,
                "with a limit that is reached": ours.limited.delay,
                "cached, hit in the worker": lambda number: ours.cached.apply_async((number % 10,), retries=1),
                "cached, hit on the sending side": lambda number: ours.cached.delay(number % 10),
            }
        )
    base = found["Celery alone"]
    print(f"{pool}, 4 workers, no-op tasks with results in Redis")
    for name, rate in found.items():
        print(f"  {name:34} {rate:7.0f} /s   x {rate / base:.2f}")


def main() -> None:
    """Print the tables for prefork and threads."""
    with tempfile.TemporaryDirectory() as place, RedisServer() as server:
        sys.path.insert(0, place)
        for pool in ("prefork", "threads"):
            measure(Path(place), server.url, pool)
        sys.path.remove(place)
    guardian.close()


if __name__ == "__main__":
    main()
