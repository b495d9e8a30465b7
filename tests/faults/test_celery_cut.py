"""What came out of the room is settled, or in the room again, when the broker's connection breaks: never in between."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.harness.proxy import TcpProxy
from tests.harness.redis_server import RedisServer
from tests.harness.waiting import wait_until
from tests.harness.workers import CeleryWorker
from tests.integration.celery_apps import Deployment

CANCELS = "app.conf.worker_cancel_long_running_tasks_on_connection_loss = True\n"
QUICK = """
@app.task(shared=False, name="app.quick", pool="quick", pool_size=2)
def quick(number):
    time.sleep(0.01)
    history().rpush("celery-test:done", number)
"""


def cut(proxy: TcpProxy, worker: CeleryWorker) -> None:
    connected = worker.log.count("Connected to")
    proxy.cut()
    wait_until("the worker has connected again", lambda: worker.log.count("Connected to") > connected, 20)


@pytest.mark.rabbitmq
@pytest.mark.parametrize("late", [False, True], ids=["acks_early", "acks_late"])
def test_what_is_acknowledged_as_the_connection_to_rabbitmq_breaks_leaves_the_room(
    tmp_path: Path, own_redis: RedisServer, amqp_url: str, amqp_name: Any, *, late: bool
) -> None:
    parts = urlsplit(amqp_url)
    with TcpProxy(parts.port or 5672, parts.hostname or "127.0.0.1") as proxy:
        through = amqp_url.replace(f"{parts.hostname}:{parts.port or 5672}", f"127.0.0.1:{proxy.port}")
        made = Deployment(tmp_path, own_redis, broker=through, queue=amqp_name("cut"), acks_late=late, extra=QUICK)
        sent = [made.module.quick.delay(number) for number in range(400)]
        with made.worker("prefork", concurrency=4) as worker:
            for number in range(1, 9):
                wait_until("some have run", lambda at_least=20 * number: len(made.list("done")) >= at_least, 20)
                cut(proxy, worker)
            for result in sent:
                result.get(timeout=60)
            wait_until("no message is left in the room", lambda: made.parked("quick") == 0, 20)
            made.wait_free("quick")
        made.close()


@pytest.mark.lowest
def test_a_run_out_of_the_room_that_celery_cancels_as_the_connection_breaks_is_run_again(
    tmp_path: Path, own_redis: RedisServer
) -> None:
    with RedisServer() as broker, TcpProxy(broker.port) as proxy:
        made = Deployment(tmp_path, own_redis, broker=proxy.redis_url, acks_late=True, extra=CANCELS)
        with made.worker("prefork", concurrency=2) as worker:
            with made.slot("one:cancelled"):
                sent = made.module.one.delay("cancelled", None)
                wait_until("it is parked", lambda: made.parked("one:cancelled") == 1, 20)
            wait_until("it runs", lambda: made.list("started:cancelled"), 20)
            cut(proxy, worker)
            wait_until("it runs again", lambda: len(made.list("started:cancelled")) == 2, 20)
            made.history.set("celery-test:go:one-cancelled", 1, ex=60)
            assert sent.get(timeout=20) == "one:cancelled"
            wait_until("it has left the room", lambda: made.parked("one:cancelled") == 0, 20)
        made.close()


@pytest.mark.lowest
@pytest.mark.parametrize("late", [False, True], ids=["acks_early", "acks_late"])
def test_a_hit_out_of_its_line_that_a_child_was_just_sent_leaves_the_room(
    tmp_path: Path, own_redis: RedisServer, *, late: bool
) -> None:
    with RedisServer() as broker, TcpProxy(broker.port) as proxy:
        made = Deployment(tmp_path, own_redis, broker=proxy.redis_url, acks_late=late)
        price = made.module.price
        with (
            made.worker("prefork", concurrency=1),
            made.worker("prefork", concurrency=1, args=("-Q", "other")) as other,
        ):
            first = price.delay(7)
            wait_until("one runs", lambda: made.list("runs"), 20)
            second = price.apply_async((7,), queue="other")
            wait_until("another waits for its value", lambda: made.parked("cache-line:*") == 1, 20)
            with made.stopped_child(other):
                made.history.set("celery-test:go", 1, ex=60)
                wait_until("it is taken", lambda: other.log.count(f"{second.id}] received") == 2, 20)
                made.module.app.control.ping([other.nodename], timeout=20, limit=1)  # the loop has gone round since
                cut(proxy, other)
            assert second.get(timeout=20) == first.get(timeout=20)
            wait_until("it has left the room", lambda: made.parked("cache-line:*") == 0, 20)
        made.close()
