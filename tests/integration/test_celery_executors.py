"""Leased executors inside real workers, and nothing left of them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from billiard.exceptions import TimeLimitExceeded

from slotline.errors import WorkTimeLimitError
from tests.harness.processes import gone
from tests.harness.redis_server import RedisServer
from tests.harness.waiting import wait_until
from tests.integration.celery_apps import Deployment


@pytest.fixture
def deployment(own_redis: RedisServer, tmp_path: Path) -> Iterator[Deployment]:
    made = Deployment(tmp_path, own_redis)
    yield made
    made.close()


def grandchildren(deployment: Deployment) -> list[int]:
    return [int(pid) for pid in deployment.list("grandchildren")]


@pytest.mark.lowest
@pytest.mark.parametrize("pool", ["prefork", "threads", "solo"])
def test_bodies_run_in_leases_and_a_warm_shutdown_leaves_nothing(deployment: Deployment, pool: str) -> None:
    app = deployment.module
    with deployment.worker(pool, concurrency=2) as worker:
        in_thread = app.in_io.delay(4)
        doubled, thread, task_id = in_thread.get(timeout=20)
        assert (doubled, thread.startswith("leasepool"), task_id) == (8, True, in_thread.id)
        in_process = app.in_cpu.delay(4)
        doubled, pid, task_id = in_process.get(timeout=20)
        assert (doubled, task_id) == (8, in_process.id)
        assert pid not in {os.getpid(), worker.pid}
        assert pool != "prefork" or pid not in worker.children()
        pids = app.leasing.delay().get(timeout=20)
        assert 1 <= len(pids) <= 2
        assert worker.terminate() == 0
        wait_until("its worker processes are gone", lambda: gone(pid, *grandchildren(deployment)), 10)


@pytest.mark.parametrize("backend", ["cpu", "billiard"])
@pytest.mark.parametrize("killed", ["child", "worker"])
def test_what_is_killed_takes_its_leased_processes_with_it(deployment: Deployment, backend: str, killed: str) -> None:
    app = deployment.module
    with deployment.worker("prefork", concurrency=1) as worker:
        assert len(app.leasing.delay(0, backend).get(timeout=30)) in {1, 2}
        app.leasing.delay(30, backend)
        wait_until("the lease is at work", lambda: len(grandchildren(deployment)) == 8, 20)
        if killed == "child":
            worker.kill_child()
        else:
            worker.kill()
        wait_until("the leased processes are gone", lambda: gone(*grandchildren(deployment)), 10)


@pytest.mark.parametrize(
    ("pool", "error"), [("threads", WorkTimeLimitError), ("solo", WorkTimeLimitError), ("prefork", TimeLimitExceeded)]
)
def test_a_time_limit_kills_a_leased_body_by_itself_where_celery_cannot(
    deployment: Deployment, pool: str, error: type[Exception]
) -> None:
    with deployment.worker(pool, concurrency=1):
        with pytest.raises(error):
            deployment.module.overdue.delay().get(timeout=20)
        wait_until("the body is dead", lambda: gone(*grandchildren(deployment)), 10)
        assert deployment.module.in_cpu.delay(2).get(timeout=20)[0] == 4


@pytest.mark.parametrize("backend", ["cpu", "billiard"])
def test_recycled_children_leave_no_leased_processes(deployment: Deployment, backend: str) -> None:
    app = deployment.module
    with deployment.worker("prefork", concurrency=1, args=("--max-tasks-per-child", "1")):
        for _ in range(2):
            app.leasing.delay(0, backend).get(timeout=20)
        first = grandchildren(deployment)[:4]
        wait_until("the first child's processes are gone", lambda: gone(*first), 10)
