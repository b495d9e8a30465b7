"""The gate and pools that have a rate, with a worker that is only pretended and slots in memory."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
from celery import Celery
from celery.worker import state

import celery_ext
from celery_ext.waiting import LOOK_AGAIN, SOONEST
from slotline.errors import PoolFullError, PoolTimeoutError
from slotline.stores import MemoryStore
from tests.harness.waiting import wait_until
from tests.unit.test_celery_gate import Request, Timer, Worker, lambda_like

pytestmark = pytest.mark.lowest


class PunctualTimer(Timer):
    """Calls what is due when the test asks for it, and notes after how many seconds that was to be."""

    def __init__(self) -> None:
        super().__init__()
        self.after: list[float] = []
        self.due: list[tuple[float, Any, tuple[Any, ...]]] = []

    def call_after(self, seconds: float, function: Any, args: tuple[Any, ...] = ()) -> None:
        self.after.append(seconds)
        self.due.append((time.monotonic() + seconds, function, args))

    def fire(self) -> None:
        now, due = time.monotonic(), self.due
        self.due = [entry for entry in due if entry[0] > now]
        for at, function, args in due:
            if at <= now:
                function(*args)


@pytest.fixture
def worker() -> Iterator[Worker]:
    app = Celery("unit", broker="memory://", backend="cache+memory://", set_as_current=False)
    app.Task = celery_ext.Task
    app.conf.slotline_store = MemoryStore()
    app.task(lambda_like, name="unit.free", shared=False)
    app.finalize()
    worker = Worker(app, 100)
    worker.consumer.timer = PunctualTimer()
    yield worker
    worker.gate.close()
    state.reset_state()
    app.close()


def send(worker: Worker, **options: Any) -> Request:
    request = Request(worker.app.tasks["unit.free"], options={"pool": "rated", **options})
    return worker.receive(request)


def test_held_requests_start_in_order_when_the_rate_allows_each(worker: Worker) -> None:
    timer, begun = worker.consumer.timer, time.monotonic()
    sent = [send(worker, pool_rate="20/s") for _ in range(4)]
    assert worker.ran == sent[:1]
    assert timer.after[0] <= 0.08 < LOOK_AGAIN, "the tick alone would keep up with four starts a second"
    wait_until("the rate has let all in", lambda: timer.fire() or len(worker.ran) == 4, 10)
    assert time.monotonic() - begun >= 0.15
    assert worker.ran == sent
    assert min(timer.after) >= SOONEST
    assert len(timer.after) < 20, "one look for each start, not many"


def test_a_rate_that_is_far_away_is_left_to_the_tick(worker: Worker) -> None:
    send(worker, pool_rate="1/h")
    send(worker, pool_rate="1/h")
    assert worker.consumer.timer.after == [LOOK_AGAIN]


def test_a_request_whose_time_is_up_before_the_rate_allows_it_fails(worker: Worker) -> None:
    first = send(worker, pool_rate="1/h")
    late = send(worker, pool_rate="1/h", pool_timeout=0.05)
    wait_until("it has failed", lambda: worker.consumer.timer.fire() or late.error is not None, 10)
    assert type(late.error) is PoolTimeoutError
    assert worker.ran == [first]
    assert worker.gate.counts()["held"] == {}


def test_pools_that_differ_in_rate_or_burst_alone_are_told_apart(worker: Worker) -> None:
    slow = {"pool_size": 9, "pool_rate": "1/h", "pool_on_full": "fail"}
    send(worker, **slow)
    refused = send(worker, **slow)
    assert isinstance(refused.error, PoolFullError)
    assert refused.error.retry_after > 3000
    assert send(worker, **slow, pool_burst=3).error is None
    assert len(worker.gate._limits._made) == 2
