"""The executor that an owner sees: it takes work for its lease alone."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import TYPE_CHECKING, Never, ParamSpec, TypeVar, cast

from slotline._default import DEFAULT, Default
from slotline.errors import LeaseError
from slotline.leases._work import submit_future
from slotline.workers.options import NO_LIMITS

if TYPE_CHECKING:
    from slotline.leases._grants import Grant

P = ParamSpec("P")
T = TypeVar("T")


class LeasedExecutor(Executor):
    """A leased executor: ``submit`` and ``map`` as ever, ``shutdown`` refused, since others will use it later.

    It fits wherever an executor does, ``loop.run_in_executor`` included.

    Args:
        grant: The lease whose executor it is.
        limits: Time limits for each task, on backends that have them.
    """

    def __init__(self, grant: Grant, limits: dict[str, float | None] | None = None) -> None:
        self._grant, self._limits = grant, limits

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Have ``fn`` run by the leased executor.

        Returns:
            A future. If the lease is revoked before the work has ended, it fails with ``LeaseExpiredError``; cancelling
            it takes the work out of the queue if no worker has it yet.

        Raises:
            LeaseExpiredError: The lease takes no more work.
        """
        return cast("Future[T]", submit_future(self._grant, fn, args, kwargs, self._limits))

    def options(
        self,
        *,
        timeout: float | Default | None = DEFAULT,
        soft_timeout: float | Default | None = DEFAULT,
        max_memory: int | Default | None = DEFAULT,
    ) -> LeasedExecutor:
        """Return this executor with limits for each task; only the billiard backend has them.

        Args:
            timeout: Seconds after which a task's process is killed; ``None`` lifts the limit (default: the manager's).
            soft_timeout: Seconds after which ``SoftTimeLimitExceeded`` is raised in the task; likewise.
            max_memory: Kilobytes of data that the process may hold while a task runs; likewise.

        Raises:
            InvalidOptionError: A limit is none of those.
            LeaseError: The backend has no such limits.
        """
        backend = self._grant.core.backend
        if not backend.limits:
            raise LeaseError(
                f"Executors of the {backend.name} backend take no time limits for single tasks; billiard's do."
            )
        named = {"timeout": timeout, "soft_timeout": soft_timeout, "max_memory": max_memory}
        given = {name: value for name, value in named.items() if value is not DEFAULT}
        NO_LIMITS.override(**given)  # refuses what is no limit
        return LeasedExecutor(self._grant, {**(self._limits or {}), **given})

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> Never:  # noqa: ARG002, FBT001, FBT002 - the signature of Executor
        """Refuse: the executor belongs to the manager.

        Raises:
            LeaseError: Always.
        """
        raise LeaseError("A leased executor cannot be shut down: release its lease, or stop its manager.")

    def __exit__(self, *exc_info: object) -> Never:
        self.shutdown()
