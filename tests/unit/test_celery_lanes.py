"""To which lane of the waiting room a message belongs, by the way on which it came."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from kombu import Exchange, Queue, binding
from kombu.common import Broadcast

from celery_ext.lanes import Lanes

DIRECT, TOPIC, FANOUT = Exchange("direct", "direct"), Exchange("topic", "topic"), Exchange("fanout", "fanout")
QUEUES = (
    Queue("celery", Exchange("celery", "direct"), routing_key="celery"),
    Queue("cpu", TOPIC, routing_key="cpu.#"),
    Queue("gpu", TOPIC, routing_key="gpu.*.large"),
    Queue("gpu-too", TOPIC, routing_key="gpu.b.*"),
    Queue("news", FANOUT, routing_key="celery"),
    Queue("one", DIRECT, routing_key="same"),
    Queue("other", DIRECT, routing_key="same"),
    Queue("bound", bindings=[binding(DIRECT, routing_key="left"), binding(DIRECT, routing_key="right")]),
    Broadcast("all", queue="bcast.1"),
)


def lanes(tags: dict[str, str] | None = None) -> Lanes:
    queues = {queue.name: queue for queue in QUEUES}
    consumer: Any = SimpleNamespace(
        app=SimpleNamespace(amqp=SimpleNamespace(queues=SimpleNamespace(consume_from=queues))),
        task_consumer=SimpleNamespace(_active_tags=tags),
        add_task_queue=None,
        cancel_task_queue=None,
    )
    found = Lanes(consumer, "room", lambda: None)
    found.open()
    return found


@pytest.mark.parametrize(
    ("exchange", "key", "queue"),
    [
        ("", "cpu", "cpu"),
        ("celery", "celery", "celery"),
        ("topic", "cpu.a.b", "cpu"),
        ("topic", "gpu.a.large", "gpu"),
        ("fanout", "whatever", "news"),
        ("direct", "right", "bound"),
    ],
)
def test_a_message_belongs_to_the_lane_of_its_queue(exchange: str, key: str, queue: str) -> None:
    message = SimpleNamespace(delivery_info={"exchange": exchange, "routing_key": key})
    assert lanes().of(message) == f"celery:room:{queue}"


@pytest.mark.parametrize(
    ("exchange", "key"),
    [
        ("", "unknown"),
        ("direct", "same"),
        ("topic", "gpu.b.large"),
        ("topic", "disk"),
        ("unknown", "celery"),
        ("all", "celery"),
        ("", "bcast.1"),
    ],
)
def test_a_message_of_no_one_queue_or_of_this_workers_own_belongs_to_none(exchange: str, key: str) -> None:
    assert lanes().of(SimpleNamespace(delivery_info={"exchange": exchange, "routing_key": key})) is None


def test_a_broker_that_says_through_which_consumer_a_message_came_is_believed() -> None:
    route = {"exchange": "topic", "routing_key": "gpu.b.large", "consumer_tag": "None2"}
    assert lanes({"gpu": "None1", "gpu-too": "None2"}).of(SimpleNamespace(delivery_info=route)) == "celery:room:gpu-too"
    assert lanes({"gpu": "None1"}).of(SimpleNamespace(delivery_info=route)) is None, "it is consumed from no more"
