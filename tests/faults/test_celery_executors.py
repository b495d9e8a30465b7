"""Leases in real Celery workers of every kind, and what is left when these are recycled, stopped or killed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from billiard.exceptions import TimeLimitExceeded

from slotline.errors import UnsupportedBackendError, WorkTimeLimitError
from tests.harness.processes import gone
from tests.harness.redis_server import RedisServer
from tests.harness.waiting import wait_until
from tests.harness.workers import CeleryWorker
from tests.integration.celery_apps import Deployment

TASKS = """

def step(number):
    if number % 100 == 50:
        history().rpush("celery-test:grandchildren", os.getpid())
    time.sleep(0.005)
    return number


@app.task(shared=False, name="app.mapping", bind=True)
def mapping(self, name, count):
    with self.lease(name, lease_seconds=60) as lease:
        return sum(lease.executor.map(step, range(count)))


def nap(seconds):
    history().rpush("celery-test:grandchildren", os.getpid())
    time.sleep(seconds)
    return os.getpid()


@app.task(shared=False, name="app.napping", bind=True)
def napping(self, name, seconds):
    with self.lease(name) as lease:
        return lease.sync.run(nap, seconds)


@app.task(shared=False, name="app.overdue_spawned", executor="spawned", time_limit=3)
def overdue_spawned():
    nap(60)
"""


@pytest.fixture
def deployment(own_redis: RedisServer, tmp_path: Path) -> Iterator[Deployment]:
    made = Deployment(tmp_path, own_redis, extra=TASKS)
    yield made
    made.close()


def pids(deployment: Deployment) -> list[int]:
    return [int(pid) for pid in deployment.list("grandchildren")]


def nothing_left(worker: CeleryWorker, deployment: Deployment) -> bool:
    return not worker.processes() and gone(*pids(deployment))


@pytest.mark.parametrize(("killed", "backend"), [("worker", "billiard"), ("worker", "spawned"), ("child", "billiard")])
def test_a_prefork_task_that_maps_a_thousand_items_over_a_lease_leaves_nothing_when_it_is_killed(
    deployment: Deployment, killed: str, backend: str
) -> None:
    mapping = deployment.module.mapping
    with deployment.worker("prefork", concurrency=1) as worker:
        assert mapping.delay(backend, 60).get(timeout=60) == sum(range(60))
        mapping.delay(backend, 1000)
        wait_until("it is in the middle", lambda: len(pids(deployment)) >= 4, 60)
        before = [process.pid for process in worker.processes() if process.pid != worker.pid]
        assert len(before) >= 3
        if killed == "worker":
            worker.kill()
            wait_until("no process is left", lambda: nothing_left(worker, deployment), 20)
        else:
            worker.kill_child()
            wait_until("none of its processes is left", lambda: gone(*before), 20)


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_a_warm_shutdown_lets_a_lease_finish_and_leaves_nothing(deployment: Deployment, pool: str) -> None:
    with deployment.worker(pool, concurrency=3) as worker:
        backends = ("spawned", "billiard", "io")
        sent = [deployment.module.napping.delay(backend, 2.0) for backend in backends]
        wait_until("all run", lambda: len(pids(deployment)) == len(backends), 60)
        worker.terminate(60)
        assert all(isinstance(one.get(timeout=10), int) for one in sent)
        wait_until("no process is left", lambda: nothing_left(worker, deployment), 20)


def test_leases_of_greenlets_hold_up_no_other_greenlet(deployment: Deployment) -> None:
    module = deployment.module
    with deployment.worker("gevent", concurrency=10) as worker:
        for backend in ("spawned", "io"):
            assert module.napping.delay(backend, 0.0).get(timeout=60) in pids(deployment)
            deployment.clear()
            naps = [module.napping.delay(backend, 1.5) for _ in range(3)]  # there is one executor, or two
            wait_until("one runs", lambda: pids(deployment), 60)
            free = [module.free.delay(number) for number in range(20)]
            assert [one.get(timeout=20) for one in free] == list(range(20))
            assert not all(nap.ready() for nap in naps), "the free tasks waited for the leases"
            assert all(isinstance(nap.get(timeout=60), int) for nap in naps)
            assert module.mapping.delay(backend, 60).get(timeout=60) == sum(range(60))
        deployment.clear()
        with pytest.raises((TimeLimitExceeded, WorkTimeLimitError)):  # gevent's own pool enforces it since Celery 5.5
            module.overdue_spawned.delay().get(timeout=60)
        wait_until("its process is dead", lambda: pids(deployment) and gone(*pids(deployment)), 20)
        for name, says in (("billiard", "does not run under gevent"), ("cpu", "cannot fork")):
            with pytest.raises(UnsupportedBackendError, match=says):
                module.napping.delay(name, 0.0).get(timeout=60)
        worker.terminate(60)
        wait_until("no process is left", lambda: nothing_left(worker, deployment), 20)
