"""A lease: one executor, for one owner, for a time."""

from __future__ import annotations

import asyncio
import contextvars
import time
from collections.abc import Callable, Sequence
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, ParamSpec, Self, TypeVar

from slotline._checks import seconds as checked_seconds
from slotline.leases._jobs import Job, LeaseFuture, LocalJob, LoopSink, RemoteJob, Sink
from slotline.leases._mailbox import mailbox_of
from slotline.leases._proxy import LeasedExecutor
from slotline.leases._states import State
from slotline.leases._threads import in_thread

if TYPE_CHECKING:
    from slotline.leases._grants import Grant

P = ParamSpec("P")
T = TypeVar("T")


class ExecutorLease:
    """The right to use one executor of a manager until it is released, revoked or expired.

    Leases come from ``manager.acquire()``. Use them as a context manager (``async with`` or ``with``), or release them.
    If the owner forgets it or its process hangs, the lease expires: first softly, with a warning in the log, and after
    the manager's grace it is revoked and its place goes to the next in line.

    ``.sync`` offers the same operations, blocking.
    """

    __slots__ = ("__weakref__", "_grant")

    def __init__(self, grant: Grant) -> None:
        self._grant = grant

    @property
    def lease_id(self) -> str:
        """What identifies the lease in its manager."""
        return self._grant.lease_id

    @property
    def owner(self) -> str | None:
        """The label that its owner gave."""
        return self._grant.owner

    @property
    def lease_seconds(self) -> float:
        """Its life, in seconds from ``leased_at``."""
        return self._grant.lease_seconds

    @property
    def leased_at(self) -> float:
        """When it was granted or last renewed, on the clock of ``time.monotonic()``."""
        return self._grant.leased_at

    @property
    def sync(self) -> SyncExecutorLease:
        """The blocking face."""
        return SyncExecutorLease(self)

    @property
    def executor(self) -> LeasedExecutor:
        """The leased executor, as a ``concurrent.futures.Executor`` that cannot be shut down."""
        return LeasedExecutor(self)

    @property
    def active(self) -> bool:
        """Whether the lease takes work."""
        return self._grant.state is State.ACTIVE

    @property
    def grace_seconds(self) -> float:
        """Seconds between the soft expiry and the revocation."""
        return self._grant.core.grace

    @property
    def soft_expires_at(self) -> float:
        """When the lease expires, on the clock of ``time.monotonic()``; it still works during the grace."""
        return self._grant.soft_expires_at

    @property
    def hard_expires_at(self) -> float:
        """When the lease is revoked, on the clock of ``time.monotonic()``."""
        return self._grant.hard_expires_at

    @property
    def expires_at(self) -> float:
        """The same as ``soft_expires_at``."""
        return self.soft_expires_at

    @property
    def remaining(self) -> float:
        """Seconds until the lease expires; 0.0 once it has, or takes no more work."""
        return max(0.0, self.soft_expires_at - time.monotonic()) if self.active else 0.0

    async def run(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Run ``fn`` on the leased executor and return what it returns.

        On the thread backend it runs in a copy of the caller's context variables. Cancelling the call takes the work
        out of the queue if no worker has it yet; running work runs on, and keeps the executor until it ends.

        Raises:
            LeaseExpiredError: The lease takes no more work, or was revoked before this work had ended.
            WorkExitedError: The work raised ``SystemExit``, ``KeyboardInterrupt`` or the like.
            BrokenExecutor: The process that ran it died.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        job = self._job(LoopSink(future, mailbox_of(loop)), fn, args, kwargs)
        try:
            self._submit(job)
            return await future
        except BaseException:
            future.cancel()
            job.cancel()
            raise
        finally:
            del future, job  # an exception's traceback holds this frame

    async def release(self) -> None:
        """End the lease and return at once; its place passes on when the work it took has ended. Harmless twice."""
        self._grant.core.release(self._grant)

    async def renew(self, seconds: float | None = None) -> float:
        """Let the lease expire ``seconds`` from now.

        Args:
            seconds: Its new life (default: the same as before).

        Returns:
            The new ``expires_at``.

        Raises:
            LeaseExpiredError: It was released or revoked before.
        """
        return self._renew(seconds)

    async def revoke(self, reason: str = "was revoked") -> None:
        """Take the lease away from its owner now, as at its hard expiry.

        On the process and billiard backends, returns when its work is dead.

        Args:
            reason: Why, as the end of a sentence that begins with the lease ("was revoked").
        """
        grant = self._grant
        grant.core.revoker.begin(grant, reason)
        if grant.dead is not None and not grant.dead.is_set():
            await in_thread(grant.dead.wait)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._grant.core.release(self._grant)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._grant.core.release(self._grant)

    def __repr__(self) -> str:
        return f"<ExecutorLease {self.lease_id} of {self.owner!r}, {self._grant.state.name.lower()}>"

    def _renew(self, seconds: float | None) -> float:
        grant = self._grant
        grant.core.renew(grant, grant.lease_seconds if seconds is None else checked_seconds("seconds", seconds))
        return grant.soft_expires_at

    def _job(
        self, sink: Sink, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> LocalJob | RemoteJob:
        if not callable(fn):
            raise TypeError(f"A lease runs something that can be called, not {fn!r}.")
        backend = self._grant.core.backend
        if backend.local:
            return LocalJob(self._grant, sink, fn, args, kwargs)
        if backend.in_process:
            fn = partial(contextvars.copy_context().run, fn)
        return RemoteJob(self._grant, sink, fn, args, kwargs)

    def _submit(self, job: Job) -> None:
        grant = self._grant
        grant.core.admit(grant, job)
        try:
            grant.place.start(grant, job)
        except BaseException:
            grant.core.job_done(grant, job)
            raise

    def _submit_many(self, jobs: Sequence[Job]) -> None:
        grant = self._grant
        grant.core.admit_many(grant, jobs)
        try:
            grant.place.start_many(grant, jobs)
        except BaseException:
            for job in jobs:
                grant.core.job_done(grant, job)
            raise

    def _future(
        self,
        fn: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        limits: dict[str, float | None] | None = None,
    ) -> LeaseFuture:
        future = LeaseFuture()
        future.job = job = self._job(future, fn, args, kwargs)
        if limits is not None and isinstance(job, RemoteJob):
            job.limits = limits
        self._submit(job)
        return future


class SyncExecutorLease:
    """The blocking face of an :class:`ExecutorLease`."""

    __slots__ = ("_lease",)

    def __init__(self, lease: ExecutorLease) -> None:
        self._lease = lease

    def run(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """See :meth:`ExecutorLease.run`."""
        future = self._lease._future(fn, args, kwargs)
        try:
            result: T = future.result()
            return result
        except BaseException:
            future.cancel()
            raise
        finally:
            del future  # an exception's traceback holds this frame

    def release(self) -> None:
        """See :meth:`ExecutorLease.release`."""
        self._lease._grant.core.release(self._lease._grant)

    def renew(self, seconds: float | None = None) -> float:
        """See :meth:`ExecutorLease.renew`."""
        return self._lease._renew(seconds)

    def revoke(self, reason: str = "was revoked") -> None:
        """See :meth:`ExecutorLease.revoke`."""
        grant = self._lease._grant
        grant.core.revoker.begin(grant, reason)
        if grant.dead is not None:
            grant.dead.wait()
