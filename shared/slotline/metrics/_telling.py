"""Where the parts of the package tell what happens; nothing is installed unless metrics are asked for.

Whoever has something to tell looks at ``observer`` first, which costs a few instructions where it is ``None``. It is
looked at once, since another thread may turn metrics off meanwhile.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec

from slotline.metrics._names import label_of
from slotline.metrics._sampling import SampledPools
from slotline.metrics.exporter import (
    COMPUTE,
    DECISIONS,
    HOLD,
    KILLS,
    RECLAIMED,
    RENEWALS,
    REQUESTS,
    WAIT,
    Exporter,
    KillReason,
    Outcome,
    PoolFigures,
    ReclaimReason,
    RenewalResult,
)

if TYPE_CHECKING:
    from slotline.errors import PoolFullError
    from slotline.pools.pool import Pool
    from slotline.pools.slot import Slot

logger = logging.getLogger("slotline.metrics")
P = ParamSpec("P")

# The libraries guard their figures with locks, and a child that is forked while another thread has one would wait
# for it for ever. Whoever has this one may have one of theirs, so that a fork waits for it.
_lock = threading.RLock()
os.register_at_fork(before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_lock.release)


def _guarded(tell: Callable[Concatenate[Observer, P], None]) -> Callable[Concatenate[Observer, P], None]:
    def guarded(self: Observer, /, *args: P.args, **kwargs: P.kwargs) -> None:
        try:
            with _lock:
                tell(self, *args, **kwargs)
        except Exception as error:
            if type(error).__module__.startswith("billiard."):  # a soft time limit that came just then is the task's
                raise
            if not self.failed:
                self.failed = True
                logger.exception("metrics fail, and from now on silently; nothing else is concerned")

    return guarded


class Observer:
    """Tells an exporter what happens; whatever goes wrong in that is logged once.

    Args:
        exporter: Where the figures go.
    """

    def __init__(self, exporter: Exporter) -> None:
        self.exporter = exporter
        self.pools = SampledPools()
        self.failed = False

    @_guarded
    def decided(self, pool: Pool, outcome: Outcome) -> None:
        """One who wants a slot has it, or not."""
        label = label_of(pool.key)
        if label is not None:
            self.exporter.count(DECISIONS, (label, outcome), 1)
            self.pools.note(pool)

    @_guarded
    def turned_away(self, key: str, outcome: Outcome) -> None:
        """A queue has made something of a message that its pool has refused."""
        label = label_of(key)
        if label is not None:
            self.exporter.count(DECISIONS, (label, outcome), 1)

    @_guarded
    def waited(self, key: str, seconds: float) -> None:
        """One who had to wait has a slot."""
        label = label_of(key)
        if label is not None:
            self.exporter.observe(WAIT, (label,), max(0.0, seconds))

    @_guarded
    def taken(self, key: str, place: bytes, fence: int | bytes) -> None:
        """A parked message has a slot; its place and its slot's fence are times of the store's clock."""
        label = label_of(key)
        if label is not None:
            self.exporter.observe(WAIT, (label,), max(0.0, (int(fence) - int(place, 16)) / 1_000_000))

    @_guarded
    def held(self, slot: Slot) -> None:
        """The holder of a slot has ended."""
        label = label_of(slot.key)
        if label is not None:
            self.exporter.observe(HOLD, (label,), max(0.0, time.time() - slot.acquired_at))

    def given_up(self, slot: Slot) -> None:
        """A slot, or a holding, is released or lost; what had ended before is not told again."""
        for part in slot.slots:
            if part._ended is None:  # noqa: SLF001 - of this package
                self.held(part)

    @_guarded
    def renewed(self, result: RenewalResult) -> None:
        """Something that is held was renewed, or not."""
        self.exporter.count(RENEWALS, (result,), 1)

    @_guarded
    def reclaimed(self, reason: ReclaimReason, times: int = 1) -> None:
        """Something was taken from its holder."""
        self.exporter.count(RECLAIMED, (reason,), times)

    @_guarded
    def requested(self, result: str) -> None:
        """A caller of a cache got something."""
        self.exporter.count(REQUESTS, (result,), 1)

    @_guarded
    def computed(self, seconds: float) -> None:
        """A value for a cache was made, or making it failed."""
        self.exporter.observe(COMPUTE, (), seconds)

    @_guarded
    def killed(self, reason: KillReason) -> None:
        """A worker process was killed."""
        self.exporter.count(KILLS, (reason,), 1)


observer: Observer | None = None
"""Whom to tell; ``None``: nobody."""
_followers: list[Callable[[bool], Any]] = []


def follow(change: Callable[[bool], Any]) -> None:
    """Call ``change`` whenever there is somebody to tell now (``True``), or nobody any more."""
    _followers.append(change)


def install(exporter: Exporter | None) -> None:
    """Tell ``exporter`` from now on, or nobody."""
    global observer  # noqa: PLW0603 - the one process-wide place
    if exporter is (None if observer is None else observer.exporter):
        return
    observer = None if exporter is None else Observer(exporter)
    for change in _followers:
        change(exporter is not None)


def begin() -> None:
    """Have ``SLOTLINE_METRICS`` take effect where no other setting has been needed yet."""
    if observer is None and "SLOTLINE_METRICS" in os.environ:
        from slotline import settings  # noqa: PLC0415 - it installs what is asked for

        settings.current()


def turned_away(error: PoolFullError, outcome: Outcome) -> None:
    """Tell what a queue makes of a message that its pool has refused."""
    if (told := observer) is not None:
        told.turned_away(error.key, outcome)


def sample_pools() -> list[PoolFigures]:
    """Return the state of the pools that this process uses, as their stores say; one entry for each label.

    It takes a moment, and two seconds at the most: a store that does not answer by then is left out.
    """
    return [] if (asked := observer) is None else asked.pools.sample()
