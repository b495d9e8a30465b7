"""Messages that a living worker has not acknowledged yet are not delivered again by the Redis transport.

Redis does not know whether a consumer lives. So kombu delivers anew whatever was not acknowledged for the transport's
``visibility_timeout``: also a long task with ``acks_late``, one that waits for its ETA, and one that is held over its
limit, which then run twice. Here the worker says of its messages that they are still its own. A dead worker says
nothing: with this, the timeout may be as short as the recovery from a crash should be.

Each worker also puts back what the dead had in hand. kombu does that every hundred seconds, in pools without an event
loop (threads, gevent, solo) practically never, and not for five minutes after a worker was killed while it was at it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from functools import cache
from importlib.resources import files
from typing import Any

from celery.utils.log import get_logger
from kombu.utils.json import loads

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
        self._refused = False
        self._in_hand: InHand

    def open(self) -> None:
        """Begin, if the broker is reached by kombu's Redis transport; called anew with each connection.

        Raises:
            UnsupportedFrameworkError: This kombu lacks a part that is needed.
        """
        if self._consumer.connection.transport.driver_type != "redis":
            return
        if self._thread is None:
            check_redis_transport()
        self._in_hand = take_over(self._consumer.connection.default_channel, lambda: not self._refused)
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="slotline-unacked", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """Speak for nothing any more: the worker has ended."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join(1.0)  # no longer: it may wait for a server that does not answer

    def _run(self) -> None:
        seconds, overdue = 1.0, frozenset[bytes]()
        while not self._ended.wait(seconds):
            try:
                in_hand = self._in_hand  # of the last connection
                channel = in_hand.channel
                seconds = channel.visibility_timeout / BEATS
                if not channel.closed:
                    in_hand.speak()
                    overdue = restore(channel, overdue)
                    self._refused = False
            except Exception as error:  # noqa: BLE001 - whatever it is, the consumer notices and connects anew
                logger.debug("the unacknowledged messages cannot be kept fresh now: %r", error)
                self._refused = _is_refusal(error)
                seconds = min(seconds, 1.0)


def refresh(channel: Any) -> None:
    """Say that a channel's unacknowledged messages are still in hand; what was acknowledged meanwhile stays so."""
    tags = list(channel.qos._delivered)  # noqa: SLF001 - checked by check_redis_transport
    with channel.conn_or_acquire() as client:
        for some in (tags[at : at + _AT_ONCE] for at in range(0, len(tags), _AT_ONCE)):
            client.zadd(channel.unacked_index_key, dict.fromkeys(some, time.time()), xx=True)


def restore(channel: Any, before: frozenset[bytes]) -> frozenset[bytes]:
    """Put those messages back into their queues that nobody has spoken for in the visibility timeout.

    Only those that were overdue a beat ago, too: after a time in which the server could not be reached all are, and the
    living have not spoken for theirs yet. Without kombu's mutex, which stays with a worker that is killed: a script
    puts each message back, and so once, whoever else is at it.

    Args:
        channel: The worker's channel.
        before: What this returned a beat ago.

    Returns:
        The delivery tags of the messages that are overdue.
    """
    index, until = f"{channel.global_keyprefix}{channel.unacked_index_key}", time.time() - channel.visibility_timeout
    with channel.conn_or_acquire() as client:
        overdue = frozenset(_plainly(client, "ZRANGEBYSCORE", index, 0, until, "LIMIT", 0, _AT_ONCE))
        for tag in overdue & before:
            _put_back(channel, client, tag, until)
    return overdue


class InHand:
    """What a channel has in hand, and which of that may be another worker's by now, under the same tag.

    Attributes:
        channel: The worker's channel, which has been opened just now.
    """

    def __init__(self, channel: Any) -> None:
        self.channel, self._spoken_at = channel, time.time()
        self._doubtful: set[str] = set()

    def speak(self) -> None:
        """Speak for it; what nobody has spoken for in time may be another's all the same."""
        self._look()
        now = time.time()
        refresh(self.channel)
        self._spoken_at = now

    def may_be_anothers(self, tag: str) -> bool:
        """Whether another worker may have the message."""
        self._look()
        return tag in self._doubtful

    def _look(self) -> None:
        tags = frozenset(list(self.channel.qos._delivered))  # noqa: SLF001 - checked by check_redis_transport
        self._doubtful &= tags
        if time.time() - self._spoken_at > self.channel.visibility_timeout:
            self._doubtful |= tags


def take_over(channel: Any, takes: Callable[[], bool]) -> InHand:
    """Have kombu leave what is overdue to :func:`restore`, while ``takes()``: it does not look whether it still is.

    A channel that is closed does not put back either what may be another worker's by now. If nobody has it, it is
    overdue a visibility timeout later, and put back then.
    """
    qos, in_hand = channel.qos, InHand(channel)
    all_overdue, one = qos.restore_visible, qos.restore_by_tag

    def restore_visible(*args: Any, **kwargs: Any) -> None:
        if not takes():
            all_overdue(*args, **kwargs)

    def restore_by_tag(tag: Any, *args: Any, **kwargs: Any) -> None:
        if not (takes() and in_hand.may_be_anothers(tag)):
            one(tag, *args, **kwargs)

    qos.restore_visible, qos.restore_by_tag = restore_visible, restore_by_tag
    return in_hand


def _is_refusal(error: Exception) -> bool:
    from redis import ResponseError  # noqa: PLC0415 - an extra

    return isinstance(error, ResponseError)


class _Pushes(list[tuple[str, str]]):
    """Notes what kombu would push to which list."""

    def rpush(self, key: str, message: str) -> None:
        """Note it."""
        self.append((key, message))


def _put_back(channel: Any, client: Any, tag: bytes, until: float) -> None:
    kept, pushes = client.hget(channel.unacked_key, tag), _Pushes()
    if kept is not None:
        message, exchange, routing_key = loads(kept.decode())  # type: ignore[no-untyped-call] # kombu ships no types
        channel._do_restore_message(message, exchange, routing_key, pushes)  # noqa: SLF001 - checked by check_redis_transport
        if not pushes:  # kombu has logged why
            return
    keys = [channel.unacked_index_key, channel.unacked_key, *(key for key, _ in pushes)]
    names = [f"{channel.global_keyprefix}{key}" for key in keys]
    _plainly(client, "EVAL", _script(), len(names), *names, tag, until, *(message for _, message in pushes))


@cache
def _script() -> str:
    return (files(__package__) / "put_back.lua").read_text(encoding="utf-8")


def _plainly(client: Any, *command: Any) -> Any:
    # Which commands kombu's own clients put the prefix before is different in each version.
    from redis import Redis  # noqa: PLC0415 - an extra

    return Redis.execute_command(client, *command)
