"""What another process gets of a slot that is sent to it."""

from __future__ import annotations

from typing import Any, Final

from slotline.pools.slot import Slot

_LIVE: Final = frozenset({"evicted", "expired", "expires_at", "forfeited", "is_held", "lost", "remaining"})


class SentSlot(Slot):
    """A slot, or a holding, in another process than the one that renews it.

    It tells who holds the slot and the fence, for the resource that the pool protects. Whether it is lost meanwhile is
    known only where it is renewed: asking here is an ``AttributeError``, since any answer could be wrong.

    Attributes:
        slots: The slot of each pool; of one pool, itself.
    """

    __slots__ = ("_slots",)

    def __init__(
        self, key: str, token: str, owner: str, fence: int, acquired_at: float, slots: tuple[Slot, ...]
    ) -> None:
        super().__init__(key, token, owner, fence, since=0.0, life=None, cap=None)
        self.acquired_at, self._slots = acquired_at, slots

    def __getattribute__(self, name: str) -> Any:
        if name in _LIVE:
            raise AttributeError(f"{name!r} of a slot is known only in the process that holds it, and not to this copy")
        return super().__getattribute__(name)

    @property
    def slots(self) -> tuple[Slot, ...]:
        """See the class."""
        return self._slots or (self,)

    def __repr__(self) -> str:
        return f"<SentSlot {self.token} of {', '.join(repr(slot.key) for slot in self.slots)}, fence {self.fence}>"
