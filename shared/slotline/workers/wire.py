"""The messages between an owner and its workers: one packet each, so that none is ever half sent or half read.

Both ends are a socket pair that keeps message boundaries. A packet is a fixed header and, where it is short, the
pickled payload; a longer payload lies in the worker's shared memory and the header says where.
"""

from __future__ import annotations

import pickle
import struct
from typing import Any, Final, TypeAlias

from slotline.workers.errors import UnpicklableError

INLINE: Final = 64 * 1024
"""Payloads of up to this many bytes travel inside the packet."""

SHORT: Final = 4096
"""Payloads of up to this many bytes may wait in a worker's pipe."""

HEADER: Final = struct.Struct("<BBQdQQ")
"""kind, flags, job, a time or deadline (seconds, monotonic), a number (kilobytes or offset), payload size if shared."""

PACKET: Final = INLINE + HEADER.size

# What the owner sends.
RUN, STOP, GO, SKIP = 1, 2, 3, 4
# What a worker sends.
READY, BROKEN, ACCEPTED, DONE, FAILED = 5, 6, 7, 8, 9
# What the owner sends to itself: a thread that waits for an answer is to look again.
LOOK = 10

SHARED: Final = 1
"""The payload lies in shared memory."""
CONFIRM: Final = 2
"""RUN: say ACCEPTED before the task starts."""
AWAIT: Final = 4
"""RUN: after ACCEPTED wait for GO or SKIP."""
CLEAN: Final = 8
"""RUN: every shared payload of this worker has been read, so its memory may be used from the start again."""
PLAIN: Final = 16
"""DONE: the payload rebuilds nothing but built-in types, so reading it runs nobody's code."""
LEAVING: Final = 32
"""DONE, FAILED: the worker ends after this message."""

Payload: TypeAlias = list[bytes]
"""A pickle in its parts: a long bytes or str object is a part of its own, so that it is not copied to join the rest."""

_SCALARS: Final = frozenset({type(None), bool, int, float, complex})
_SIMPLE: Final = _SCALARS | {str, bytes, bytearray}
_MAKES_OBJECTS: Final = (b"\x93", b"\x82", b"\x83", b"\x84")  # STACK_GLOBAL and the three EXT opcodes of pickle


def is_plain(value: Any, payload: Payload) -> bool:
    """Return whether a pickle surely rebuilds built-in types only (some that do are not recognised)."""
    return type(value) in _SIMPLE or not any(opcode in part for part in payload for opcode in _MAKES_OBJECTS)


class _Parts(list[Any]):
    """Takes what a pickler writes."""

    write = list.append


def is_short(value: Any) -> bool:
    """Return whether a value surely makes a short pickle (some that do are not recognised)."""
    kind = type(value)
    return kind in _SCALARS or ((kind is bytes or kind is str) and len(value) <= SHORT)


def dump(what: str, value: Any, *, short: bool = False) -> Payload:
    """Pickle a value; one that makes a ``short`` pickle takes less time as one part.

    Raises:
        UnpicklableError: it cannot be pickled; ``what`` names its part in the task.
    """
    parts = _Parts()
    try:
        if short:
            return [pickle.dumps(value, 5)]
        pickle.Pickler(parts, 5).dump(value)
    except Exception as error:
        shown = value[0] if what.startswith("task") and isinstance(value, tuple) else value
        name = getattr(shown, "__qualname__", None) or type(shown).__qualname__
        reason = f"{type(error).__name__}: {error}"
        raise UnpicklableError(what, name, reason) from error
    if len(parts) == 1:
        return parts
    # Bytes cannot change any more; anything else is the caller's and may change before it is sent.
    return [part if type(part) is bytes else bytes(part) for part in parts]


def size_of(payload: Payload) -> int:
    """Return a payload's length in bytes."""
    return len(payload[0]) if len(payload) == 1 else sum(map(len, payload))


def load(what: str, payload: bytes | memoryview) -> Any:
    """Rebuild a value that :func:`dump` made.

    Raises:
        UnpicklableError: it was pickled but cannot be rebuilt here.
    """
    try:
        return pickle.loads(payload)  # noqa: S301 - it comes from a process of our own, over its own socket
    except Exception as error:
        raise UnpicklableError(what, "a pickle", f"it cannot be rebuilt ({type(error).__name__}: {error})") from error
