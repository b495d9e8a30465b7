"""A Celery application under test: its module, its workers, and the client's side of it."""

from __future__ import annotations

import importlib
import os
import signal
import sys
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import kombu.pools
import redis

from tests.harness.redis_server import RedisServer
from tests.harness.waiting import wait_until
from tests.harness.workers import CeleryWorker

SOURCE = '''
import os
import signal
import time

import redis
from celery import Celery
from celery.exceptions import Ignore, Reject

from tests.integration.losing_slots import beat

app = Celery("app", broker=BROKER, backend=BACKEND, task_cls="celery_ext:Task")
app.conf.update(
    broker_connection_retry_on_startup=True,
    worker_cancel_long_running_tasks_on_connection_loss=False,
    worker_enable_prefetch_count_reduction=False,  # Celery's own, and stalls a threads worker on RabbitMQ
    task_default_queue=QUEUE,
    broker_transport_options=TRANSPORT,
    slotline_redis_url=os.environ.get("STORE_URL", STORE),
    slotline_heartbeat_lease=LEASE,
    slotline_pools={"declared": {"size": 1, "on_full": "fail"}},
    slotline_executors={
        "cpu": {"backend": "process", "max_pools": 1, "workers_per_pool": 2, "mp_context": "fork"},
        "spawned": {"backend": "process", "max_pools": 1, "workers_per_pool": 2},
        "billiard": {"backend": "billiard", "max_pools": 1, "workers_per_pool": 2},
        "io": {"backend": "thread", "max_pools": 2},
    },
    task_acks_late=ACKS_LATE,
    task_annotations={"app.foreign": {"pool": "foreign", "pool_size": 1}},
)
_client = None


def history():
    global _client
    if _client is None or _client[0] != os.getpid():
        _client = (os.getpid(), redis.Redis.from_url(STORE))
    return _client[1]


def inside(name, seconds):
    """Note how many of ``name`` run now, and stay for a while, or until told."""
    client = history()
    client.rpush(f"celery-test:peak:{name}", client.incr(f"celery-test:now:{name}"))
    while seconds is None and not client.exists(f"celery-test:go:{name}"):
        time.sleep(0.02)
    time.sleep(seconds or 0)
    client.decr(f"celery-test:now:{name}")


@app.task(shared=False, name="app.limited", pool="limited", pool_size=2, bind=True)
def limited(self, number, seconds=0.02):
    inside("limited", seconds)
    history().rpush("celery-test:done", number)
    return self.slot.fence


@app.task(shared=False, name="app.one", pool="one:{key}", pool_size=1, bind=True, pool_slot_exp=None)
def one(self, key, seconds=0.05):
    history().rpush(f"celery-test:started:{key}", self.request.id)
    inside(f"one-{key}", seconds)
    history().rpush(f"celery-test:finished:{key}", self.request.id)
    headers, priority = self.request.headers or {}, self.request.delivery_info["priority"]
    history().rpush(f"celery-test:headers:{key}", f"{headers.get('trace')} {priority}")
    return self.slot.key


@app.task(shared=False, name="app.note")
def note(result, text):
    history().rpush("celery-test:notes", text)


@app.task(shared=False, name="app.free")
def free(number):
    history().rpush("celery-test:done", f"free-{number}")
    return number


@app.task(shared=False, name="app.free_late", bind=True, acks_late=True)
def free_late(self, key, seconds):
    history().rpush(f"celery-test:started:{key}", self.request.id)
    inside(f"free-{key}", seconds)
    return key


@app.task(shared=False, name="app.declared", pool="declared")
def declared(seconds=0.5):
    time.sleep(seconds)


@app.task(shared=False, name="app.foreign", base=__import__("celery").Task)
def foreign(seconds=0.1):
    inside("foreign", seconds)


@app.task(shared=False, name="app.hard", pool="hard", pool_size=1, time_limit=1)
def hard(seconds):
    inside_hard(seconds)


def inside_hard(seconds):
    client = history()
    client.rpush("celery-test:hard", f"{os.getpid()}")
    time.sleep(seconds)


@app.task(shared=False, name="app.die", pool="die", pool_size=1)
def die(how):
    history().rpush("celery-test:die", os.getpid())
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "raise":
        raise ValueError(how)
    if how == "ignore":
        raise Ignore
    if how == "reject":
        raise Reject(how)
    return how


@app.task(shared=False, name="app.again", pool="again", pool_size=1, bind=True, max_retries=3)
def again(self):
    if self.request.retries < 2:
        raise self.retry(countdown=0)
    return self.request.retries


@app.task(shared=False, name="app.slow_add", cache_ttl=60)
def slow_add(left, right=1, seconds=0.3):
    history().rpush("celery-test:runs", f"{left}+{right}")
    time.sleep(seconds)
    return left + right


def until_told(number):
    history().rpush("celery-test:runs", number)
    history().rpush("celery-test:pids", os.getpid())
    while not history().exists("celery-test:go"):
        time.sleep(0.02)


@app.task(shared=False, name="app.price", cache_ttl=60)
def price(item):
    until_told(item)
    return os.getpid()


@app.task(shared=False, name="app.unavailable", cache_ttl=60)
def unavailable(item):
    until_told(item)
    raise LookupError("no luck", item)


@app.task(shared=False, name="app.limited_price", cache_ttl=60, pool="prices", pool_size=1)
def limited_price(item):
    until_told(item)
    return item


@app.task(shared=False, name="app.stale_price", cache_ttl=1, pool="stale", pool_size=1, pool_on_full="stale")
def stale_price(item):
    history().rpush("celery-test:runs", item)
    return len(history().lrange("celery-test:runs", 0, -1))


AUTORETRY = {"autoretry_for": (ValueError,), "retry_kwargs": {"countdown": 0}}


@app.task(shared=False, name="app.flaky", cache_ttl=60, bind=True, **AUTORETRY)
def flaky(self, number):
    history().rpush("celery-test:runs", f"flaky-{number}")
    if self.request.retries < 1:
        raise ValueError(number)
    return number * 2


@app.task(shared=False, name="app.failing", cache_ttl=60, cache_errors=True)
def failing(number):
    history().rpush("celery-test:runs", f"failing-{number}")
    raise KeyError(number)


@app.task(shared=False, name="app.ignoring", cache_ttl=60, cache_errors=True)
def ignoring(number):
    history().rpush("celery-test:runs", f"ignoring-{number}")
    raise Ignore


@app.task(shared=False, name="app.total")
def total(numbers):
    return sum(numbers)


@app.task(shared=False, name="app.note_error")
def note_error(request, error, traceback):
    history().rpush("celery-test:errors", type(error).__name__)


@app.task(shared=False, name="app.in_cpu", executor="cpu", bind=True)
def in_cpu(self, number):
    return [number * 2, os.getpid(), self.request.id]


@app.task(shared=False, name="app.overdue", executor="cpu", time_limit=1)
def overdue():
    history().rpush("celery-test:grandchildren", os.getpid())
    time.sleep(60)


@app.task(shared=False, name="app.in_io", executor="io", bind=True)
def in_io(self, number):
    import threading
    return [number * 2, threading.current_thread().name, self.request.id]


@app.task(
    shared=False, name="app.beating", pool="beating:{name}", pool_size=1, bind=True, reject_on_worker_lost=True
)
def beating(self, name, seconds):
    return beat(STORE, name, self.slot.fence, seconds)


@app.task(
    shared=False, name="app.beating_in_cpu", executor="cpu", pool="beating:{name}", pool_size=1, bind=True
)
def beating_in_cpu(self, name, seconds):
    return beat(STORE, name, self.slot.fence, seconds)


@app.task(
    shared=False, name="app.beating_in_spawned", executor="spawned", pool="beating:{name}", pool_size=1, bind=True
)
def beating_in_spawned(self, name, seconds):
    return beat(STORE, name, self.slot.fence, seconds)


@app.task(
    shared=False, name="app.beating_in_billiard", executor="billiard", pool="beating:{name}", pool_size=1, bind=True
)
def beating_in_billiard(self, name, seconds):
    return beat(STORE, name, self.slot.fence, seconds)


@app.task(shared=False, name="app.leasing", bind=True)
def leasing(self, seconds=0, name="cpu"):
    with self.lease(name) as lease:
        pids = [future.result() for future in [lease.executor.submit(os.getpid) for _ in range(4)]]
        history().rpush("celery-test:grandchildren", *pids)
        if seconds:
            lease.sync.run(time.sleep, seconds)
    return sorted(set(pids))
'''


class Deployment:
    """One application on one broker, with a Redis for results, slots and the history that its tasks write.

    Args:
        directory: Where its module and logs go.
        server: The Redis.
        broker: The broker's URL; default: the same Redis.
        queue: The queue's name.
        acks_late: Celery's ``task_acks_late``.
        lease: Seconds after which a dead worker's slots are free.
        transport: Celery's ``broker_transport_options``.
        extra: More source for the module: settings, tasks.
    """

    def __init__(
        self,
        directory: Path,
        server: RedisServer,
        *,
        broker: str | None = None,
        queue: str = "celery",
        acks_late: bool = False,
        lease: float = 10.0,
        transport: Mapping[str, Any] | None = None,
        extra: str = "",
    ) -> None:
        self.server, self.directory = server, directory
        self.pool = "prefork"
        self.workers: list[CeleryWorker] = []
        self.name = f"celery_app_{uuid.uuid4().hex[:8]}"
        header = (
            f"BROKER = {broker or server.url!r}\nBACKEND = STORE = {server.url!r}\nQUEUE = {queue!r}\n"
            f"ACKS_LATE = {acks_late}\nLEASE = {lease}\nTRANSPORT = {transport or {'visibility_timeout': 3600}!r}\n"
        )
        (directory / f"{self.name}.py").write_text(header + SOURCE + extra)
        sys.path.insert(0, str(directory))
        try:
            importlib.invalidate_caches()
            self.module: Any = importlib.import_module(self.name)
        finally:
            sys.path.remove(str(directory))
        self.history: redis.Redis = server.client()

    @contextmanager
    def worker(
        self, pool: Any = "prefork", *, concurrency: int = 4, args: Any = (), store: Any = None, wait: bool = True
    ) -> Iterator[CeleryWorker]:
        """Start a worker, killed at the end of the block; ``store`` is the URL by which it reaches its slots."""
        app, env = f"{self.name}:app", None if store is None else {"STORE_URL": store}
        worker = CeleryWorker(app, self.directory, pool=pool, concurrency=concurrency, args=args, env=env)
        self.workers.append(worker)
        try:
            worker.start(wait=wait)
            yield worker
        finally:
            worker.close()

    @contextmanager
    def stopped_child(self, worker: CeleryWorker) -> Iterator[None]:
        """Stop the only child of a prefork worker: it reads nothing until the end of the block."""
        (child,) = worker.children()
        os.kill(child, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(child, signal.SIGCONT)

    def clear(self) -> None:
        """Forget the history."""
        for key in self.history.scan_iter("celery-test:*"):
            self.history.delete(key)

    def list(self, name: str) -> list[str]:
        """Return what tasks have written under ``name``."""
        return [item.decode() for item in self.history.lrange(f"celery-test:{name}", 0, -1)]

    def peak(self, name: str) -> int:
        """Return how many of ``name`` ran at once at the most."""
        return max(map(int, self.list(f"peak:{name}")), default=0)

    def holders(self, key: str) -> int:
        """Return how many slots of a pool are in use."""
        from slotline import Pool
        from slotline.stores import RedisStore

        store = RedisStore(self.server.url)
        try:
            return Pool(key, 1, store=store).sync.size()
        finally:
            store.sync.close()

    @contextmanager
    def slot(self, key: str) -> Iterator[None]:
        """Hold the only slot of a pool inside the block."""
        from slotline import Pool
        from slotline.stores import RedisStore

        store = RedisStore(self.server.url)
        try:
            with Pool(key, 1, store=store):
                yield
        finally:
            store.sync.close()

    def parked(self, key: str) -> int:
        """Return how many messages are parked for a pool."""
        return sum(
            sum(field.startswith(b"m:") for field in self.history.hkeys(name))
            for name in self.history.scan_iter(f"slotline:{{pool:{key}}}:state")
        )

    def wait_free(self, key: str, timeout: float = 10) -> None:
        """Wait until no slot of a pool is in use."""
        wait_until(f"no slot of {key} is in use", lambda: self.holders(key) == 0, timeout, 0.05)

    def close(self) -> None:
        """Close the client's side."""
        self.module.app.close()
        kombu.pools.reset()  # they are the process's, found again by their URL
        self.module.app.backend.client.close()
        if self.module._client is not None:
            self.module._client[1].close()
        self.history.close()
        sys.modules.pop(self.name, None)
