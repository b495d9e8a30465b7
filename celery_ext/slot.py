"""What a running task is told of the slot that its worker holds for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from slotline.pools import Holding, Slot

DELIVERY_KEY: Final = "slotline"
"""Where a request's ``delivery_info`` names its slot: it is about one delivery alone, so no retry inherits it."""

_FAILURE_KEY: Final = "slotline_failure"


@dataclass(frozen=True, slots=True)
class TaskSlot:
    """The slot of a running task. The worker's main process holds and renews it, and gives it back.

    Attributes:
        key: The pool's key.
        token: What the store knows the slot by.
        owner: The task's name and id, as operators see it.
        fence: A number that only grows within its pool; hand it to the resource that the pool protects. Of a task
            that counts in several pools, that of the first by name; each of its ``slots`` has its own.
        slots: The slot of each pool; of one pool, itself.
    """

    key: str
    token: str
    owner: str
    fence: int
    _slots: tuple[TaskSlot, ...] = ()

    @property
    def slots(self) -> tuple[TaskSlot, ...]:
        """See the class."""
        return self._slots or (self,)

    def slot_of(self, key: str) -> TaskSlot:
        """Return the slot of one pool.

        Raises:
            KeyError: None of the task's pools has this key.
        """
        for slot in self.slots:
            if slot.key == key:
                return slot
        raise KeyError(key)


def tell(request: Any, slot: Slot) -> None:
    """Have the process that will run ``request`` know of its slot."""
    together = {"slots": [_told(one) for one in slot.slots]} if isinstance(slot, Holding) else {}
    request.delivery_info[DELIVERY_KEY] = {**_told(slot), **together}


def slot_of(request: Any) -> TaskSlot | None:
    """Return the slot of a running request, ``None`` without one."""
    told = (request.delivery_info or {}).get(DELIVERY_KEY)
    if told is None:
        return None
    slots = tuple(TaskSlot(**one) for one in told.get("slots", ()))
    return TaskSlot(**{name: told[name] for name in ("key", "token", "owner", "fence")}, _slots=slots)


def _told(slot: Slot) -> dict[str, Any]:
    return {"key": slot.key, "token": slot.token, "owner": slot.owner, "fence": slot.fence}


def tell_failure(request: Any, failure: bytes) -> None:
    """Have the process that will run ``request`` know that the run it was waiting for has failed."""
    request.delivery_info[_FAILURE_KEY] = failure


def failure_of(request: Any) -> bytes | None:
    """Return how the run has failed that a running request was waiting for."""
    found: bytes | None = (request.delivery_info or {}).get(_FAILURE_KEY)
    return found
