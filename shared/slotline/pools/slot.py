"""A slot: the right to run, held by a token until it is released, expires or is lost."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, NamedTuple

from slotline.pools._share import SINGLE, Shares
from slotline.stores.keeper import Kept

if TYPE_CHECKING:
    from slotline.pools._passing import Passing
    from slotline.pools._tending import Tending


SHORT = 0.1
"""Seconds that a run has lasted at the most whose slot passes on: a longer one does not notice two calls."""
_LASTS = 2.0
"""Seconds from its grant for which one slot passes on: for so long the store names a run of before."""
_PART_OF_CAP = 1 / 20
"""The part of ``slot_exp``, which is counted from the grant, for which a slot passes on at the most."""


class Origin(NamedTuple):
    """What the store has granted that may pass on.

    Attributes:
        fence: The fence that the store gave.
        passing: What the process knows of the pool.
        until: Until when it may at the most.
    """

    fence: int
    passing: Passing
    until: float

    def is_over(self, now: float) -> bool:
        """Whether it may not pass on ``now``."""
        return now >= self.until or now >= self.passing.until


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
        "_began", "_capped_at", "_deadline", "_ended", "_evicted", "_kept", "_origin", "_tending",
        "acquired_at", "fence", "key", "owner", "token",
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
        self._origin: Origin | None = None
        self._began = 0.0  # its holder's time, where it may pass on
        self._tending: Tending | None = None
        self._ended: bool | None = None  # None: held; False: released; True: lost

    @property
    def slots(self) -> tuple[Slot, ...]:
        """The slot of each pool: this one, or those of a :class:`Holding`."""
        return (self,)

    def slot_of(self, key: str) -> Slot:
        """Return the slot of one pool.

        Raises:
            KeyError: None of the pools has this key.
        """
        for slot in self.slots:
            if slot.key == key:
                return slot
        raise KeyError(key)

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
        return self._ended if self._ended is not None else not self._is_held_at(time.monotonic())

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
        return self._evicted or (self.lost and not self._ended_by_cap)

    @property
    def _ended_by_cap(self) -> bool:
        # The last lease of a slot is as short as its slot_exp leaves it: its end is no loss, unless the store says so.
        kept = self._kept
        return self.expired or (self._capped_at is not None and kept is not None and kept.shortened and not kept.gone)

    # For a Relay, which passes slots from one holder to the next.

    @property
    def is_held(self) -> bool:
        """Whether it was neither released nor lost."""
        return self._is_held_at(time.monotonic())

    def may_pass_on(self, passing: Passing, since: float, now: float, cap: float | None) -> None:
        """Note that the store has granted it with ``slot_exp`` ``cap``, asked at ``since``, and that nobody waits."""
        until = since + (_LASTS if cap is None else min(_LASTS, cap * _PART_OF_CAP))
        self._origin, self._began = Origin(self.fence, passing, until), now

    def put_down(self, now: float) -> Slot | None:
        """End its holder's time, but not the slot, and return that; ``None``: it may not pass on, or no longer."""
        origin = self._origin
        if origin is None or now - self._began > SHORT or origin.is_over(now) or (tending := self._tending) is None:
            return None
        with tending.turn:
            if self._evicted or not self._is_held_at(now):
                return None
            self._ended, self._tending, tending.slot = False, None, None
        resting: Slot = Slot.__new__(Slot)
        resting.key, resting.token, resting.owner, resting.fence = self.key, self.token, self.owner, self.fence
        resting.acquired_at, resting._evicted, resting._ended = self.acquired_at, False, None
        resting._kept, resting._deadline, resting._capped_at = self._kept, self._deadline, self._capped_at
        resting._origin, resting._tending = origin, tending
        return resting

    def passes_on(self, now: float) -> bool:
        """Whether it may pass on, if it was put down and has not ended since."""
        return self._origin is not None and not self._origin.is_over(now)

    def has_one_ask(self, now: float) -> bool:
        """See :meth:`Passing.has_one_ask`."""
        return self._origin is not None and self._origin.passing.has_one_ask(now)

    def pick_up(self, owner: str, now: float) -> bool:
        """Begin a holder's time with what was put down; ``False``: it has ended since, or is to end."""
        origin, tending = self._origin, self._tending
        if origin is None or tending is None or origin.is_over(now):
            return False
        with tending.turn:
            if tending.spoilt or not self._is_held_at(now):
                return False
            self.owner, self.acquired_at, self.fence = owner, time.time(), origin.passing.next_fence(now)
            self._began = now
            tending.slot = self
        return True

    @property
    def was_put_down(self) -> bool:
        """Whether it is its holder's no more, but perhaps another's."""
        return self._ended is False and self._tending is None

    @property
    def passed_on(self) -> bool:
        """Whether its holder is another than the store's first."""
        return self._origin is not None and self._origin.fence != self.fence

    def _until(self) -> float | None:
        return self._deadline if self._kept is None else self._kept.deadline

    def _is_held_at(self, now: float) -> bool:
        return self._ended is None and ((deadline := self._until()) is None or now < deadline)

    def __reduce__(self) -> tuple[Any, ...]:
        from slotline.pools.sent import SentSlot  # noqa: PLC0415 - it is a slot itself

        slots = () if self.slots == (self,) else self.slots
        return SentSlot, (self.key, self.token, self.owner, self.fence, self.acquired_at, slots)

    def __repr__(self) -> str:
        state = "lost" if self.lost else "released" if self._ended is False else "held"
        return f"<Slot {self.token} of {self.key!r}, fence {self.fence}, {state}>"
