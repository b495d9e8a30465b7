"""The options of a manager, checked."""

from __future__ import annotations

import logging
import operator
from collections.abc import Callable, Mapping
from typing import Any

from slotline._checks import refuse, whole_number
from slotline.leases._process_backend import ProcessBackend
from slotline.leases.backend import Backend, ExecutorBackend, InterpreterBackend, ThreadBackend
from slotline.leases.process_logging import ProcessLoggingConfig


def count(option: str, value: Any) -> int:
    """Return a positive whole number; other libraries' integers count as what they are."""
    if not isinstance(value, bool | int | float) and hasattr(type(value), "__index__"):
        value = operator.index(value)
    return whole_number(option, value)


def backend_named(option: str, value: Any) -> ExecutorBackend:
    """Return the backend that a string or an enum value names."""
    try:
        return ExecutorBackend(value)
    except ValueError:
        names = ", ".join(repr(str(backend)) for backend in ExecutorBackend)
        raise refuse(option, value, f"one of {names}, or an ExecutorBackend") from None


def backend_of(
    name: ExecutorBackend, workers: int, prefix: str, options: Mapping[str, Any], logs: ProcessLoggingConfig
) -> Backend:
    """Return what makes a manager's executors.

    Raises:
        InvalidOptionError: The executor's constructor has no such option, or the backend cannot forward logs.
        UnsupportedBackendError: This interpreter or installation lacks the backend.
    """
    if name is ExecutorBackend.PROCESS:
        return ProcessBackend(workers, prefix, options, logs)
    if name is ExecutorBackend.BILLIARD:
        from slotline.leases._billiard_backend import BilliardBackend  # noqa: PLC0415 - billiard is optional

        return BilliardBackend(workers, prefix, options, logs)
    if logs.enabled:
        raise refuse("forward_process_logs", True, f"False: work on the {name} backend logs in this process anyway")  # noqa: FBT003 - the value being refused
    if name is ExecutorBackend.THREAD:
        return ThreadBackend(workers, prefix, options)
    return InterpreterBackend(workers, prefix, options)


def size_provider_of(option: str, value: Any) -> Callable[[], float] | None:
    """Return ``value`` if it can be called, or ``None``."""
    if value is not None and not callable(value):
        raise refuse(option, value, "something to call that returns a number of units, or None")
    provider: Callable[[], float] | None = value
    return provider


def logger_of(option: str, value: Any) -> logging.Logger:
    """Return ``value`` if it is a logger, by default the package's own."""
    if value is None:
        return logging.getLogger("slotline.leases")
    if not isinstance(value, logging.Logger):
        raise refuse(option, value, "a logging.Logger or None")
    return value


def owner_of(value: Any) -> str | None:
    """Return an owner's label."""
    if value is not None and not isinstance(value, str):
        raise refuse("owner", value, "a string or None")
    label: str | None = value
    return label
