"""What becomes of parked messages while a worker lets end what runs."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.harness.redis_server import RedisServer
from tests.harness.waiting import wait_until
from tests.integration.celery_apps import Deployment


@pytest.mark.needs("celery>=5.5", reason="it has no soft shutdown before")
def test_a_soft_shutdown_begins_nothing_more_out_of_the_room(tmp_path: Path, own_redis: RedisServer) -> None:
    made = Deployment(tmp_path, own_redis, extra="app.conf.worker_soft_shutdown_timeout = 2\n")
    with made.worker("threads", concurrency=2) as worker:
        first = made.module.one.delay("soft", None)
        wait_until("it runs", lambda: made.list("started:soft"), 20)
        for _ in range(3):
            made.module.one.delay("soft", 0)
        wait_until("the others are parked", lambda: made.parked("one:soft") == 3, 20)
        os.kill(worker.pid, signal.SIGQUIT)
        worker.wait_log("Initiating Soft Shutdown")
        made.history.set("celery-test:go:one-soft", 1, ex=60)
        wait_until("the worker has ended", lambda: not worker.alive, 30)
        assert made.list("finished:soft") == made.list("started:soft") == [first.id]
        assert (made.holders("one:soft"), made.parked("one:soft")) == (0, 3)
    made.close()
