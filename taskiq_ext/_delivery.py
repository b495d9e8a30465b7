"""A message on its way from its source to ``pre_execute``, with what its source is owed.

The receiver hands a middleware the message that its formatter has read, not the bytes. To park a message byte for byte,
the bytes travel as a :class:`Delivery` and the broker's formatter, which reads them in the asyncio task of the message,
leaves them in a context variable.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os
import weakref
from contextvars import ContextVar
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Self

from taskiq.abc.formatter import TaskiqFormatter
from taskiq.acks import AckableMessage
from taskiq.exceptions import NoResultError
from taskiq.utils import maybe_awaitable

from slotline.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from taskiq.abc.broker import AsyncBroker
    from taskiq.message import BrokerMessage, TaskiqMessage
    from taskiq.result import TaskiqResult

    from slotline.pools import Limit, Taken
    from taskiq_ext._feed import Feed

logger = logging.getLogger(__name__)

_MARK = 12


class _RunsLater:
    """What a message "returns" whose copy in the room will run; it becomes no result."""

    def __repr__(self) -> str:
        return "<runs later>"


RUNS_LATER = _RunsLater()
_delivery: ContextVar[Delivery | None] = ContextVar("slotline_taskiq_delivery", default=None)
_background: set[asyncio.Task[Any]] = set()


class Delivery(bytes):
    """A message as the broker has delivered it.

    Attributes:
        feed: What has handed it out.
    """

    feed: Feed
    _home: weakref.ref[asyncio.Task[Any]] | None = None  # not the task, whose context has this: a cycle would live on
    _ack: Callable[[], Awaitable[None] | None] | None = None
    _mark: bytes | None = None

    @classmethod
    def of(cls, message: bytes | AckableMessage, feed: Feed) -> Delivery:
        """Return what a broker has yielded as a delivery; one that is a delivery already stays as it is."""
        data, ack = (message.data, message.ack) if isinstance(message, AckableMessage) else (message, None)
        if isinstance(data, Delivery):
            return data
        self = cls(data)
        self.feed = feed
        if ack is not None:
            self._ack = ack
        return self

    def as_message(self) -> bytes | AckableMessage:
        """Return what the receiver is given."""
        if self._ack is None:
            return self
        return AckableMessage(data=self, ack=self.acknowledge)

    @property
    def sealed(self) -> bytes:
        """The message with a mark in front that makes it one of a kind in the room.

        A broker that asks for acknowledgements may deliver a message again, and the copies are told by their bytes,
        within one queue. One that does not never does: equal bytes are then two messages.
        """
        if self._mark is None:
            self._mark = os.urandom(_MARK) if self._ack is None else _mark_of(self.feed.queue)
        return self._mark + self

    @property
    def is_again(self) -> bool:
        """Whether the broker says that it has delivered the message before, as those on RabbitMQ do."""
        return self._ack is not None and bool(getattr(getattr(self._ack, "__self__", None), "redelivered", False))

    def begin(self, home: asyncio.Task[Any]) -> None:
        """Note that ``home`` handles the message."""
        self._home = weakref.ref(home)

    @property
    def has_begun(self) -> bool:
        """Whether an asyncio task handles the message, or has."""
        return self._home is not None

    def is_handled_in(self, task: asyncio.Task[Any] | None) -> bool:
        """Whether ``task`` handles the message."""
        return self._home is not None and self._home() is task

    def claimed(self, pool: Limit[Any]) -> Taken | None:
        """Return what the message was taken from the room with, if that was a slot of ``pool``; only once."""
        del pool
        return None

    async def acknowledge(self) -> None:
        """Acknowledge the message where it came from, once."""
        if self._ack is not None:
            await maybe_awaitable(self._ack())
            self._ack = _nothing_to_acknowledge

    async def acknowledge_parked(self, task_id: str) -> None:
        """Acknowledge the message where it came from: the room has it now."""
        try:
            await self.acknowledge()
        except Exception:  # the broker will deliver it again, and the room knows it
            logger.warning("Message %s cannot be acknowledged.", task_id, exc_info=True)

    async def put_back(self, broker: AsyncBroker) -> None:
        """Send the message again: it was delivered to a worker that takes no more."""
        message = broker.formatter.dumps(broker.formatter.loads(message=bytes(self)))
        # It has had its delay; the rest of the labels says where it belongs.
        labels = {name: value for name, value in message.labels.items() if name != "delay"}
        await broker.kick(message.model_copy(update={"message": bytes(self), "labels": labels}))
        await self.acknowledge()


class TakenDelivery(Delivery):
    """A message from the room, with its slot, under a claim that ends when the message is acknowledged.

    If its processing ends without that, as it does for a broker's message when a middleware raises, the claim is no
    longer renewed: the message is at its old place again when the lease has run out.
    """

    _taken: Taken
    _slot_is_ours: bool
    _settled: bool

    @classmethod
    def from_room(cls, taken: Taken, feed: Feed) -> Self:
        """Return what was taken from the room of ``feed`` as a delivery."""
        self = cls(unsealed(taken.message))
        self.feed, self._mark, self._taken = feed, taken.message[:_MARK], taken
        self._ack, self._settled, self._slot_is_ours = self._settle, False, True
        return self

    def begin(self, home: asyncio.Task[Any]) -> None:
        super().begin(home)
        home.add_done_callback(self._ended)
        self.feed.started(self)

    def claimed(self, pool: Limit[Any]) -> Taken | None:
        taken = self._taken
        if not self._slot_is_ours or taken.pool.key != pool.key or taken.pool.store is not pool.store:
            return None
        self._slot_is_ours = False
        return taken

    async def give_back(self) -> None:
        """Put the message at its old place in the room; nothing is owed for it any more."""
        self._settled, self._slot_is_ours = True, False
        try:
            await self._taken.give_back()
        except StoreError as error:
            logger.warning("A message of lane %r is given back in the background: %s", self._taken.lane, error)

    async def _settle(self) -> None:
        if self._settled:
            return
        self._settled = True
        await self._release()
        try:
            await self._taken.settle()
        except StoreError as error:  # the run counts; the store tries again by itself
            logger.warning("A message of lane %r is settled in the background: %s", self._taken.lane, error)

    async def _release(self) -> None:
        # A slot that no limit wanted: a cached result was there by now, or the task is unknown here.
        if not self._slot_is_ours:
            return
        self._slot_is_ours = False
        try:
            await self._taken.pool.release(self._taken.slot)
        except StoreError as error:
            logger.warning("A slot of pool %r is released in the background: %s", self._taken.pool.key, error)

    def _ended(self, home: asyncio.Task[Any]) -> None:
        self.feed.left(self)
        if self._settled:
            return
        self._settled = True
        self._taken.abandon()
        if self._slot_is_ours:
            releasing = home.get_loop().create_task(self._release())
            _background.add(releasing)
            releasing.add_done_callback(_background.discard)


class RecordingFormatter(TaskiqFormatter):
    """Lets the broker's own formatter read messages, and notes which delivery it has read."""

    def __init__(self, own: TaskiqFormatter) -> None:
        self.own = own

    def dumps(self, message: TaskiqMessage) -> BrokerMessage:
        """Return the message as the broker's own formatter writes it."""
        return self.own.dumps(message)

    def loads(self, message: bytes) -> TaskiqMessage:
        """Return the message as the broker's own formatter reads it."""
        if not isinstance(message, Delivery):
            _delivery.set(None)
            return self.own.loads(message=message)
        home = asyncio.current_task()
        assert home is not None  # noqa: S101 - the receiver reads a message in a task of its own
        message.begin(home)
        _delivery.set(message)
        return self.own.loads(message=bytes(message))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.own, name)


def delivery_for(broker: AsyncBroker, home: asyncio.Task[Any] | None) -> Delivery | None:
    """Return the delivery that ``home``, the asyncio task that asks, handles, if ``broker`` has delivered it.

    A message that is handled within the handling of another (``InMemoryBroker(await_inplace=True)``) has none.
    """
    delivery = _delivery.get()
    if delivery is None or delivery.feed.broker is not broker or not delivery.is_handled_in(home):
        return None
    return delivery


def unsealed(parked: bytes) -> bytes:
    """Return a message as the broker has delivered it, out of what :attr:`Delivery.sealed` has made of it."""
    return parked[_MARK:]


def size_on_the_way(message: TaskiqMessage, broker: AsyncBroker) -> int:
    """Return the bytes that a message will have in the room; 0 if it cannot be sent at all, as the broker will say."""
    with contextlib.suppress(Exception):
        return _MARK + len(broker.formatter.dumps(message).message)
    return 0


def without_result_if_parked(result: TaskiqResult[Any]) -> None:
    """Keep what stands in for the run of a parked message from becoming a result."""
    if result.return_value is RUNS_LATER:
        # Raised from the run, it would be logged as a warning and handed to the error hooks of everyone.
        result.error, result.return_value = NoResultError(), None


@lru_cache(maxsize=64)
def _mark_of(queue: str) -> bytes:
    return hashlib.blake2b(queue.encode("utf-8", "surrogatepass"), digest_size=_MARK).digest()


def _nothing_to_acknowledge() -> None:
    pass
