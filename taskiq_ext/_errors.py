"""Exceptions as cache values: what ``cache_errors`` keeps."""

from __future__ import annotations

import json
from typing import Any

from taskiq.serialization import ExceptionRepr, exception_to_python, prepare_exception

_MARK = "slotline:error"


def error_to_cache(error: BaseException) -> dict[str, Any]:
    """Return plain data from which :func:`error_from_cache` makes the exception again, as a result backend would."""
    prepared = prepare_exception(error, json)
    if not isinstance(prepared, ExceptionRepr):
        raise TypeError(f"{type(prepared).__qualname__} has no plain form")
    return {_MARK: prepared.model_dump(mode="json")}


def error_from_cache(value: Any) -> BaseException | None:
    """Return the exception that ``value`` stands for, or ``None`` if it is an ordinary value."""
    if not isinstance(value, dict) or len(value) != 1 or _MARK not in value:
        return None
    return exception_to_python(ExceptionRepr.model_validate(value[_MARK]))
