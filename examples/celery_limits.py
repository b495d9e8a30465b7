"""Concurrency limits in Celery: at most so many runs at once; the others wait, fail or are dropped as options say.

Run it with ``python examples/celery_limits.py``. It needs no server: a real worker with 4 processes takes its messages
from memory, and so are its slots. With ``slotline_redis_url="redis://..."`` the limit holds across all workers.

Expected output:

    20 messages, 4 processes, never more than 2 calls of the API at once
    unlimited tasks did not wait: 5 of 5 done before the last limited one
    2 tenants, 1 run each at a time: never more than 2 at once
    pool_on_full="fail": PoolFullError
    pool_timeout=0.2: PoolTimeoutError
    pool_on_full="drop": no result
    a bad option is refused where it is written: pool_size=0 is not allowed: it must be a whole number of at least 1.
"""

import logging
import tempfile
import time
from pathlib import Path

from celery import Celery
from celery.contrib.testing.worker import start_worker

from slotline import InvalidOptionError

logging.getLogger("celery").setLevel(logging.CRITICAL)  # it logs the errors of tasks, which are shown here
directory = Path(tempfile.mkdtemp(prefix="celery-limits-"))

app = Celery("demo", broker="memory://", backend=f"file://{directory}", task_cls="celery_ext:Task")
app.conf.update(
    broker_transport_options={"polling_interval": 0.02},
    slotline_pools={"api": 2},
    worker_hijack_root_logger=False,
)


@app.task(pool="api")  # declared once, above
def call_api() -> tuple[float, float]:
    return work(0.05)


@app.task(pool="tenant:{tenant}", pool_size=1)  # one pool for each tenant
def sync_tenant(tenant: str) -> tuple[float, float]:  # noqa: ARG001 - it names the pool
    return work(0.05)


@app.task
def unlimited() -> tuple[float, float]:
    return work(0.0)


@app.task(pool="report", pool_size=1)
def report() -> None:
    (directory / "report-runs").touch()
    wait_for("report-may-end")


def work(seconds: float) -> tuple[float, float]:
    """Return when this run began and when it ended."""
    began = time.time()
    time.sleep(seconds)
    return began, time.time()


def wait_for(name: str) -> None:
    while not (directory / name).exists():
        time.sleep(0.01)


def most_at_once(runs: list[tuple[float, float]]) -> int:
    return max(sum(began <= moment < ended for began, ended in runs) for moment, _ in runs)


def fetch(results, **options):
    return [result.get(timeout=50, interval=0.02, **options) for result in results]


def main() -> None:
    limited = [call_api.delay() for _ in range(20)]
    free = fetch([unlimited.delay() for _ in range(5)])
    runs = fetch(limited)
    print(f"20 messages, 4 processes, never more than {most_at_once(runs)} calls of the API at once")
    early = sum(ended < max(last for _, last in runs) for _, ended in free)
    print(f"unlimited tasks did not wait: {early} of 5 done before the last limited one")
    tenants = fetch([sync_tenant.delay(tenant) for tenant in ("acme", "zenith") * 5])
    print(f"2 tenants, 1 run each at a time: never more than {most_at_once(tenants)} at once")

    holding = report.delay()
    wait_for("report-runs")
    (error,) = fetch([report.apply_async(pool_on_full="fail")], propagate=False)
    print(f'pool_on_full="fail": {type(error).__name__}')
    (error,) = fetch([report.apply_async(pool_timeout=0.2)], propagate=False)
    print(f"pool_timeout=0.2: {type(error).__name__}")
    dropped = report.apply_async(pool_on_full="drop")
    fetch([unlimited.delay()])  # it came later, so the worker has seen the one before
    (directory / "report-may-end").touch()
    fetch([holding])
    print(f'pool_on_full="drop": {"a result" if dropped.ready() else "no result"}')

    try:
        report.apply_async(pool_size=0)
    except InvalidOptionError as error:
        print(f"a bad option is refused where it is written: {error}")


if __name__ == "__main__":
    with start_worker(app, pool="prefork", concurrency=4, perform_ping_check=False, loglevel="CRITICAL"):
        main()
