"""What is counted, and what a way out for the figures has to be able to do."""

from __future__ import annotations

from abc import ABC, abstractmethod
from importlib.util import find_spec
from typing import Final, Literal, NamedTuple, TypeAlias

BUCKETS: Final = (0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0)
"""Upper bounds in seconds: what is held and waited for takes anything from milliseconds to an hour."""


class Metric(NamedTuple):
    """Something that is counted as it happens.

    Attributes:
        name: Its name, with underscores, without the prefix ``slotline_`` and without its unit.
        kind: ``"counter"``, or ``"histogram"``: of seconds, with ``BUCKETS``.
        labels: The names of its labels.
        says: What it tells, for people.
    """

    name: str
    kind: Literal["counter", "histogram"]
    labels: tuple[str, ...]
    says: str


DECISIONS: Final = Metric("pool_decisions", "counter", ("pool", "outcome"), "What became of those who wanted a slot.")
WAIT: Final = Metric("pool_wait", "histogram", ("pool",), "How long those waited who had to wait for their slot.")
HOLD: Final = Metric("pool_hold", "histogram", ("pool",), "How long slots were held.")
RENEWALS: Final = Metric("lease_renewals", "counter", ("result",), "Renewals of what this process holds in a store.")
RECLAIMED: Final = Metric("lease_reclaimed", "counter", ("reason",), "Leases that ended before they were given back.")
REQUESTS: Final = Metric("cache_requests", "counter", ("result",), "What callers of caches got.")
COMPUTE: Final = Metric("cache_compute", "histogram", (), "How long values for caches were made.")
KILLS: Final = Metric("worker_kills", "counter", ("reason",), "Worker processes that were killed.")

METRICS: Final = (DECISIONS, WAIT, HOLD, RENEWALS, RECLAIMED, REQUESTS, COMPUTE, KILLS)
SLOTS_SAY: Final = "Slots in use and callers and messages that wait, as the store says."
LIMIT_SAYS: Final = "The limit in force, as the store says."

Outcome: TypeAlias = Literal[
    "admitted", "queued", "parked", "refused", "timed_out", "dropped", "cancelled", "stale"
]  # fmt: skip
"""``refused``: no slot, and no wait asked for; the last three are what a queue then makes of its message."""

RenewalResult: TypeAlias = Literal["renewed", "gone", "failed"]
"""``gone``: the store knows it no more; ``failed``: the store could not be asked."""
ReclaimReason: TypeAlias = Literal[
    "expired", "gone", "slot_exp", "evicted", "lapsed", "overdue", "revoked", "stopped"
]  # fmt: skip
"""What is kept in a store: not renewed in time, forgotten by the store, at its ``slot_exp``, told to end; ``lapsed``:
taken back by the store, and told by the one for whom it was. Of executors: not given back in time, revoked by whoever
knows the lease, ended with their manager."""
KillReason: TypeAlias = Literal["time_limit", "revoked", "terminated", "stuck", "slot_lost", "evicted"]
"""A hard time limit, a lease that was revoked, an end that was asked for, a worker that did not end when told to; and
a task's slot that is lost, or to go to another."""


class PoolFigures(NamedTuple):
    """The state of all pools of one label, at one moment.

    Attributes:
        pool: The label.
        used: How many slots are in use.
        waiting: How many callers and parked messages wait.
        limit: How many slots they have together; ``None``: one of them only has a rate.
    """

    pool: str
    used: int
    waiting: int
    limit: int | None


class Exporter(ABC):
    """A way out for the figures.

    Whatever goes wrong in it is logged once and disturbs nobody. One thread at a time calls it while others wait, so it
    must not block. For the state of pools it asks :func:`~slotline.metrics.sample_pools` when somebody looks.
    """

    @abstractmethod
    def count(self, metric: Metric, labels: tuple[str, ...], by: int) -> None:
        """Add to a counter."""

    @abstractmethod
    def observe(self, metric: Metric, labels: tuple[str, ...], seconds: float) -> None:
        """Add to a histogram."""


def needs(module: str, extra: str) -> None:
    """Say at once that a library is missing.

    Raises:
        ImportError: It is; the error names the extra that brings it.
    """
    try:
        found = find_spec(module)
    except ModuleNotFoundError:  # it is part of a package that is not there
        found = None
    if found is None:
        raise ImportError(f"Metrics need {module}, which the extra {extra!r} brings: pip install 'slotline[{extra}]'.")
