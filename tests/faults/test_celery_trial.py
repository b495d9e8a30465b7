"""A day in production: a long line before a limit, other tasks behind it, a worker that dies and one that comes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.faults.celery_history import SOURCE, most_at_once, now, runs, times_run
from tests.harness.redis_server import RedisServer
from tests.harness.waiting import wait_until
from tests.integration.celery_apps import Deployment

LIMITED, FREE, SECONDS, LEASE = 300, 20, 0.04, 2.0
TRANSPORT = {"visibility_timeout": 3, "unacked_restore_interval": 1, "unacked_restore_throttle": 1}


def test_a_line_before_a_limit_survives_its_workers_on_redis(tmp_path: Path) -> None:
    with RedisServer() as server:
        everything_finishes(Deployment(tmp_path, server, lease=LEASE, transport=TRANSPORT, extra=SOURCE))


@pytest.mark.rabbitmq
def test_a_line_before_a_limit_survives_its_workers_on_rabbitmq(tmp_path: Path, amqp_url: str, amqp_name: Any) -> None:
    with RedisServer() as server:
        queue = amqp_name("trial")
        everything_finishes(Deployment(tmp_path, server, broker=amqp_url, queue=queue, lease=LEASE, extra=SOURCE))


def everything_finishes(made: Deployment) -> None:
    app = made.module
    with made.worker("prefork", concurrency=2) as doomed, made.worker("prefork", concurrency=2):
        limited = [app.traced.delay(SECONDS) for _ in range(LIMITED)]
        free = [app.passing.delay(0) for _ in range(FREE)]
        for result in free:
            result.get(timeout=60)
        wait_until("a third has run", lambda: made.history.llen("celery-test:history") > 2 * LIMITED / 3, 60)
        pids = [process.pid for process in doomed.processes()]
        doomed.kill_all()
        killed = dict.fromkeys(pids, now(made))
        with made.worker("prefork", concurrency=2):
            for result in limited:
                result.get(timeout=60)
            # The results are there; what was not acknowledged when its worker was killed comes once more.
            wait_until("the room is empty", lambda: not made.parked("traced"), 30)
            made.wait_free("traced")
    found = runs(made, killed)
    ids = {result.id for result in limited}
    of_limited = [run for run in found if run.id in ids]
    assert most_at_once(of_limited) == 2
    often = times_run(found)
    assert set(often) == {result.id for result in [*limited, *free]}, "nothing was lost"
    victims = {run.id for run in found if run.end == killed.get(run.pid)}
    again = {task for task, times in often.items() if times > 1}
    # What had ended and was not acknowledged yet when its worker was killed runs again, too.
    assert len(again - victims) <= 2
    last_free = max(run.end for run in found if run.id not in ids)
    before_it = sum(run.end < last_free for run in of_limited)
    assert before_it < LIMITED / 3, f"unlimited tasks waited behind {before_it} limited ones"
    made.close()
