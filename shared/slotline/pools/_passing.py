"""What a process knows of a pool whose slots it passes from run to run without a word to the store."""

from __future__ import annotations

import os
import threading

PASSES = 0.25
"""Seconds for which slots pass on after the store was asked and had room: so long it has no say in who comes next."""
_ASKS_AHEAD = 0.05
"""Seconds before that end at which one run asks, so that the others need not."""
_GOOD_FOR = 10.0
"""Seconds for which a reading of the store's clock counts, before the two clocks may have drifted apart."""

# Of all pools: it is held for a few instructions, and a fork waits for it, so that no child finds it taken for ever.
_lock = threading.Lock()
os.register_at_fork(before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_lock.release)


class Passing:
    """Until when slots of one pool pass on in this process, and with which fences; any thread may use it.

    A grant says whether the pool is roomy: for that one slot as well as for all others that the process has of it.

    Fences for runs of which the store hears later are what it would give now, as far as this process can tell. The
    store's fences are its clock's microseconds. A reply says what the clock showed before it came: the fastest one
    says it best, and none says too much.

    Attributes:
        until: Until when slots pass on, unless the store grants another and the pool is roomy then.
    """

    __slots__ = ("_ahead", "_asked_before", "_last", "_read_at", "until")

    def __init__(self) -> None:
        self.until = self._asked_before = 0.0
        self._last, self._ahead, self._read_at = 0, 0, float("-inf")

    def granted(self, fence: int, since: float, now: float, *, roomy: bool) -> None:
        """Take notice of a slot that the store was asked for at ``since``, and that was here ``now``."""
        ahead = fence - int(now * 1_000_000)
        with _lock:
            self._last = max(self._last, fence)
            if ahead >= self._ahead or now - self._read_at > _GOOD_FOR:
                self._ahead, self._read_at = ahead, now
            if roomy:
                self.until = max(self.until, since + PASSES)

    def has_one_ask(self, now: float) -> bool:
        """Whether a run is to ask the store although slots pass on still: ``True`` once before each end of that."""
        if now < self.until - _ASKS_AHEAD or self._asked_before == self.until:
            return False
        self._asked_before = self.until
        return True

    def next_fence(self, now: float) -> int:
        """Return one that is higher than all that this process has seen."""
        with _lock:
            self._last = max(self._last + 1, self._ahead + int(now * 1_000_000))
            return self._last
