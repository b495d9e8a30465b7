"""The lanes of the waiting room that a worker serves, and to which of them a message belongs.

Each queue has a lane, so that parked messages are taken only by workers that consume from their queue.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from kombu.common import Broadcast
from kombu.entity import Queue
from kombu.transport.virtual.exchange import TopicExchange

_topics = TopicExchange(None)  # type: ignore[no-untyped-call] # kombu ships no types


def lane_name(room: str, queue: str) -> str:
    """Return the name of the lane of a queue in an app's room."""
    return f"celery:{room}:{queue}"


class Lanes:
    """The lanes of the queues from which a worker consumes.

    Args:
        consumer: The worker's consumer.
        room: Part of the lanes' names; default: the broker's virtual host.
        on_change: Called when the worker was told to consume from another queue, or from one no more.
    """

    def __init__(self, consumer: Any, room: str | None, on_change: Callable[[], None]) -> None:
        self._consumer, self._room, self._on_change = consumer, room, on_change
        self._queues: dict[str, Queue] = {}
        consumer.add_task_queue = self._changing(consumer.add_task_queue)
        consumer.cancel_task_queue = self._changing(consumer.cancel_task_queue)

    def open(self) -> None:
        """Serve the queues from which the worker is about to consume; it has a connection."""
        self._queues = dict(self._consumer.app.amqp.queues.consume_from)

    def _changing(self, change: Callable[..., Any]) -> Callable[..., Any]:
        def changed(*args: Any, **kwargs: Any) -> None:
            change(*args, **kwargs)
            self._queues = {queue.name: queue for queue in self._consumer.task_consumer.queues}
            self._on_change()

        return changed

    @property
    def served(self) -> list[str]:
        """The lanes that the worker serves now."""
        return [self._name(queue) for queue in self._queues]

    def of(self, message: Any) -> str | None:
        """Return the lane of a message that the broker has delivered.

        Returns:
            The lane; ``None`` if it is not certain which queue the message came from, or if that is this worker's
            alone: nobody else could take it out of the lane, or somebody who must not.
        """
        queue = self._queue_of(message)
        return None if queue is None or isinstance(queue, Broadcast) else self._name(queue.name)

    def _name(self, queue: str) -> str:
        return lane_name(self._room or self._consumer.conninfo.virtual_host, queue)

    def _queue_of(self, message: Any) -> Queue | None:
        route, queues = message.delivery_info, self._queues
        tag = route.get("consumer_tag")
        if tag is not None:  # of AMQP brokers only
            tags = self._consumer.task_consumer._active_tags  # noqa: SLF001 - checked by check_worker
            return next((queues.get(name) for name, its in list(tags.items()) if its == tag), None)
        exchange, key = route.get("exchange") or "", route.get("routing_key") or ""
        if not exchange:
            return queues.get(key)
        found = [queue for queue in queues.values() if _is_bound(queue, exchange, key)]
        return found[0] if len(found) == 1 else None


def _is_bound(queue: Queue, exchange: str, key: str) -> bool:
    return any(
        bound.exchange is not None and bound.exchange.name == exchange and _matches(bound, key)
        for bound in queue.bindings or [queue]
    )


def _matches(bound: Any, key: str) -> bool:
    if bound.exchange.type == "topic":
        pattern: str = _topics.key_to_pattern(bound.routing_key)  # type: ignore[no-untyped-call] # kombu ships no types
        return re.match(pattern, key) is not None
    return bound.exchange.type == "fanout" or bool(bound.routing_key == key)
