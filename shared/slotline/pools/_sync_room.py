"""The blocking faces of rooms and of what is taken from them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from slotline.pools._share import Partition, Weight
from slotline.steps import run_blocking

if TYPE_CHECKING:
    from slotline.pools.limit import Limit
    from slotline.pools.room import Room
    from slotline.pools.slot import Slot
    from slotline.pools.taken import Parked, Taken


class SyncRoom:
    """The blocking face of a :class:`Room`."""

    def __init__(self, room: Room) -> None:
        self._room = room

    def park(
        self,
        pool: Limit[Any],
        message: bytes,
        *,
        lane: str,
        owner: str | None = None,
        weight: Weight = 1,
        partition: Partition = None,
    ) -> Slot | Parked:
        """See :meth:`Room.park`."""
        shares = pool.shares_of(weight, partition)
        return run_blocking(self._room.parking(pool, message, lane, owner, shares))

    def take(self) -> Taken | None:
        """See :meth:`Room.take`."""
        return run_blocking(self._room.taking())

    def pass_on(self, pool: Limit[Any], slot: Slot) -> Taken | None:
        """See :meth:`Room.pass_on`."""
        return run_blocking(self._room.passing(pool, slot))


class SyncTaken:
    """The blocking face of a :class:`Taken`."""

    def __init__(self, taken: Taken) -> None:
        self._taken = taken

    def settle(self) -> None:
        """See :meth:`Taken.settle`."""
        run_blocking(self._taken.ending("done"))

    def give_back(self) -> None:
        """See :meth:`Taken.give_back`."""
        run_blocking(self._taken.ending("back"))
