"""A broker's message as bytes in the waiting room, and as a message again."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from celery.utils.log import get_logger
from kombu.message import Message
from kombu.utils.json import dumps, loads

from slotline.errors import StoreError

if TYPE_CHECKING:
    from slotline.pools import Taken

logger = get_logger(__name__)

_ONE_DELIVERY = frozenset({"delivery_tag", "delivery_info", "redelivered", "consumer_tag", "message_count"})
_COUNTED = frozenset({"redelivered", "x-delivery-count"})
_UNDONE = frozenset({"compression"})
"""kombu has decompressed the body; the header would have that done again."""
_KEPT_ELSEWHERE = frozenset({"application_headers", "body_encoding"})
_END = b"\n"


def pack(message: Message) -> bytes:
    """Return everything of a message, its body byte for byte, but what changes when a broker delivers it once more."""
    body = message.body
    head = {
        "text": isinstance(body, str),
        "type": message.content_type,
        "encoding": message.content_encoding,
        "headers": _without(message.headers, _COUNTED | _UNDONE),
        "properties": _without(message.properties, _ONE_DELIVERY | _KEPT_ELSEWHERE),
        "delivery": _without(message.delivery_info, _ONE_DELIVERY),
    }
    written: str = dumps(head, sort_keys=True)  # type: ignore[no-untyped-call] # kombu ships no types
    return written.encode() + _END + (body.encode("utf-8", "surrogatepass") if isinstance(body, str) else bytes(body))


def _without(mapping: Any, names: frozenset[str]) -> dict[str, Any]:
    return {name: value for name, value in (mapping or {}).items() if name not in names}


def contents(written: bytes, accept: Any) -> dict[str, Any]:
    """Return the arguments by which a message is made again out of its bytes, as it was delivered.

    Args:
        written: The bytes, as :func:`pack` has made them.
        accept: The content types that are accepted.

    Raises:
        ValueError: They are nothing that :func:`pack` has made.
    """
    packed, _, raw = written.partition(_END)
    head = loads(packed.decode())  # type: ignore[no-untyped-call] # kombu ships no types
    return {
        "body": raw.decode("utf-8", "surrogatepass") if head["text"] else raw,
        "content_type": head["type"],
        "content_encoding": head["encoding"],
        "headers": head["headers"],
        "properties": {**head["properties"], "delivery_info": dict(head["delivery"])},
        "delivery_info": {**head["delivery"], "redelivered": False},
        "accept": accept,
    }


class TakenMessage(Message):
    """A message out of the waiting room: acknowledging it settles it there.

    Args:
        taken: The message with its slot and claim.
        accept: The content types that the consumer accepts.
        on_end: Called when the message has left this worker.

    Attributes:
        taken: What was taken.
        started: Whether a run has begun, which then owns the slot.
        decided: Does what was decided of it; ``None`` as long as nothing is.
    """

    def __init__(self, taken: Taken, accept: Any, on_end: Callable[[TakenMessage], None]) -> None:
        super().__init__(  # type: ignore[no-untyped-call] # kombu ships no types
            delivery_tag=taken.slot.token, **contents(taken.message, accept)
        )
        self.taken = taken
        self.started = False
        self.decided: Callable[[], None] | None = None
        self._on_end = on_end

    def begin(self, request: Any) -> None:
        """Leave the slot to the run of a request, and hear what is decided of that when it is.

        Celery has the event loop acknowledge a message a little later, and the loop forgets that when it meets a
        connection that is broken: with that a broker's message is delivered again anyway.
        """
        self.started = True
        acknowledge, reject = request.acknowledge, request.reject

        def acknowledged() -> None:
            self.decided = self.decided or self.ack
            acknowledge()

        def rejected(requeue: bool = False) -> None:  # noqa: FBT001, FBT002 - the signature is Celery's
            self.decided = self.decided or partial(self.reject, requeue)
            reject(requeue)

        request.acknowledge, request.reject = acknowledged, rejected

    def ack(self, multiple: bool = False) -> None:  # noqa: ARG002, FBT001, FBT002 - the signature is kombu's
        """Remove it from the room."""
        if not self.acknowledged:
            self._end("ACK", self.taken.sync.settle)
            if not self.started:  # revoked or expired: nobody else gives its slot back
                self._try(lambda: self.taken.pool.sync.release(self.taken.slot))

    def reject(self, requeue: bool = False) -> None:  # noqa: FBT001, FBT002 - the signature is kombu's
        """Remove it from the room, or put it back to where it stood."""
        if requeue:
            self.requeue()
        else:
            self.ack()

    def requeue(self) -> None:
        """Put it back to where it stood, and release its slot."""
        if not self.acknowledged:
            self._end("REQUEUED", self.taken.sync.give_back)

    def ack_log_error(self, *_: Any, **__: Any) -> None:
        """Acknowledge it; what fails is tried again by the room."""
        self.ack()

    def reject_log_error(self, _: Any, __: Any, requeue: bool = False) -> None:  # noqa: FBT001, FBT002 - kombu's
        """Reject it; what fails is tried again by the room."""
        self.reject(requeue)

    def _end(self, outcome: str, settle: Callable[[], Any]) -> None:
        self._state = outcome
        self._on_end(self)
        self._try(settle)

    def _try(self, settle: Callable[[], Any]) -> None:
        try:
            settle()
        except StoreError as error:
            logger.warning("a parked message of pool %r is settled later: %s", self.taken.slot.key, error)
