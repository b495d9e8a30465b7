"""Which holders of a pool of the memory store are to end for one who waits."""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from slotline.stores._memory_pools import PoolState


class Endings:
    """The holders that are to end, and what those who wait may have when they have ended.

    Args:
        pool: The pool.
    """

    def __init__(self, pool: PoolState) -> None:
        self._pool = pool
        self._by_partition = Counter[str]()
        for token in pool.evicted:
            self._add(token)

    def _add(self, token: str) -> None:
        held = self._pool.slots[token]
        self._by_partition[held.partition] += held.weight

    def _may_have(self, partition: str) -> float:
        pool = self._pool
        if pool.share is None or not partition:
            return math.inf
        return max(0, pool.share - pool.used_by.get(partition, 0) + self._by_partition[partition])

    def _asked_in(self, partition: str) -> int:
        places = self._pool.line.places(partition)
        return sum(waiting.weight for waiting in places.values() if self._pool.ever_fits(waiting))

    def _lacks(self, partition: str | None) -> bool:
        """Whether those who wait in a partition, or in all, ask for more than they may have."""
        pool = self._pool
        if partition is not None:
            return self._asked_in(partition) > self._may_have(partition)
        asked = sum(min(self._asked_in(name), self._may_have(name)) for name in pool.line.partitions())
        return asked > max(0, pool.max - pool.used + self._by_partition.total())

    def longest(self, weight: int, partition: str) -> list[str]:
        """Return the tokens of those that have held their slots longest, as many as one who waits in line needs.

        Args:
            weight: What it weighs.
            partition: Its partition; they are of that one, where it has all that it may have.
        """
        slots, chosen, freed = self._pool.slots, list[str](), 0
        staying = {token for token, held in slots.items() if not held.kept} - self._pool.evicted
        for only in (partition, None):
            for token in sorted(staying - set(chosen), key=lambda one: slots[one].fence):
                if freed >= weight or not self._lacks(only):
                    break
                if only in (None, slots[token].partition):
                    self._add(token)
                    chosen.append(token)
                    freed += slots[token].weight
        return chosen
