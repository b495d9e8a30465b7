"""Parked messages take their turns with a backlog of other tasks."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.harness.redis_server import RedisServer
from tests.harness.waiting import wait_until
from tests.integration.celery_apps import Deployment

BUSY = """
@app.task(shared=False, name="app.busy", ignore_result=True)
def busy(number):
    time.sleep(0.05)
    history().rpush("celery-test:busy", number)
"""
BACKLOG = 300


@pytest.mark.parametrize("kind", ["prefork", "threads", "gevent"])
def test_a_parked_message_runs_before_the_end_of_a_backlog_of_tasks_without_a_limit(
    tmp_path: Path, own_redis: RedisServer, kind: str
) -> None:
    made = Deployment(tmp_path, own_redis, extra=BUSY)
    with made.worker(kind, concurrency=2):
        with made.slot("one:turn"):
            sent = [made.module.one.delay("turn", 0) for _ in range(2)]
            wait_until("they are parked", lambda: made.parked("one:turn") == 2, 20)
            for number in range(BACKLOG):
                made.module.busy.delay(number)
        for result in sent:
            result.get(timeout=40)
        assert len(made.list("busy")) < BACKLOG
        wait_until("the backlog has ended", lambda: len(made.list("busy")) == BACKLOG, 60)
    made.close()
