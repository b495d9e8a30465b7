"""The options of an executor and of one task, checked where they are given."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, Final

from slotline import _checks
from slotline._checks import refuse

_MOST_KILOBYTES: Final = 1 << 50
"""More than any machine has, and what the system takes for a limit."""
START_METHODS: Final = ("spawn", "forkserver", "fork")


class Unset:
    """The type of :data:`DEFAULT`, which stands for "what the executor says"."""

    def __repr__(self) -> str:
        return "DEFAULT"


DEFAULT: Final = Unset()


def _optional_count(option: str, value: Any) -> int | None:
    return None if value is None else _checks.whole_number(option, value)


def _optional_callable(option: str, value: Any) -> Callable[..., Any] | None:
    if value is not None and not callable(value):
        raise refuse(option, value, "a callable or None")
    return value  # type: ignore[no-any-return] # checked one line above


def usable_cpus() -> int:
    """Return how many processors this process may use, at least one."""
    try:
        return len(os.sched_getaffinity(0)) or 1
    except (AttributeError, OSError):
        return os.cpu_count() or 1


@dataclass(frozen=True, slots=True)
class TaskLimits:
    """What bounds one task.

    Args:
        timeout: Seconds after which the task's process is killed.
        soft_timeout: Seconds after which ``SoftTimeLimitExceeded`` is raised inside the task.
        lost_worker_timeout: Seconds that a dead worker's exit status is waited for before its task fails.
        max_memory: Kilobytes of data that the worker may hold while the task runs; more is a ``MemoryError`` in it.
    """

    timeout: float | None = None
    soft_timeout: float | None = None
    lost_worker_timeout: float | None = None
    max_memory: int | None = None

    def override(
        self,
        *,
        timeout: Any = DEFAULT,
        soft_timeout: Any = DEFAULT,
        lost_worker_timeout: Any = DEFAULT,
        max_memory: Any = DEFAULT,
    ) -> TaskLimits:
        """Return these limits with those replaced that are given; ``None`` lifts a limit."""
        given: dict[str, Any] = {}
        if timeout is not DEFAULT:
            given["timeout"] = _checks.optional_seconds("timeout", timeout)
        if soft_timeout is not DEFAULT:
            given["soft_timeout"] = _checks.optional_seconds("soft_timeout", soft_timeout)
        if lost_worker_timeout is not DEFAULT:
            given["lost_worker_timeout"] = _checks.optional_seconds("lost_worker_timeout", lost_worker_timeout)
        if max_memory is not DEFAULT:
            kilobytes = _optional_count("max_memory", max_memory)
            given["max_memory"] = None if kilobytes is None else min(kilobytes, _MOST_KILOBYTES)
        if not given:
            return self
        limits = replace(self, **given)
        return NO_LIMITS if limits == NO_LIMITS else limits

    @property
    def timed(self) -> bool:
        """Whether a time limit applies."""
        return self.timeout is not None or self.soft_timeout is not None


NO_LIMITS: Final = TaskLimits()
"""The only one of its kind, so that it is known by its identity."""


@dataclass(frozen=True, slots=True)
class PoolOptions:
    """The checked options of a :class:`~slotline.workers.BilliardExecutor`; they are described there."""

    processes: int
    initializer: Callable[..., Any] | None
    initargs: tuple[Any, ...]
    maxtasksperchild: int | None
    limits: TaskLimits
    max_restarts: int | None
    max_restart_freq: float
    on_process_up: Callable[..., Any] | None
    on_process_down: Callable[..., Any] | None
    on_timeout_set: Callable[..., Any] | None
    on_timeout_cancel: Callable[..., Any] | None
    threads: bool
    semaphore: Any
    putlocks: bool
    allow_restart: bool
    synack: bool
    on_process_exit: Callable[..., Any] | None
    context: Any
    max_memory_per_child: int | None
    enable_timeouts: bool


def _check_semaphore(value: Any) -> Any:
    if value is not None and not (
        callable(getattr(value, "acquire", None)) and callable(getattr(value, "release", None))
    ):
        raise refuse("semaphore", value, "an object with acquire() and release(), or None")
    return value


def _check_context(value: Any) -> Any:
    method = value if value is None or isinstance(value, str) else getattr(value, "get_start_method", lambda: value)()
    if method is not None and method not in START_METHODS:
        raise refuse("context", value, "None, one of 'spawn', 'forkserver', 'fork', or a context of billiard")
    return value


def _check_initargs(value: Any) -> tuple[Any, ...]:
    if isinstance(value, str | bytes) or not isinstance(value, Iterable):
        raise refuse("initargs", value, "a tuple of the initializer's arguments")
    return tuple(value)


def check_pool_options(given: dict[str, Any]) -> PoolOptions:
    """Return the options in their final types.

    Raises:
        InvalidOptionError: one of them has a value that it cannot have.
    """
    processes = given["processes"]
    return PoolOptions(
        processes=usable_cpus() if processes is None else _checks.whole_number("processes", processes),
        initializer=_optional_callable("initializer", given["initializer"]),
        initargs=_check_initargs(given["initargs"]),
        maxtasksperchild=_optional_count("maxtasksperchild", given["maxtasksperchild"]),
        limits=NO_LIMITS.override(
            timeout=given["timeout"],
            soft_timeout=given["soft_timeout"],
            lost_worker_timeout=given["lost_worker_timeout"],
        ),
        max_restarts=_optional_count("max_restarts", given["max_restarts"]),
        max_restart_freq=_checks.seconds("max_restart_freq", given["max_restart_freq"]),
        on_process_up=_optional_callable("on_process_up", given["on_process_up"]),
        on_process_down=_optional_callable("on_process_down", given["on_process_down"]),
        on_timeout_set=_optional_callable("on_timeout_set", given["on_timeout_set"]),
        on_timeout_cancel=_optional_callable("on_timeout_cancel", given["on_timeout_cancel"]),
        threads=_checks.flag("threads", given["threads"]),
        semaphore=_check_semaphore(given["semaphore"]),
        putlocks=_checks.flag("putlocks", given["putlocks"]),
        allow_restart=_checks.flag("allow_restart", given["allow_restart"]),
        synack=_checks.flag("synack", given["synack"]),
        on_process_exit=_optional_callable("on_process_exit", given["on_process_exit"]),
        context=_check_context(given["context"]),
        max_memory_per_child=_optional_count("max_memory_per_child", given["max_memory_per_child"]),
        enable_timeouts=_checks.flag("enable_timeouts", given["enable_timeouts"]),
    )
