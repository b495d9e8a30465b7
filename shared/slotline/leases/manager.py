"""The manager: it owns a bounded number of executors and leases them out."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

from slotline._checks import flag, refuse, seconds, text
from slotline.leases import _forks, _options
from slotline.leases._core import LeaseCore
from slotline.leases._desk import Desk, granted, too_late
from slotline.leases._lifecycle import Lifecycle
from slotline.leases._line import LoopWaiter, ThreadWaiter
from slotline.leases._stats import ManagerStats, stats_of
from slotline.leases._threads import in_thread
from slotline.leases.backend import ExecutorBackend
from slotline.leases.lease import ExecutorLease
from slotline.leases.process_logging import ProcessLoggingConfig, process_logging_of


class LeasedExecutorManager:
    """Leases out a bounded number of executors, each to one owner at a time.

    It may be used from any number of event loops and threads at once. Start it with ``start()`` or as a context manager
    (``async with`` or ``with``). ``.sync`` offers the coroutine methods under the same names, blocking. A manager that
    a fork has copied starts afresh in the child at its first use; the leases of the parent are void there.

    If the owning process dies, the worker processes of the process and billiard backends die with it.

    Args:
        backend: ``"thread"`` (default), ``"process"``, ``"interpreter"`` (Python 3.14) or ``"billiard"``.
        max_pools: The most executors that this manager owns at a time.
        min_pools: The fewest that it keeps (default 1), made at the start; more are made when they are needed.
        units_per_pool: Units that one executor serves, for ``size_provider`` (default 10).
        size_provider: Returns the current number of units; called at the start, every ``check_interval`` and after
            ``notify_scale_changed()``, in the manager's background thread. If it fails, that counts as 0 units.
        check_interval: Seconds between two looks of the background thread when nothing else is due (default 120).
        default_lease_seconds: Life of a lease whose caller asks for none (default 300).
        lease_grace_seconds: Seconds from the expiry of a lease to its revocation (default 15).
        workers_per_pool: Workers of each executor (default 4).
        name_prefix: First part of the names of worker threads (default ``"leasepool"``).
        logger: Gets the manager's log lines (default: ``slotline.leases``).
        process_logging: How log records of worker processes reach this process (default: not at all).
        forward_process_logs: Short form: forward them (default ``False``).
        process_log_level: Short form: level of the workers' root logger (default ``INFO``).
        process_log_target_logger: Short form: the logger that gets them.
        clear_process_log_handlers: Short form: remove the workers' own root handlers first (default ``True``).
        hold_overdue: Whether work of a revoked lease that cannot be killed keeps its place until it ends (default
            ``False``: its place passes on at once, and it counts as ``overdue``).
        **executor_kwargs: Further arguments for the executor's constructor, such as ``initializer``.

    Raises:
        InvalidOptionError: A value is not one of those, or nobody has such an option.
        UnsupportedBackendError: This interpreter or installation lacks the backend.
    """

    @_options.knows_its_options
    def __init__(
        self,
        *,
        backend: ExecutorBackend | str = ExecutorBackend.THREAD,
        max_pools: int,
        min_pools: int = 1,
        units_per_pool: int = 10,
        size_provider: Callable[[], float] | None = None,
        check_interval: float = 120.0,
        default_lease_seconds: float = 300.0,
        lease_grace_seconds: float = 15.0,
        workers_per_pool: int = 4,
        name_prefix: str = "leasepool",
        logger: logging.Logger | None = None,
        process_logging: ProcessLoggingConfig | None = None,
        forward_process_logs: bool = False,
        process_log_level: int | str = logging.INFO,
        process_log_target_logger: logging.Logger | None = None,
        clear_process_log_handlers: bool = True,
        hold_overdue: bool = False,
        **executor_kwargs: Any,
    ) -> None:
        self._max_pools = _options.count("max_pools", max_pools)
        self._min_pools = _options.count("min_pools", min_pools)
        if self._min_pools > self._max_pools:
            raise refuse("min_pools", min_pools, f"at most max_pools ({self._max_pools})")
        self._workers = _options.count("workers_per_pool", workers_per_pool)
        self._backend = _options.backend_of(
            _options.backend_named("backend", backend),
            self._workers,
            text("name_prefix", name_prefix),
            executor_kwargs,
            process_logging_of(
                process_logging,
                forward_process_logs=forward_process_logs,
                process_log_level=process_log_level,
                process_log_target_logger=process_log_target_logger,
                clear_process_log_handlers=clear_process_log_handlers,
            ),
        )
        log = _options.logger_of("logger", logger)
        grace = seconds("lease_grace_seconds", lease_grace_seconds, zero=True)
        self._core = LeaseCore(self._backend, self._max_pools, grace, log)
        self._life = Lifecycle(
            self._core,
            size_provider=_options.size_provider_of("size_provider", size_provider),
            units_per_pool=_options.count("units_per_pool", units_per_pool),
            min_pools=self._min_pools,
            check_interval=seconds("check_interval", check_interval),
            name=name_prefix,
            logger=log,
            hold_overdue=flag("hold_overdue", hold_overdue),
        )
        self._desk = Desk(self._core, self._life, seconds("default_lease_seconds", default_lease_seconds))
        _forks.watch_forks(self)

    @property
    def sync(self) -> SyncLeasedExecutorManager:
        """The blocking face."""
        return SyncLeasedExecutorManager(self._desk)

    @property
    def backend(self) -> ExecutorBackend:
        """Where leased work runs."""
        return self._backend.name

    @property
    def killable(self) -> bool:
        """Whether revoking a lease kills its work (process and billiard backends)."""
        return self._backend.killable

    @property
    def takes_limits(self) -> bool:
        """Whether its executors take time limits for single tasks (billiard backend)."""
        return self._backend.limits

    @property
    def inherited(self) -> bool:
        """Whether a fork has copied it, running, and nobody in this process has used it yet."""
        return self._desk.restart

    @property
    def running(self) -> bool:
        """Whether the manager grants leases."""
        return self._core.open or self._desk.restart

    @property
    def available_count(self) -> int:
        """How many executors are free."""
        return len(self._core.idle)

    @property
    def leased_count(self) -> int:
        """How many executors are leased, those of released leases whose work has not ended included."""
        with self._core.lock:
            return self._core.total - len(self._core.idle)

    @property
    def total_count(self) -> int:
        """How many executors the manager owns."""
        return self._core.total

    def desired_executor_count(self) -> int:
        """Ask the size provider and return how many executors there should be."""
        return self._life.sizing.desired()

    def notify_scale_changed(self) -> None:
        """Have the number of executors looked at now; callable from any thread."""
        if self._core.open:
            self._life.checker.resize_now()

    def stats(self) -> ManagerStats:
        """Return how the manager stands."""
        return stats_of(self._core, self._life.sizing, self._min_pools, self._workers)

    async def start(self) -> None:
        """Start to grant leases; harmless when started. No process or thread is started for work that never comes.

        Raises:
            UnsupportedBackendError: The backend does not work in this process, which runs under gevent.
        """
        self._desk.start()

    async def stop(self, *, wait: bool = True) -> None:
        """End all leases and executors; waiting callers get ``ManagerClosedError``. The manager can be started again.

        Args:
            wait: Whether work that leases have taken may end, at most until their hard expiry (default ``True``). If
                not, it is killed where it can be, and abandoned where it cannot.
        """
        await in_thread(lambda: self._desk.stop(wait=wait))

    async def acquire(
        self,
        *,
        lease_seconds: float | None = None,
        owner: str | None = None,
        wait: bool = True,
        timeout: float | None = None,
    ) -> ExecutorLease:
        """Lease an executor; callers that wait are served in the order in which they came.

        Cancelling the call at any moment leaks nothing.

        Args:
            lease_seconds: The life of the lease, in seconds (default: ``default_lease_seconds``).
            owner: A label for logs, statistics and errors.
            wait: Whether to wait when every executor is leased (default ``True``).
            timeout: The longest wait, in seconds (default: no limit).

        Raises:
            LeaseUnavailableError: Every executor is leased and ``wait`` is false.
            TimeoutError: None came free within ``timeout``.
            ManagerClosedError: The manager is not running, or was stopped meanwhile.
        """
        desk = self._desk
        life, patience = desk.request(lease_seconds, owner, timeout)
        grant = desk.core.take(life, owner)
        if grant is not None:
            return ExecutorLease(grant)
        loop = asyncio.get_running_loop()
        waiter = LoopWaiter(life, owner, loop)
        if desk.line_up(waiter, wait=wait, patience=patience):
            alarm = None if patience is None else loop.call_later(patience, self._give_up, waiter, patience)
            try:
                await waiter.future
            except BaseException:
                desk.leave(waiter)
                raise
            finally:
                if alarm is not None:
                    alarm.cancel()
        return ExecutorLease(granted(waiter))

    async def release(self, lease: ExecutorLease | str) -> None:
        """Release a lease, given itself or its id.

        Raises:
            LeaseExpiredError: No active lease has this id.
        """
        self._desk.release(lease)

    async def __aenter__(self) -> Self:
        self._desk.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    def __enter__(self) -> Self:
        self._desk.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._desk.stop(wait=True)

    def __repr__(self) -> str:
        return f"<LeasedExecutorManager {self.backend}: {self.leased_count} of {self._max_pools} leased>"

    def begin_anew_after_fork(self) -> None:
        """Forget what belongs to the parent process; called in a forked child."""
        self._desk.restart = self._life.begin_anew() or self._desk.restart

    def _give_up(self, waiter: LoopWaiter, patience: float) -> None:
        if self._core.leave_line(waiter):
            waiter.future.set_exception(too_late(patience))


class SyncLeasedExecutorManager:
    """The blocking face of a :class:`LeasedExecutorManager`."""

    __slots__ = ("_desk",)

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    def start(self) -> None:
        """See :meth:`LeasedExecutorManager.start`."""
        self._desk.start()

    def stop(self, *, wait: bool = True) -> None:
        """See :meth:`LeasedExecutorManager.stop`."""
        self._desk.stop(wait=wait)

    def acquire(
        self,
        *,
        lease_seconds: float | None = None,
        owner: str | None = None,
        wait: bool = True,
        timeout: float | None = None,
    ) -> ExecutorLease:
        """See :meth:`LeasedExecutorManager.acquire`."""
        desk = self._desk
        life, patience = desk.request(lease_seconds, owner, timeout)
        grant = desk.core.take(life, owner)
        if grant is not None:
            return ExecutorLease(grant)
        waiter = ThreadWaiter(life, owner)
        if desk.line_up(waiter, wait=wait, patience=patience):
            try:
                waiter.wait(None if patience is None else min(patience, threading.TIMEOUT_MAX))
            except BaseException:
                desk.leave(waiter)
                raise
            if desk.core.leave_line(waiter):
                raise too_late(patience)
        return ExecutorLease(granted(waiter))

    def release(self, lease: ExecutorLease | str) -> None:
        """See :meth:`LeasedExecutorManager.release`."""
        self._desk.release(lease)
