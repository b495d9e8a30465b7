"""Between its grant and its release a slot is tended: renewed, and its holder told when it is lost or is to end."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from weakref import WeakKeyDictionary

from slotline.metrics import _telling
from slotline.pools._share import Share
from slotline.pools._tokens import is_of_this_process, new_token
from slotline.pools._wire import milliseconds
from slotline.pools.slot import Slot
from slotline.steps import Call, Sleep, Steps
from slotline.stores.base import Command, Store
from slotline.stores.wakeups import Wakeups

logger = logging.getLogger("slotline.pools")

OnLost = Callable[[Slot], None]
LOOKS_FOR_RESTING = 0.05
"""Seconds between two looks at a pool of which a slot may only rest; it is given back about then."""


def tend(
    store: Store,
    keys: tuple[bytes, ...],
    slot: Slot,
    life: float | None,
    *,
    since: float,
    lease: float,
    on_lost: OnLost | None,
) -> None:
    """Renew a slot that was granted for ``life`` seconds, and call ``on_lost`` when its holder must end."""
    tending = slot._tending = Tending(store, keys, slot, on_lost)  # noqa: SLF001 - of this package
    if store.keeper is not None and life is not None:
        renew = Command("pool_renew", keys, (slot.token, milliseconds(lease)))
        slot._kept = store.keeper.keep(  # noqa: SLF001 - of this package
            slot.token, renew, life, since, tending.lost, work=lease, on_evict=tending.evicted
        )
    if on_lost is not None:
        evictions_on(store).watch(store, slot.token, tending.evicted)


class Tending:
    """What a slot's holder is told, in whatever thread.

    Attributes:
        store: Where the slot is kept, whichever store has been configured since.
        keys: The keys of its pool there.
        slot: The slot; ``None`` between two runs of this process that have it one after the other, see ``Relay``.
        spoilt: It was lost, or is to end, while nobody had it.
        turn: Held while that is decided: whoever has it then is told.
    """

    __slots__ = ("_on_lost", "keys", "slot", "spoilt", "store", "turn")

    def __init__(self, store: Store, keys: tuple[bytes, ...], slot: Slot, on_lost: OnLost | None) -> None:
        self.store, self.keys, self._on_lost = store, keys, on_lost
        self.slot: Slot | None = slot
        self.spoilt = False
        self.turn = threading.Lock()

    @property
    def is_watched(self) -> bool:
        """Whether somebody hears at once that its holder is to end."""
        return self._on_lost is not None

    def lost(self) -> None:
        """Its lease has ended, or the store has said so."""
        with self.turn:
            slot = self.slot
            if slot is None:
                self.spoilt = True
                return
            if (observer := _telling.observer) is not None:
                observer.given_up(slot)
            slot._ended = True  # noqa: SLF001 - of this package
        evictions_on(self.store).forget(slot.token)
        if slot._ended_by_cap:  # noqa: SLF001 - of this package
            logger.info("slot %s of pool %r no longer counts: its slot_exp has passed", slot.token, slot.key)
            return
        logger.warning("slot %s of pool %r, held by %s, is lost", slot.token, slot.key, slot.owner)
        if self._on_lost is not None and not slot.evicted:  # then it was told already
            self._on_lost(slot)

    def evicted(self, fence: int = 0) -> bool:
        """Its holder is to end, that of ``fence`` if it is known; return whether the slot is not another's by now."""
        with self.turn:
            slot = self.slot
            if slot is None:
                self.spoilt = True
                return True
            if fence not in (0, slot.fence):
                return False
            if slot.evicted or slot._ended is not None:  # noqa: SLF001 - of this package
                return True
            slot._evicted = True  # noqa: SLF001 - of this package
        logger.warning("slot %s of pool %r, held by %s, is evicted", slot.token, slot.key, slot.owner)
        if (observer := _telling.observer) is not None:
            observer.reclaimed("evicted")
        if self._on_lost is not None:
            self._on_lost(slot)
        return True


def leave(store: Store, slot: Slot) -> bool:
    """Tend a slot no more, since it is released; ``False``: it is not its holder's any more, but perhaps another's."""
    tending = slot._tending  # noqa: SLF001 - of this package
    if tending is not None:
        if not is_of_this_process(slot.token):  # a forked child gives nothing back: its parent still has it
            return False
        store = tending.store
        with tending.turn:
            if slot._ended is None:  # noqa: SLF001 - of this package
                slot._ended = slot.lost  # noqa: SLF001 - of this package
    if slot.was_put_down:
        return False
    if store.keeper is not None:
        store.keeper.drop(slot.token)
    if tending is not None and tending.is_watched:
        evictions_on(store).forget(slot.token)
    return True


class Evictions:
    """The slots of this process, on one store, whose holders can be told to end."""

    def __init__(self) -> None:
        self._told: dict[str, Callable[[int], bool]] = {}
        self._hub: Wakeups | None = None

    def watch(self, store: Store, token: str, tell: Callable[[int], bool]) -> None:
        """Call ``tell`` with the fence, in any thread, when a holder of ``token`` is to end, until it returns true."""
        self._told[token] = tell
        self.listen(store)

    def forget(self, token: str) -> None:
        """Its slot was released or lost."""
        self._told.pop(token, None)

    def listen(self, store: Store) -> None:
        """Hear what is said elsewhere, as soon as the process has a reason to listen at all.

        One that has none learns it with its next renewal.
        """
        hub = store.wakeups
        if self._hub is not hub:  # at first, and after the store was closed
            self._hub = hub
            hub.join(_channel(store), self.heard)

    def heard(self, message: bytes) -> None:
        """Tell a holder, if it is one of this process."""
        if not message:  # some may have been lost: the next renewal says so
            return
        token, fence = message.decode().split(" ")
        tell = self._told.get(token)
        if tell is not None and tell(int(fence)):
            self.forget(token)


_evictions: WeakKeyDictionary[Store, Evictions] = WeakKeyDictionary()
os.register_at_fork(after_in_child=_evictions.clear)  # a child holds nothing of what its parent does


def evictions_on(store: Store) -> Evictions:
    """Return those of this process that hold slots on ``store``."""
    return _evictions.get(store) or _evictions.setdefault(store, Evictions())


def evicting(
    store: Store, keys: tuple[bytes, ...], token: str | None, share: Share, fence: int | None
) -> Steps[str | None]:
    """Tell a holder to end, ``None`` for the longest ones, which one who waits for ``share`` needs; return a token."""
    named = "" if fence is None else fence
    evict = Command("pool_evict", keys, (token or "", _channel(store), *share, named, new_token()))
    resting_ms, *marked = yield Call(store, evict)
    while resting_ms:
        yield Sleep(min(resting_ms / 1000, LOOKS_FOR_RESTING))
        resting_ms, *marked = yield Call(store, evict)
    for told in marked:
        evictions_on(store).heard(told)  # this process need not wait for the message
    return marked[0].decode().split(" ")[0] if marked else None


def _channel(store: Store) -> str:
    return f"{store.prefix}:evict"
