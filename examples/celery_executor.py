"""Leased executors in Celery: a task's body, or a part of it, runs in a bounded pool of threads or processes.

Run it with ``python examples/celery_executor.py``. It needs no server: a real worker takes its messages from memory.

Expected output:

    executor="cpu": the body ran in another process than the worker: True
    executor="io": the body ran in a leased thread, under its own task id: True
    2 executors for 6 tasks: never more than 2 at once
    self.lease("cpu"): 1000 squares over 2 processes, sum 332833500
    an unknown name is refused where it is written: executor='gpu' is not allowed
"""

import logging
import os
import threading
import time

from celery import Celery
from celery.contrib.testing.worker import start_worker

from slotline import InvalidOptionError

logging.getLogger("celery").setLevel(logging.CRITICAL)

app = Celery("demo", broker="memory://", backend="cache+memory://", task_cls="celery_ext:Task")
app.conf.update(
    broker_transport_options={"polling_interval": 0.02},
    worker_hijack_root_logger=False,
    slotline_executors={
        "cpu": {"backend": "process", "max_pools": 1, "workers_per_pool": 2},
        "io": {"backend": "thread", "max_pools": 2, "name_prefix": "io"},
    },
)


@app.task(executor="cpu")
def crunch() -> int:
    return os.getpid()


@app.task(executor="io", bind=True)
def fetch(self) -> tuple[str, str]:
    return threading.current_thread().name, self.request.id


@app.task(executor="io")
def visit() -> tuple[float, float]:
    began = time.time()
    time.sleep(0.05)
    return began, time.time()


@app.task(bind=True)
def fan_out(self, count: int) -> int:
    with self.lease("cpu") as lease:
        return sum(lease.executor.map(square, range(count), chunksize=100))


def square(number: int) -> int:
    return number * number


def main() -> None:
    elsewhere = crunch.delay().get(timeout=30) != os.getpid()
    print(f'executor="cpu": the body ran in another process than the worker: {elsewhere}')

    fetching = fetch.delay()
    thread, task_id = fetching.get(timeout=30)
    itself = thread.startswith("io") and task_id == fetching.id
    print(f'executor="io": the body ran in a leased thread, under its own task id: {itself}')

    runs = [result.get(timeout=30) for result in [visit.delay() for _ in range(6)]]
    most = max(sum(began <= moment < ended for began, ended in runs) for moment, _ in runs)
    print(f"2 executors for 6 tasks: never more than {most} at once")

    print(f'self.lease("cpu"): 1000 squares over 2 processes, sum {fan_out.delay(1000).get(timeout=30)}')

    try:
        app.task(visit.run, name="wrong", executor="gpu").delay()
    except InvalidOptionError as error:
        print(f"an unknown name is refused where it is written: {str(error).partition(':')[0]}")


if __name__ == "__main__":
    with start_worker(app, pool="threads", concurrency=8, perform_ping_check=False, loglevel="CRITICAL"):
        main()
