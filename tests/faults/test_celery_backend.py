"""A result backend that is connected and never answers keeps from their work only those whose results it is to have."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from billiard.exceptions import WorkerLostError
from celery import Celery

from slotline import PoolFullError
from tests.harness.redis_server import RedisServer
from tests.harness.waiting import wait_until
from tests.integration.celery_apps import Deployment


@pytest.mark.lowest
@pytest.mark.parametrize("kind", ["prefork", "threads", "gevent"])
def test_calls_that_are_refused_while_the_backend_is_silent_hold_up_no_others(
    tmp_path: Path, own_redis: RedisServer, make_redis: Callable[..., RedisServer], kind: str
) -> None:
    backend = make_redis()
    made = Deployment(tmp_path, own_redis, extra=f"app.conf.result_backend = {backend.url!r}\n")
    client = Celery(broker=own_redis.url, set_as_current=False)  # which asks no backend about what it sends
    with made.worker(kind, concurrency=2), made.slot("declared"):
        assert made.module.free.delay(0).get(timeout=20) == 0
        os.kill(backend.pid, signal.SIGSTOP)
        try:
            refused = [client.send_task("app.declared").id for _ in range(3)]
            for number in range(1, 9):
                client.send_task("app.free", (number,), ignore_result=True)
            wait_until("the others have run", lambda: len(made.list("done")) == 9, 20)
        finally:
            os.kill(backend.pid, signal.SIGCONT)
        for task_id in refused:
            with pytest.raises(PoolFullError):
                made.module.app.AsyncResult(task_id).get(timeout=20)
    client.close()
    made.close()


@pytest.mark.lowest
def test_the_slot_of_a_killed_child_passes_on_while_the_backend_is_silent(
    tmp_path: Path, own_redis: RedisServer, make_redis: Callable[..., RedisServer]
) -> None:
    backend = make_redis()
    made = Deployment(tmp_path, own_redis, extra=f"app.conf.result_backend = {backend.url!r}\n")
    client = Celery(broker=own_redis.url, set_as_current=False)
    with made.worker("prefork", concurrency=2):
        assert made.module.free.delay(0).get(timeout=20) == 0
        os.kill(backend.pid, signal.SIGSTOP)
        try:
            killed = client.send_task("app.die", ("kill",)).id
            wait_until("it has run", lambda: made.list("die"), 20)
            made.wait_free("die")
        finally:
            os.kill(backend.pid, signal.SIGCONT)
        with pytest.raises(WorkerLostError):
            made.module.app.AsyncResult(killed).get(timeout=20)
    client.close()
    made.close()
