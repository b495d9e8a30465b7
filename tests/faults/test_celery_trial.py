"""A day in production: a long line before a limit, other tasks behind it, a worker that dies and one that comes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.harness.redis_server import RedisServer
from tests.harness.waiting import wait_until
from tests.integration.celery_apps import Deployment
from tests.integration.losing_slots import ends, fences, most_alive, runs

LIMITED, FREE, SECONDS, LEASE = 300, 20, 0.04, 2.0
TRANSPORT = {"visibility_timeout": 3}

SOURCE = """
@app.task(shared=False, name="app.traced", pool="traced", pool_size=2, bind=True, acks_late=True)
def traced(self, seconds):
    return beat(STORE, "traced", self.slot.fence, seconds, self.request.id)


@app.task(shared=False, name="app.passing", bind=True, acks_late=True)
def passing(self):
    return beat(STORE, "passing", time.time_ns(), 0, self.request.id)
"""


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
        free = [app.passing.delay() for _ in range(FREE)]
        for result in free:
            result.get(timeout=60)
        wait_until("a third has run", lambda: ends(made.history, "traced").total() > LIMITED / 3, 60)
        doomed.kill_all()
        with made.worker("prefork", concurrency=2):
            for result in limited:
                result.get(timeout=60)
            # The results are there; what was not acknowledged when its worker was killed comes once more.
            wait_until("the room is empty", lambda: not made.parked("traced"), 30)
            made.wait_free("traced")
    often, ended = runs(made.history, "traced"), ends(made.history, "traced")
    assert most_alive(fences(made.history, "traced")) == 2
    assert set(often) == {result.id for result in limited}, "nothing was lost"
    assert set(ends(made.history, "passing")) == {result.id for result in free}
    # Beside what was broken off, what had ended and was not acknowledged yet runs again.
    assert len([task for task, times in often.items() if times > 1 and ended[task] == times]) <= 2
    (last_free, _), *_ = made.history.xrevrange("history:passing", count=1)
    before_it = [
        entry for _, entry in made.history.xrange("history:traced", max=last_free) if entry[b"what"] == b"ends"
    ]
    assert len(before_it) < LIMITED / 3, f"unlimited tasks waited behind {len(before_it)} limited ones"
    made.close()
