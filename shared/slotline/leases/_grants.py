"""What a manager's book says of one lease."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

from slotline.errors import LeaseExpiredError
from slotline.leases._states import State

if TYPE_CHECKING:
    from slotline.leases._core import LeaseCore
    from slotline.leases._jobs import Job
    from slotline.leases._places import Place


class Grant:
    """One lease, as the manager sees it; its owner holds an ``ExecutorLease``.

    Attributes:
        jobs: The work that it took and that has not ended.
        state: Where it is in its life; changes under the core's lock.
        why: Why it is over, as the end of a sentence.
        warned: Whether its soft expiry was logged.
        dead: Made when its work is being killed, set when that is done.
    """

    __slots__ = (
        "core",
        "dead",
        "jobs",
        "lease_id",
        "lease_seconds",
        "leased_at",
        "owner",
        "place",
        "state",
        "warned",
        "why",
    )

    def __init__(self, core: LeaseCore, place: Place, lease_id: str, owner: str | None, seconds: float) -> None:
        self.core, self.place, self.lease_id, self.owner = core, place, lease_id, owner
        self.lease_seconds, self.leased_at = seconds, time.monotonic()
        self.jobs: set[Job] = set()
        self.state = State.ACTIVE
        self.why = ""
        self.warned = False
        self.dead: threading.Event | None = None

    @property
    def soft_expires_at(self) -> float:
        """When it expires."""
        return self.leased_at + self.lease_seconds

    @property
    def hard_expires_at(self) -> float:
        """When it is revoked."""
        return self.leased_at + self.lease_seconds + self.core.grace

    @property
    def due(self) -> float:
        """The moment at which the checker has something to do for it."""
        return self.hard_expires_at if self.warned else self.soft_expires_at

    def described(self) -> str:
        """Return how messages name it."""
        return f"Lease {self.lease_id}" + (f" of {self.owner!r}" if self.owner else "")

    def refusal(self) -> LeaseExpiredError:
        """Return the error for work that comes too late."""
        return LeaseExpiredError(f"{self.described()} {self.why or 'is over'}: it takes no more work.")
