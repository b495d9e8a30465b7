"""Quorum queues of RabbitMQ, on which a worker's prefetch count is fixed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.harness.redis_server import RedisServer
from tests.harness.waiting import wait_until
from tests.integration.celery_apps import Deployment

pytestmark = [
    pytest.mark.rabbitmq,
    pytest.mark.needs("celery>=5.5", reason="older workers ask for a global prefetch count, which these queues refuse"),
]

EXTRA = """
app.conf.update(task_default_queue_type="quorum", task_default_exchange_type="topic")


@app.task(shared=False, name="app.gated", pool="gated", pool_size=1)
def gated(number):
    history().rpush("celery-test:gated", number)
    while not history().exists("celery-test:go"):
        time.sleep(0.02)
    inside("gated", 0.02)
    return number
"""
DELAYS = 28
"""How many queues and exchanges Celery declares for tasks with an ETA on quorum queues."""


@pytest.fixture
def made(tmp_path: Any, own_redis: RedisServer, amqp_url: str, amqp_name: Any) -> Iterator[Deployment]:
    made = Deployment(tmp_path, own_redis, broker=amqp_url, queue=amqp_name("quorum"), acks_late=True, extra=EXTRA)
    yield made
    with made.module.app.connection_for_write() as connection:
        for name in ["celery_delayed_delivery", *(f"celery_delayed_{level}" for level in range(DELAYS))]:
            for delete in (connection.default_channel.queue_delete, connection.default_channel.exchange_delete):
                delete(name)
    made.close()


def test_parked_tasks_hold_up_no_others(made: Deployment) -> None:
    app = made.module
    with made.worker("prefork", concurrency=2) as worker:
        worker.wait_log("Prefetch count is now static")
        sent = [app.gated.delay(number) for number in range(40)]
        later = app.gated.apply_async((40,), countdown=1)
        assert [app.free.delay(number).get(timeout=30) for number in range(10)] == list(range(10))
        wait_until("the others are parked", lambda: made.parked("gated") == 40, 30)
        assert len(made.list("gated")) == 1
        made.history.set("celery-test:go", 1, ex=60)
        assert [result.get(timeout=30) for result in [*sent, later]] == list(range(41))
        made.wait_free("gated")
    assert made.peak("gated") == 1
    assert len(made.list("gated")) == 41


@pytest.mark.needs("celery>=5.7", reason="older workers do not tell whether their prefetch count is fixed")
def test_held_tasks_take_up_the_prefetch_count_and_the_worker_says_so(made: Deployment) -> None:
    app = made.module
    with made.worker("prefork", concurrency=2, args=("--prefetch-multiplier", "2")) as worker:
        sent = [app.gated.apply_async((number,), pool_on_full="wait") for number in range(10)]
        free = app.free.delay(7)
        worker.wait_log("which is fixed on quorum queues")
        made.history.set("celery-test:go", 1, ex=60)
        assert [result.get(timeout=30) for result in [*sent, free]] == [*range(10), 7]
        made.wait_free("gated")
    assert made.peak("gated") == 1
    assert len(made.list("gated")) == 10
