"""What caches count: for their statistics, and for metrics where those are asked for.

A hit of a cache in memory is so cheap that even to look whether somebody wants to know of it would show. So its
counting stays what it is, and where somebody does want to know, the counters are given a class that tells.
"""

from __future__ import annotations

from typing import Any, Final
from weakref import WeakSet

from slotline.metrics import _telling


class Counters:
    """What a cache has counted since it was made, in this process; each caller is one of the first five.

    Attributes:
        fresh: Hits.
        stale: Hits that only the grace made possible.
        misses: Callers for whom the value was made.
        bypassed: Those for whom it was made without the store, which was away.
        coalesced: Callers who waited for another's run.
        errors: Creators and store calls that failed.
    """

    __slots__ = ("__weakref__", "bypassed", "coalesced", "errors", "fresh", "misses", "stale")

    def __init__(self) -> None:
        self.fresh = self.stale = self.misses = self.bypassed = self.coalesced = self.errors = 0


def _telling_as(name: str, result: str) -> Any:
    slot = Counters.__dict__[name]

    def count(counters: Counters, number: int) -> None:
        slot.__set__(counters, number)
        if (observer := _telling.observer) is not None:
            observer.requested(result)  # each is counted alone, whatever threads make of the number

    return property(slot.__get__, count)


class TellingCounters(Counters):
    """Counters that tell of what they count as they count it."""

    __slots__ = ()

    fresh = _telling_as("fresh", "hit")
    stale = _telling_as("stale", "stale")
    misses = _telling_as("misses", "miss")
    bypassed = _telling_as("bypassed", "bypass")
    coalesced = _telling_as("coalesced", "coalesced")


_all: Final[WeakSet[Counters]] = WeakSet()


def new_counters() -> Counters:
    """Return the counters of a new cache."""
    _telling.begin()
    counters = Counters()
    _all.add(counters)
    if _telling.observer is not None:
        counters.__class__ = TellingCounters
    return counters


def _changed(telling: bool) -> None:  # noqa: FBT001 - called with what there is now
    for counters in list(_all):
        counters.__class__ = TellingCounters if telling else Counters


_telling.follow(_changed)
