"""Messages that a living worker has not acknowledged yet are not delivered again by the Redis transport.

Redis does not know whether a consumer lives. So kombu delivers anew whatever was not acknowledged for the transport's
``visibility_timeout``: also a long task with ``acks_late``, one that waits for its ETA, and one that is held over its
limit, which then run twice. Here the worker says of its messages that they are still its own. A dead worker says
nothing: with this, the timeout may be as short as the recovery from a crash should be.

Without an event loop (threads, gevent, solo) kombu looks for the messages of the dead only when nothing at all has come
from Redis for two seconds, and its own blocking read comes back after one: never. There the worker looks for them here.
"""

from __future__ import annotations

import threading
import time
from typing import Any

from celery.utils.log import get_logger

from celery_ext._compat import check_redis_transport

logger = get_logger(__name__)

BEATS = 4
"""How often within the visibility timeout a worker speaks for its messages."""
_AT_ONCE = 1000


class Freshness:
    """Keeps the index of a worker's unacknowledged messages fresh, in a thread of its own.

    The hub's timers would not do: the hub stands still while a solo worker runs a task.

    Args:
        consumer: The worker's consumer.
    """

    def __init__(self, consumer: Any) -> None:
        self._consumer = consumer
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def open(self) -> None:
        """Begin, if the broker is reached by kombu's Redis transport; again is harmless.

        Raises:
            UnsupportedFrameworkError: This kombu lacks a part that is needed.
        """
        if self._thread is None and self._consumer.connection.transport.driver_type == "redis":
            check_redis_transport()
            self._thread = threading.Thread(target=self._run, name="slotline-unacked", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """Speak for nothing any more: the worker has ended."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join(1.0)  # no longer: it may wait for a server that does not answer

    def _run(self) -> None:
        seconds = 1.0
        while not self._ended.wait(seconds):
            try:
                channel = self._consumer.task_consumer.channel
                seconds = channel.visibility_timeout / BEATS
                refresh(channel)
                if self._consumer.hub is None:
                    channel.qos.restore_visible(num=channel.unacked_restore_limit, interval=1)
            except Exception as error:  # noqa: BLE001 - whatever it is, the consumer notices and connects anew
                logger.debug("the unacknowledged messages cannot be kept fresh now: %r", error)
                seconds = min(seconds, 1.0)


def refresh(channel: Any) -> None:
    """Say that a channel's unacknowledged messages are still in hand; what was acknowledged meanwhile stays so."""
    if channel.closed:
        return
    tags = list(channel.qos._delivered)  # noqa: SLF001 - checked by check_redis_transport
    with channel.conn_or_acquire() as client:
        for some in (tags[at : at + _AT_ONCE] for at in range(0, len(tags), _AT_ONCE)):
            client.zadd(channel.unacked_index_key, dict.fromkeys(some, time.time()), xx=True)
