"""A worker whose processes are replaced after a few tasks has new ones soon, and no slots for what waits for one."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.harness.redis_server import RedisServer
from tests.harness.waiting import wait_until
from tests.harness.workers import CeleryWorker
from tests.integration.celery_apps import Deployment

PROCESSES, SHORT, LONG = 2, 4, 5
APP = """
    from celery import Celery
    from celery.concurrency.asynpool import AsynPool

    AsynPool.timers = property(lambda pool: {{}})  # it looks after its processes only when it sees one end

    app = Celery("replaced", broker={url!r}, backend={url!r}, task_cls="celery_ext:Task", set_as_current=False)
    app.conf.slotline_redis_url = {url!r}
    app.conf.result_expires = 60

    @app.task(pool="p", pool_size=2, shared=False)
    def echo(number):
        return number
"""


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


@pytest.mark.leaves("keys", reason="the broker's bindings")
def test_a_process_is_replaced_although_its_end_was_seen_before_it_could_be_reaped(
    app_module: Callable[[str], str], celery_worker: Callable[..., CeleryWorker], redis_url: str
) -> None:
    name = app_module(APP.format(url=redis_url))
    celery_worker(name, concurrency=1, args=("--max-tasks-per-child", "1"))
    module = importlib.import_module(name)
    sent = [module.echo.delay(number) for number in range(40)]
    assert [result.get(timeout=60) for result in sent] == list(range(40))
    module.app.close()
