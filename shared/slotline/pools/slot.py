"""A slot: the right to run, held by a token until it is released, expires or is lost."""

from __future__ import annotations

import time

from slotline.pools._share import SINGLE, Shares
from slotline.stores.keeper import Kept


class Slot:
    """One of a pool's slots.

    Attributes:
        key: The pool's key.
        token: What the store knows the slot by.
        owner: Who holds it, for people.
        fence: A number that only grows within its pool; hand it to the resource that the pool protects, which can
            then refuse a holder whose slot has passed to another.
        acquired_at: When it was taken, in seconds since the epoch.
    """

    __slots__ = (
        "_capped_at", "_deadline", "_ended", "_evicted", "_kept", "acquired_at", "fence", "key", "owner", "token",
    )  # fmt: skip

    def __init__(
        self, key: str, token: str, owner: str, fence: int, *, since: float, life: float | None, cap: float | None
    ) -> None:
        self.key, self.token, self.owner, self.fence = key, token, owner, fence
        self.acquired_at = time.time()
        self._evicted = False
        self._deadline = None if life is None else since + life
        self._capped_at = None if cap is None else since + cap
        self._kept: Kept | None = None
        self._ended: bool | None = None  # None: held; False: released; True: lost

    @property
    def slots(self) -> tuple[Slot, ...]:
        """The slot of each pool: this one, or those of a :class:`Holding`."""
        return (self,)

    @property
    def shares(self) -> Shares:
        """What it holds of each pool, where a release has to say so."""
        return SINGLE

    @property
    def expires_at(self) -> float | None:
        """When it is lost unless it is renewed, in seconds since the epoch; ``None``: never.

        A holder counts its slot as lost a sixth of the lease before anybody else can have it.
        """
        deadline = self._until()
        return None if deadline is None else time.time() + deadline - time.monotonic()

    @property
    def evicted(self) -> bool:
        """Whether its holder was told to end, by :meth:`Pool.evict` here or anywhere; it counts until then."""
        return self._evicted

    @property
    def lost(self) -> bool:
        """Whether it ended before it was released; by this process's own clock, no store is asked."""
        if self._ended is not None:
            return self._ended
        deadline = self._until()
        return deadline is not None and time.monotonic() >= deadline

    @property
    def expired(self) -> bool:
        """Whether its pool's ``slot_exp`` has passed."""
        return self._capped_at is not None and time.monotonic() >= self._capped_at

    @property
    def remaining(self) -> float | None:
        """Seconds until it is lost without a renewal, at least 0; ``None``: for ever."""
        deadline = self._until()
        return None if deadline is None else max(0.0, deadline - time.monotonic())

    @property
    def forfeited(self) -> bool:
        """Whether its holder must end: it is lost, and not by ``slot_exp``, or was evicted."""
        return self.evicted or (self.lost and not self._ended_by_cap)

    @property
    def _ended_by_cap(self) -> bool:
        # The last lease of a slot is as short as its slot_exp leaves it: its end is no loss, unless the store says so.
        kept = self._kept
        return self.expired or (self._capped_at is not None and kept is not None and kept.shortened and not kept.gone)

    def _until(self) -> float | None:
        return self._deadline if self._kept is None else self._kept.deadline

    def __repr__(self) -> str:
        state = "lost" if self.lost else "released" if self._ended is False else "held"
        return f"<Slot {self.token} of {self.key!r}, fence {self.fence}, {state}>"
