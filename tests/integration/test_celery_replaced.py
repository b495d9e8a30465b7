"""A worker whose processes are replaced after a few tasks takes no slots for tasks that no process can run yet."""

from __future__ import annotations

from pathlib import Path

from tests.harness.redis_server import RedisServer
from tests.harness.waiting import wait_until
from tests.integration.celery_apps import Deployment

PROCESSES, SHORT, LONG = 2, 4, 5


def test_slots_are_held_for_what_runs(module_redis: RedisServer, tmp_path: Path) -> None:
    deployment = Deployment(tmp_path, module_redis)
    task, history = deployment.module.limited, deployment.history

    def so_many(ended: int, run: int) -> bool:
        return (len(deployment.list("done")), int(history.get("celery-test:now:limited") or 0)) == (ended, run)

    with deployment.worker(concurrency=PROCESSES, args=("--max-tasks-per-child", "1")):
        for number in range(SHORT + LONG):
            task.apply_async((number, 0 if number < SHORT else None), pool_size=50)
        wait_until("processes that have been replaced run what stays", lambda: so_many(SHORT, PROCESSES), 60)
        wait_until("one slot more is held at the most", lambda: deployment.holders("limited") <= PROCESSES + 1, 10)
        history.set("celery-test:go:limited", 1, ex=60)
        wait_until("all have run", lambda: so_many(SHORT + LONG, 0), 60)
        deployment.wait_free("limited")
    deployment.close()
    module_redis.client().flushall()
