"""What both faces of a manager share: checking a request, standing in line, leaving it."""

from __future__ import annotations

from typing import Any

from slotline._checks import optional_seconds, seconds
from slotline.errors import LeaseExpiredError, LeaseUnavailableError
from slotline.leases._core import LeaseCore
from slotline.leases._grants import Grant
from slotline.leases._lifecycle import Lifecycle
from slotline.leases._line import Waiter
from slotline.leases._options import owner_of
from slotline.leases.lease import ExecutorLease


class Desk:
    """Serves the callers of one manager.

    Args:
        core: The manager's books.
        life: Opens and closes them.
        default_seconds: Life of a lease whose caller asks for none.

    Attributes:
        restart: A running manager was copied by a fork: the copy starts at its first use.
    """

    def __init__(self, core: LeaseCore, life: Lifecycle, default_seconds: float) -> None:
        self.core, self.life, self._default_seconds = core, life, default_seconds
        self.restart = False

    def start(self) -> None:
        """Start to grant leases."""
        self.restart = False
        self.life.start()

    def stop(self, *, wait: bool) -> None:
        """End all leases and executors."""
        self.life.stop(wait=wait)
        self.restart = False

    def request(self, lease_seconds: Any, owner: Any, timeout: Any) -> tuple[float, float | None]:
        """Return the life of the wanted lease and the caller's patience, both in seconds."""
        if self.restart:
            self.start()
        life = self._default_seconds if lease_seconds is None else seconds("lease_seconds", lease_seconds)
        if owner is not None:
            owner_of(owner)
        return life, timeout if timeout is None else optional_seconds("timeout", timeout, zero=True)

    def line_up(self, waiter: Waiter, *, wait: bool, patience: float | None) -> bool:
        """Join the line; ``False`` if there is no need to wait.

        Raises:
            LeaseUnavailableError: The caller does not want to wait.
            TimeoutError: The caller has no time to wait.
        """
        if not wait:
            raise LeaseUnavailableError(f"All {self.core.max_places} executors are leased.")
        if patience == 0:
            raise too_late(patience)
        return not self.core.stand_in_line(waiter)

    def leave(self, waiter: Waiter) -> None:
        """Leave the line for good; a lease that was granted meanwhile goes to the next."""
        if not self.core.leave_line(waiter) and waiter.grant is not None:
            self.core.release(waiter.grant)

    def release(self, lease: ExecutorLease | str) -> None:
        """Release a lease, given itself or its id."""
        if isinstance(lease, ExecutorLease):
            lease.sync.release()
            return
        grant = self.core.leases.get(lease)
        if grant is None:
            raise LeaseExpiredError(f"No active lease has the id {lease!r}.")
        self.core.release(grant)


def granted(waiter: Waiter) -> Grant:
    """Return what a waiter was woken for, or raise the reason why there is nothing."""
    if waiter.error is not None:
        raise waiter.error
    if waiter.grant is None:
        raise AssertionError("a waiter was woken for nothing")
    return waiter.grant


def too_late(patience: float | None) -> TimeoutError:
    """Return the error for a caller whose patience has ended."""
    return TimeoutError(f"No executor came free within {patience:g} s.")
