"""Workers that serve different queues, and the queues from which parked and held messages came."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness.redis_server import RedisServer
from tests.harness.waiting import wait_until
from tests.harness.workers import all_ready
from tests.integration.celery_apps import Deployment

EXTRA = """
from kombu import Exchange, Queue
from kombu.common import Broadcast

jobs = Exchange(QUEUE + "-jobs", "topic")
app.conf.task_queues = [
    Queue(QUEUE),
    Queue(QUEUE + "-cpu", jobs, routing_key="cpu.#"),
    Queue(QUEUE + "-gpu", jobs, routing_key="gpu.#"),
    Broadcast(QUEUE + "-all"),
]


@app.task(shared=False, name="app.here", pool="here", pool_size=1, bind=True)
def here(self, number):
    history().rpush("celery-test:here", f"{number} {self.request.hostname}")
    inside("here", 0.05)


@app.task(shared=False, name="app.cached_here", cache_ttl=60)
def cached_here():
    time.sleep(0.3)
    history().rpush("celery-test:cached", 1)
"""
BROKERS = ["redis", pytest.param("rabbitmq", marks=pytest.mark.rabbitmq)]


@pytest.fixture(params=BROKERS)
def made(tmp_path: Path, own_redis: RedisServer, request: pytest.FixtureRequest) -> Iterator[Deployment]:
    broker, queue = None, "queues"
    if request.param == "rabbitmq":
        suffixes = ("", "-jobs", "-cpu", "-gpu", "-all", "-late")
        broker, queue = request.getfixturevalue("amqp_url"), request.getfixturevalue("amqp_name")("queues", suffixes)
    made = Deployment(tmp_path, own_redis, broker=broker, queue=queue, lease=3.0, extra=EXTRA)
    yield made
    made.close()


def queue_of(made: Deployment, suffix: str) -> str:
    return f"{made.module.app.conf.task_default_queue}-{suffix}"


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_a_queue_is_served_from_when_a_worker_is_told_to_until_it_is_told_not_to(made: Deployment, pool: str) -> None:
    app, queue = made.module, queue_of(made, "late")
    with made.worker(pool, concurrency=2) as worker:
        app.app.control.add_consumer(queue, destination=[worker.nodename], reply=True)
        sent = [app.one.apply_async(("late",), queue=queue) for _ in range(4)]
        assert [result.get(timeout=20) for result in sent] == ["one:late"] * 4

        first = app.one.apply_async(("end", None), queue=queue)
        wait_until("the first runs", lambda: made.list("started:end"), 10)
        parked = app.one.apply_async(("end", 0), queue=queue)
        wait_until("the second is parked", lambda: made.parked("one:end") == 1, 10)
        app.app.control.cancel_consumer(queue, destination=[worker.nodename], reply=True)
        made.history.set("celery-test:go:one-end", 1, ex=60)
        first.get(timeout=10)
        assert app.one.delay("end", 0).get(timeout=20) == "one:end", "what others serve holds nobody up"
        assert made.parked("one:end") == 1
        app.app.control.add_consumer(queue, destination=[worker.nodename], reply=True)
        assert parked.get(timeout=20) == "one:end"
    assert made.peak("one-late") == made.peak("one-end") == 1


def test_a_parked_message_is_taken_only_by_workers_of_its_queue_whatever_exchange_it_came_by(made: Deployment) -> None:
    app = made.module
    every, cpu = (["-Q", ",".join(queue_of(made, name) for name in names)] for names in (("cpu", "gpu"), ("cpu",)))
    with made.worker("prefork", args=every, wait=False) as both, made.worker("prefork", args=cpu, wait=False) as one:
        all_ready([both, one])
        first = app.one.apply_async(("gpu", None), queue=queue_of(made, "gpu"), routing_key="gpu.large")
        wait_until("the first runs", lambda: made.list("started:gpu"), 10)
        parked = [
            app.one.apply_async(("gpu", 0), queue=queue_of(made, name), routing_key=f"{name}.small")
            for name in ("gpu", "cpu")
        ]
        wait_until("the others are parked", lambda: made.parked("one:gpu") == 2, 10)
        both.kill()
        assert parked[1].get(timeout=30) == "one:gpu", "the worker that is left serves its queue"
        assert made.parked("one:gpu") == 1
        assert made.list("started:gpu") == [first.id, parked[1].id]


@pytest.mark.parametrize("made", BROKERS[1:], indirect=True)
def test_a_broadcast_runs_in_each_worker_within_its_limit(made: Deployment) -> None:
    app, queue = made.module, queue_of(made, "all")
    with made.worker("prefork", wait=False) as one, made.worker("threads", wait=False) as two:
        all_ready([one, two])
        for number in range(5):
            app.here.apply_async((number,), queue=queue)
        cached = app.cached_here.apply_async(queue=queue)
        wait_until("all have run", lambda: len(made.list("here")) == 10, 30)
        assert len(set(made.list("here"))) == 10, "each in each worker"
        for worker in (one, two):
            worker.wait_log(f"Task app.cached_here[{cached.id}] succeeded")
        assert made.list("cached") == ["1"], "whoever comes second has the value of the first"
        made.wait_free("here")
    assert made.peak("here") == 1
