"""The options of a manager, checked."""

from __future__ import annotations

import difflib
import functools
import inspect
import logging
import operator
from collections.abc import Callable, Mapping
from typing import Any, ParamSpec

from slotline._checks import refuse, whole_number
from slotline.leases._process_backend import ProcessBackend
from slotline.leases.backend import Backend, ExecutorBackend, InterpreterBackend, ThreadBackend
from slotline.leases.process_logging import ProcessLoggingConfig

P = ParamSpec("P")


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


def knows_its_options(init: Callable[P, None]) -> Callable[P, None]:
    """Have a manager's constructor refuse the options that neither it nor the executor has, before anything else.

    Python itself names an option that is missing before one that is misspelt, which may be the same.
    """
    own = [name for name, it in inspect.signature(init).parameters.items() if it.kind is it.KEYWORD_ONLY]

    @functools.wraps(init)
    def checked(*args: P.args, **options: P.kwargs) -> None:
        further = {name: value for name, value in options.items() if name not in own}
        if further:
            backend = backend_named("backend", options.get("backend", ExecutorBackend.THREAD))
            _check_executor_options(_backend_class(backend), further, own)
        init(*args, **options)

    return checked


def _check_executor_options(kind: type[Backend], further: Mapping[str, Any], own: list[str]) -> None:
    known = kind.executor_options()
    for option, value in further.items():
        if option in kind.taken:
            raise refuse(option, value, f"left out: {kind.taken[option]} sets it")
        if option not in known:
            meant = difflib.get_close_matches(option, own + known, 1)
            hint = f" (did you mean {meant[0]}?)" if meant else ""
            allowed = (
                f"an option of LeasedExecutorManager, or of the {kind.name} backend's executor: {', '.join(known)}"
            )
            raise refuse(option, value, allowed + hint)


def _backend_class(name: ExecutorBackend) -> type[Backend]:
    if name is ExecutorBackend.BILLIARD:
        from slotline.leases._billiard_backend import BilliardBackend  # noqa: PLC0415 - billiard is optional

        return BilliardBackend
    own: dict[ExecutorBackend, type[Backend]] = {
        ExecutorBackend.PROCESS: ProcessBackend,
        ExecutorBackend.THREAD: ThreadBackend,
        ExecutorBackend.INTERPRETER: InterpreterBackend,
    }
    return own[name]


def backend_of(
    name: ExecutorBackend, workers: int, prefix: str, options: Mapping[str, Any], logs: ProcessLoggingConfig
) -> Backend:
    """Return what makes a manager's executors.

    Raises:
        InvalidOptionError: An option has a value that it cannot have, or the backend cannot forward logs.
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
