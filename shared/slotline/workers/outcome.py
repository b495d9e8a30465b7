"""How a task's value or error is packed in the worker and unpacked by its owner."""

from __future__ import annotations

import traceback
from typing import Any

from slotline.workers import wire
from slotline.workers.errors import RemoteTraceback, TaskExitError, UnpicklableError


def pack_value(value: Any) -> tuple[int, int, wire.Payload]:
    """Return kind, flags and payload for what a task returned."""
    try:
        payload = wire.dump("result", value, short=wire.is_short(value))
    except UnpicklableError as error:
        return wire.FAILED, 0, pack_error(error)
    return wire.DONE, wire.PLAIN if wire.is_plain(value, payload) else 0, payload


def pack_error(error: BaseException) -> wire.Payload:
    """Return the payload for what a task raised: the error itself if it survives the journey, else its description."""
    text = "".join(traceback.format_exception(error))
    if not isinstance(error, Exception):
        error = TaskExitError(repr(error))
    try:
        payload = wire.dump("exception", (error, text))
        rebuilt, _ = wire.load("exception", b"".join(payload))
    except UnpicklableError as broken:
        reason = broken.reason
    else:
        if type(rebuilt) is type(error):
            return payload
        reason = f"it is rebuilt as {type(rebuilt).__qualname__}"
    name = f"{type(error).__module__}.{type(error).__qualname__}"
    substitute = UnpicklableError("exception", name, f"{reason}; it said: {_shown(error)}")
    return wire.dump("exception", (substitute, text))


def _shown(error: BaseException) -> str:
    try:
        return str(error)[:1000]
    except Exception:  # noqa: BLE001 - an exception whose own text fails is still reported
        return "(its text cannot be shown)"


def unpack_value(payload: bytes | memoryview) -> tuple[Any, BaseException | None]:
    """Return a task's value, or the error that kept it from being rebuilt."""
    try:
        return wire.load("result", payload), None
    except UnpicklableError as error:
        return None, error


def unpack_error(payload: bytes) -> BaseException:
    """Return what a task raised, its remote traceback attached as ``__cause__``."""
    try:
        error, text = wire.load("exception", payload)
    except UnpicklableError as broken:
        return broken
    error.__cause__ = RemoteTraceback(text)
    return error  # type: ignore[no-any-return] # pack_error sends exceptions only
