"""Fences for runs of which the store hears later: what it would give now, as far as this process can tell."""

from __future__ import annotations

import threading

_GOOD_FOR = 10.0
"""Seconds for which a reading of the store's clock counts, before the two clocks may have drifted apart."""


class Fences:
    """The fences of one pool, as this process sees them; any thread may use it.

    The store's fences are its clock's microseconds. A reply says what the clock showed before it came: the fastest one
    says it best, and none says too much.
    """

    __slots__ = ("_ahead", "_last", "_lock", "_read_at")

    def __init__(self) -> None:
        self._last, self._ahead, self._read_at = 0, 0, float("-inf")
        self._lock = threading.Lock()

    def saw(self, fence: int, now: float) -> None:
        """Take notice of a fence that the store has given before ``now``."""
        ahead = fence - int(now * 1_000_000)
        with self._lock:
            self._last = max(self._last, fence)
            if ahead >= self._ahead or now - self._read_at > _GOOD_FOR:
                self._ahead, self._read_at = ahead, now

    def next(self, now: float) -> int:
        """Return one that is higher than all that this process has seen."""
        with self._lock:
            self._last = max(self._last + 1, self._ahead + int(now * 1_000_000))
            return self._last
