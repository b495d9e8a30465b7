"""A queue's task in a lease of its own, with limits that really end it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import wait
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from slotline._checks import optional_seconds, refuse, whole_number
from slotline.errors import LeaseExpiredError, WorkTimeLimitError

if TYPE_CHECKING:
    from slotline.leases._proxy import LeasedExecutor
    from slotline.leases.lease import ExecutorLease
    from slotline.leases.manager import LeasedExecutorManager

T = TypeVar("T")

_KILL_SLACK = 60.0
"""Seconds by which a lease outlives its task's time limit, so that the limit is what ends the task."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How long one task may run, in seconds; ``None`` is no limit of its own.

    Args:
        time_limit: After it the task's process is killed; starting the process, and importing the function's module
            there, does not count.
        soft_time_limit: After it ``SoftTimeLimitExceeded`` is raised in the task.
        max_memory: Kilobytes of data that the task's process may hold; more is a ``MemoryError`` in the task.
    """

    time_limit: float | None = None
    soft_time_limit: float | None = None
    max_memory: int | None = None

    def __bool__(self) -> bool:
        return self.timed or self.max_memory is not None

    @property
    def timed(self) -> bool:
        """Whether the task's time is limited."""
        return self.time_limit is not None or self.soft_time_limit is not None

    def options(self) -> dict[str, Any]:
        """Return what a billiard executor is told; what is not limited here stays as its manager says."""
        named = {"timeout": self.time_limit, "soft_timeout": self.soft_time_limit, "max_memory": self.max_memory}
        return {name: value for name, value in named.items() if value is not None}


def limits_for(
    manager: LeasedExecutorManager,
    *,
    time_limit: float | None = None,
    soft_time_limit: float | None = None,
    max_memory: int | None = None,
) -> Limits:
    """Check a task's limits against what a manager can do; for when the task is registered.

    Raises:
        InvalidOptionError: A limit is no number of seconds, the soft one is not below the hard one, or the manager's
            backend cannot enforce it: threads cannot be killed, and only billiard knows soft limits and memory.
    """
    hard, soft = optional_seconds("time_limit", time_limit), optional_seconds("soft_time_limit", soft_time_limit)
    if hard is not None and not manager.killable:
        raise refuse(
            "time_limit",
            time_limit,
            f"left out on the {manager.backend} backend, whose work cannot be killed: use 'process' or 'billiard'",
        )
    if soft is not None and not manager.takes_limits:
        raise refuse("soft_time_limit", soft_time_limit, f"left out on the {manager.backend} backend: use 'billiard'")
    if soft is not None and hard is not None and soft >= hard:
        raise refuse("soft_time_limit", soft_time_limit, f"less than time_limit ({hard:g} s)")
    memory = None if max_memory is None else whole_number("max_memory", max_memory)
    if memory is not None and not manager.takes_limits:
        raise refuse("max_memory", max_memory, f"left out on the {manager.backend} backend: use 'billiard'")
    return Limits(hard, soft, memory)


async def run_in_lease(
    manager: LeasedExecutorManager,
    fn: Callable[..., T],
    args: tuple[Any, ...] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    owner: str | None = None,
    limits: Limits | None = None,
    lease_seconds: float | None = None,
    acquire_timeout: float | None = None,
) -> T:
    """Lease an executor, run ``fn`` there, release it, and return what ``fn`` returned.

    When the call is cancelled, work that runs is killed before the cancellation goes on, where the backend can kill.

    Args:
        manager: A running manager.
        fn: The function.
        args: Its positional arguments.
        kwargs: Its keyword arguments.
        owner: The lease's label.
        limits: What :func:`limits_for` returned.
        lease_seconds: Life of the lease (default: the manager's; with a time limit, longer than that limit).
        acquire_timeout: The longest wait for an executor, in seconds (default: no limit).

    Raises:
        WorkTimeLimitError: The work was killed at its time limit (process backend).
        TimeLimitExceeded: The same on the billiard backend, under billiard's name.
        LeaseExpiredError: The lease was revoked while the work ran.
        TimeoutError: No executor came free within ``acquire_timeout``.
    """
    limits = limits or Limits()
    lease = await manager.acquire(lease_seconds=_life(lease_seconds, limits), owner=owner, timeout=acquire_timeout)
    async with lease:
        alarm = None
        try:
            if limits.timed:
                getting_ready = _unlimited(manager, lease).submit(_get_ready, fn)
                await asyncio.gather(asyncio.wrap_future(getting_ready), return_exceptions=True)
            if limits and manager.takes_limits:
                executor = lease.executor.options(**limits.options())
                return await asyncio.wrap_future(executor.submit(fn, *args, **kwargs or {}))
            if limits.time_limit is not None:
                alarm = _Alarm(lease, limits.time_limit)
            return await lease.run(fn, *args, **kwargs or {})
        except asyncio.CancelledError:
            if manager.killable:
                await _finish(lease.revoke("was revoked because its caller was cancelled"))
            raise
        except LeaseExpiredError as error:
            raise _verdict(error, alarm, fn) from None
        finally:
            if alarm is not None:
                alarm.cancel()


def run_in_lease_sync(
    manager: LeasedExecutorManager,
    fn: Callable[..., T],
    args: tuple[Any, ...] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    owner: str | None = None,
    limits: Limits | None = None,
    lease_seconds: float | None = None,
    acquire_timeout: float | None = None,
    on_lease: Callable[[ExecutorLease], None] | None = None,
) -> T:
    """Do what :func:`run_in_lease` does, blocking.

    An exception that reaches the blocked thread from outside (a soft time limit, Ctrl-C) counts as cancellation.
    ``on_lease`` is called with the lease, by whose revocation another thread can end the call.
    """
    limits = limits or Limits()
    lease = manager.sync.acquire(lease_seconds=_life(lease_seconds, limits), owner=owner, timeout=acquire_timeout)
    with lease:
        if on_lease is not None:
            on_lease(lease)
        executor, alarm, future = lease.executor, None, None
        try:
            if limits.timed:
                wait([_unlimited(manager, lease).submit(_get_ready, fn)])
            if limits and manager.takes_limits:
                executor = executor.options(**limits.options())
            elif limits.time_limit is not None:
                alarm = _Alarm(lease, limits.time_limit)
            future = executor.submit(fn, *args, **kwargs or {})
            return future.result()
        except LeaseExpiredError as error:
            raise _verdict(error, alarm, fn) from None
        except BaseException:
            if future is not None and not future.done() and not future.cancel() and manager.killable:
                lease.sync.revoke("was revoked because its caller was interrupted")
            raise
        finally:
            if alarm is not None:
                alarm.cancel()
            del future


class _Alarm(threading.Timer):
    """Revokes a lease at its task's time limit."""

    rang = False

    def __init__(self, lease: ExecutorLease, limit: float) -> None:
        self.limit = limit
        super().__init__(min(limit, threading.TIMEOUT_MAX), self._ring)
        self.daemon = True
        self.name = "slotline-limit"
        self._lease = lease
        self.start()

    def _ring(self) -> None:
        self.rang = True
        self._lease.sync.revoke(f"was revoked at its task's time limit of {self.limit:g} s")


def _unlimited(manager: LeasedExecutorManager, lease: ExecutorLease) -> LeasedExecutor:
    return lease.executor.options(timeout=None, soft_timeout=None) if manager.takes_limits else lease.executor


def _get_ready(fn: Callable[..., Any]) -> None:
    """Have a process up that has imported what it is to run: the time that this takes is not the work's.

    If it fails, nobody hears of it: the work itself will say what is wrong.

    Whatever is sent to a process is imported there on arrival; what looks for its function only when it is called has a
    method for that.
    """
    prepare = getattr(fn, "slotline_prepare", None)
    if prepare is not None:
        prepare()


def _verdict(error: LeaseExpiredError, alarm: _Alarm | None, fn: Callable[..., Any]) -> LeaseExpiredError:
    if alarm is None or not alarm.rang:
        return error
    return WorkTimeLimitError(alarm.limit, str(getattr(fn, "__qualname__", fn)))


def _life(lease_seconds: float | None, limits: Limits) -> float | None:
    if lease_seconds is not None or limits.time_limit is None:
        return lease_seconds
    return limits.time_limit + _KILL_SLACK


async def _finish(work: Any) -> None:
    """Await ``work`` to its end, however often the waiting is cancelled meanwhile."""
    task = asyncio.ensure_future(work)
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            continue
