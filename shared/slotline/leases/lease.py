"""A lease: one executor, for one owner, for a time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any, ParamSpec, Self, TypeVar

from slotline.leases import _work
from slotline.leases._jobs import LoopSink
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

    ``.sync`` offers the same operations, blocking. The work itself may use the lease too, to renew it or to add work.
    """

    __slots__ = ("__weakref__", "_grant")

    def __init__(self, grant: Grant) -> None:
        self._grant = grant

    @property
    def sync(self) -> SyncExecutorLease:
        """The blocking face."""
        return SyncExecutorLease(self._grant)

    @property
    def executor(self) -> LeasedExecutor:
        """The leased executor, as a ``concurrent.futures.Executor`` that cannot be shut down."""
        return LeasedExecutor(self._grant)

    @property
    def lease_id(self) -> str:
        """What identifies the lease in its manager."""
        return self._grant.lease_id

    @property
    def owner(self) -> str | None:
        """The label that its owner gave."""
        return self._grant.owner

    @property
    def active(self) -> bool:
        """Whether the lease takes work."""
        return self._grant.state is State.ACTIVE

    @property
    def lease_seconds(self) -> float:
        """Its life, in seconds from ``leased_at``."""
        return self._grant.lease_seconds

    @property
    def grace_seconds(self) -> float:
        """Seconds between the soft expiry and the revocation."""
        return self._grant.core.grace

    @property
    def leased_at(self) -> float:
        """When it was granted or last renewed, on the clock of ``time.monotonic()``."""
        return self._grant.leased_at

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
        return self._grant.soft_expires_at

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
        future: asyncio.Future[Any] = loop.create_future()
        job = _work.job_for(self._grant, LoopSink(future, mailbox_of(loop)), fn, args, kwargs)
        try:
            _work.submit(self._grant, job)
            result: T = await future
        except BaseException:
            future.cancel()
            job.cancel()
            raise
        else:
            return result
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
        return _work.renew(self._grant, seconds)

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


class SyncExecutorLease:
    """The blocking face of an :class:`ExecutorLease`."""

    __slots__ = ("_grant",)

    def __init__(self, grant: Grant) -> None:
        self._grant = grant

    def run(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """See :meth:`ExecutorLease.run`."""
        future = _work.submit_future(self._grant, fn, args, kwargs)
        try:
            result: T = future.result()
        except BaseException:
            future.cancel()
            raise
        else:
            return result
        finally:
            del future  # an exception's traceback holds this frame

    def release(self) -> None:
        """See :meth:`ExecutorLease.release`."""
        self._grant.core.release(self._grant)

    def renew(self, seconds: float | None = None) -> float:
        """See :meth:`ExecutorLease.renew`."""
        return _work.renew(self._grant, seconds)

    def revoke(self, reason: str = "was revoked") -> None:
        """See :meth:`ExecutorLease.revoke`."""
        grant = self._grant
        grant.core.revoker.begin(grant, reason)
        if grant.dead is not None:
            grant.dead.wait()
