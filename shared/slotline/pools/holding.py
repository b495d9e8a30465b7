"""A holding: one slot of each of several pools, held together."""

from __future__ import annotations

import time

from slotline.pools._share import Shares
from slotline.pools.slot import Slot


class Holding(Slot):
    """The slots that :class:`Limits` gave: whoever loses one of them has lost the holding.

    It has all that a slot has. ``lost``, ``evicted``, ``forfeited`` and ``expired`` say whether that is true of any of
    them, ``expires_at`` and ``remaining`` are those of the first to end, and ``fence`` is that of the first pool.

    Attributes:
        slots: The slot of each pool, in the order of the pools; each has its pool's own fence.
    """

    __slots__ = ("_shares", "_slots")

    def __init__(self, key: str, token: str, owner: str, slots: tuple[Slot, ...], shares: Shares) -> None:
        self.key, self.token, self.owner, self.fence = key, token, owner, slots[0].fence
        self.acquired_at = time.time()
        self._slots, self._shares, self._origin = slots, shares, None

    @property
    def slots(self) -> tuple[Slot, ...]:
        """See the class."""
        return self._slots

    @property
    def shares(self) -> Shares:
        """What it holds of each pool."""
        return self._shares

    @property
    def evicted(self) -> bool:
        """Whether its holder was told to end."""
        return any(slot.evicted for slot in self._slots)

    @property
    def expires_at(self) -> float | None:
        """When the first of the slots is lost unless it is renewed, in seconds since the epoch; ``None``: never."""
        remaining = self.remaining
        return None if remaining is None else time.time() + remaining

    @property
    def lost(self) -> bool:
        """Whether one of the slots ended before it was released."""
        return any(slot.lost for slot in self._slots)

    @property
    def expired(self) -> bool:
        """Whether the ``slot_exp`` of one of the pools has passed."""
        return any(slot.expired for slot in self._slots)

    @property
    def remaining(self) -> float | None:
        """Seconds until the first of the slots is lost without a renewal, at least 0; ``None``: for ever."""
        return min((slot.remaining for slot in self._slots if slot.remaining is not None), default=None)

    @property
    def forfeited(self) -> bool:
        """Whether its holder must end: one of the slots is lost, and not by ``slot_exp``, or was evicted."""
        return any(slot.forfeited for slot in self._slots)

    def __repr__(self) -> str:
        return f"<Holding {self.token} of {', '.join(map(repr, self._slots))}>"
