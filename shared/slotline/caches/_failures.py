"""A creator's exception as plain data, so that another process can raise it."""

from __future__ import annotations

import sys
from typing import Any

from slotline.caches._plain import decode, encode
from slotline.errors import CreatorFailedError, SerializationError

_LONGEST = 16 * 1024


def failure_data(error: BaseException) -> dict[str, Any]:
    """Return plain data for an exception: its type's name, its arguments where they are plain, and its text."""
    kind = type(error)
    data: dict[str, Any] = {"type": f"{kind.__module__}:{kind.__qualname__}", "text": _text(error)[:_LONGEST]}
    try:
        if len(encode(error.args)) <= _LONGEST:
            data["args"] = error.args
    except SerializationError:
        pass
    return data


def failure_from(data: dict[str, Any]) -> Exception:
    """Return the exception again.

    Only a type that this process has imported already, and that makes an exception of the same text from the same
    arguments, is used; anything else becomes a :class:`CreatorFailedError` that carries type and text.
    """
    name, text = str(data["type"]), str(data["text"])
    module, _, qualname = name.partition(":")
    found: Any = sys.modules.get(module)
    for part in qualname.split("."):
        found = getattr(found, part, None)
    if isinstance(found, type) and issubclass(found, Exception) and "args" in data:
        try:
            error = found(*data["args"])
        except Exception:  # noqa: BLE001 - a constructor of the user's own that wants something else
            error = None
        if error is not None and _text(error)[:_LONGEST] == text:
            return error
    return CreatorFailedError(name.replace(":", ".").removeprefix("builtins."), text)


def to_payload(error: BaseException) -> bytes:
    """Return the exception for a wake-up."""
    return b"e" + encode(failure_data(error))


def from_payload(payload: bytes) -> Exception:
    """Return the exception that a wake-up carries."""
    try:
        return failure_from(decode(payload[1:]))
    except Exception as error:  # noqa: BLE001 - anything may come out of bytes that another process wrote
        return CreatorFailedError("unknown", f"an exception that cannot be read ({error})")


def _text(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:  # noqa: BLE001 - a __str__ of the user's own
        return ""
