"""The only door to billiard, which is optional: it is imported at first use."""

from __future__ import annotations

import functools
import importlib
from typing import Any

from slotline.errors import UnsupportedBackendError


def load(module: str) -> Any:
    """Return a module of billiard.

    Raises:
        UnsupportedBackendError: billiard is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UnsupportedBackendError(
            f"BilliardExecutor needs billiard, which cannot be imported ({error}): pip install 'slotline[celery]'"
        ) from error


def exceptions() -> Any:
    """Return ``billiard.exceptions``, whose classes callers match."""
    return load("billiard.exceptions")


def spawn_context(context: Any) -> Any:
    """Return billiard's context for an option's value: ``None``, a start method's name or any library's context."""
    billiard = load("billiard")
    if context is None:
        return billiard.get_context("spawn")
    if isinstance(context, str):
        return billiard.get_context(context)
    if type(context).__module__.startswith("billiard"):
        return context.get_context()
    return billiard.get_context(context.get_start_method())


@functools.cache
def result_timeout() -> type[Exception]:
    """Return what ``get(timeout)`` raises: billiard's ``TimeoutError`` and Python's in one class."""

    class ResultTimeoutError(exceptions().TimeoutError, TimeoutError):  # type: ignore[misc] # billiard is untyped
        """The result was not there in time; the task goes on."""

    return ResultTimeoutError
