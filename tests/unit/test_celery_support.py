"""What a worker lacks of the parts that the gate uses is named at its start."""

from __future__ import annotations

from typing import Any

import celery
import pytest
from celery import Celery
from celery.concurrency import prefork, solo, thread

import celery_ext
from celery_ext._compat import check_version, warn_of_pool
from celery_ext.gate import Gate
from celery_ext.step import GateStep
from slotline.errors import (
    UnsupportedFrameworkError,
)
from tests.unit.test_celery_gate import Worker, app, store  # noqa: F401 - fixtures

pytestmark = pytest.mark.lowest


@pytest.mark.parametrize(
    ("thing", "name"), [("worker", "_process_task"), ("consumer", "timer"), ("semaphore", "_waiting")]
)
def test_a_worker_that_lacks_a_part_is_refused_by_its_name(app: Celery, thing: str, name: str) -> None:
    class Without:
        def __init__(self, whole: Any) -> None:
            self.__dict__.update({key: value for key, value in vars(whole).items() if key != name})

    worker = Worker(app, 1)
    worker.gate.close()
    worker.consumer.on_task_request = worker._process_task_sem
    lacking: Any = worker
    if thing == "semaphore":
        worker.semaphore = Without(worker.semaphore)
    elif thing == "consumer":
        worker.consumer = Without(worker.consumer)
    else:
        lacking = Without(worker)
    with pytest.raises(UnsupportedFrameworkError, match=name):
        Gate(lacking, worker.consumer)


@pytest.mark.parametrize("version", [(5, 3, 6), (5, 8, 0), (6, 0, 0)])
def test_an_untried_celery_is_refused(monkeypatch: pytest.MonkeyPatch, version: tuple[int, int, int]) -> None:
    monkeypatch.setattr(celery, "VERSION", version)
    with pytest.raises(UnsupportedFrameworkError, match=r"5\.4 to 5\.7"):
        check_version()


@pytest.mark.parametrize(("pool", "warns"), [(prefork, False), (solo, False), (thread, False), (None, True)])
def test_a_pool_that_limits_were_not_tried_on_is_warned_of(
    caplog: pytest.LogCaptureFixture, pool: Any, warns: bool
) -> None:
    class TaskPool(solo.TaskPool):  # type: ignore[misc] # Celery ships no types
        """As eventlet's, or the user's own."""

    kind = TaskPool if pool is None else pool.TaskPool
    warn_of_pool(kind.__new__(kind))
    assert ("was not tried with the worker pool tests.unit.test_celery_support." in caplog.text) is warns


def test_the_gate_is_installed_by_the_first_task_and_once(app: Celery) -> None:
    assert GateStep in app.steps["consumer"]
    before = len(app.steps["consumer"])
    celery_ext.setup(app)
    assert len(app.steps["consumer"]) == before
