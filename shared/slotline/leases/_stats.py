"""How a manager stands, as a dictionary."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, TypedDict

if TYPE_CHECKING:
    from slotline.leases._core import LeaseCore
    from slotline.leases._grants import Grant
    from slotline.leases._sizing import Sizing


class LeaseStats(TypedDict):
    """One lease.

    ``state`` is ``"active"``, ``"draining"`` (released, its work has not ended), ``"killing"``, ``"held"`` or
    ``"overdue"`` (revoked, its work runs on with or without its place); ``jobs`` counts its work.
    """

    lease_id: str
    owner: str | None
    state: str
    jobs: int
    seconds_until_soft_expiry: float
    seconds_until_hard_expiry: float


class ManagerStats(TypedDict):
    """One manager. ``overdue`` counts the calls of revoked leases that could not be killed and run on."""

    backend: str
    desired: int
    max_pools: int
    min_pools: int
    available: int
    leased: int
    total: int
    waiting: int
    overdue: int
    workers_per_pool: int
    leases: list[LeaseStats]


def stats_of(core: LeaseCore, sizing: Sizing, min_pools: int, workers: int) -> ManagerStats:
    """Return how a manager stands."""
    desired = sizing.desired()  # calls the user's provider: not under the lock
    now = time.monotonic()
    with core.lock:
        return ManagerStats(
            backend=str(core.backend.name),
            desired=desired,
            max_pools=core.max_places,
            min_pools=min_pools,
            available=len(core.idle),
            leased=core.total - len(core.idle),
            total=core.total,
            waiting=len(core.line),
            overdue=sum(len(grant.jobs) for grant in core.overdue),
            workers_per_pool=workers,
            leases=[_facts(grant, now) for grant in [*core.leases.values(), *core.killing, *core.overdue]],
        )


def _facts(grant: Grant, now: float) -> LeaseStats:
    return LeaseStats(
        lease_id=grant.lease_id,
        owner=grant.owner,
        state=grant.state.name.lower(),
        jobs=len(grant.jobs),
        seconds_until_soft_expiry=max(0.0, grant.soft_expires_at - now),
        seconds_until_hard_expiry=max(0.0, grant.hard_expires_at - now),
    )
