"""The relay: a run's slot passes to the next run of the same process, where that takes it from nobody.

A limit that does not bind should cost next to nothing. While at most half of a pool is used, nobody waits for it, and
a process begins many runs a second, the slot of a short run that has ended well is kept for a moment, and the next run
of the same process takes it over without a word to the store. The store sees one holder whose slot comes back a little
later: there are never more holders than slots.
"""

from __future__ import annotations

import logging
import math
import os
import threading
import time
from collections import deque
from typing import Any
from weakref import WeakSet

from slotline.errors import StoreError
from slotline.metrics import _telling
from slotline.pools._tending import leave
from slotline.pools.limit import Limit
from slotline.pools.slot import SHORT, Slot
from slotline.stores.base import Command, Store

logger = logging.getLogger("slotline.pools")

RESTS = 0.2
"""Seconds for which a slot is kept for the next run, if it passes on for so long."""
LOOKS = 0.05
"""Seconds between two looks for what is to be sent back."""
_BUSY, _WITHIN = 5, 0.1
"""So many runs within so many seconds are many."""
_LINGERS = 2.0


class Relay:
    """Keeps the slots of runs that have ended for those that begin, for one user of pools; any thread may use it.

    A run that takes a slot over has an owner and a fence of its own. The store learns of them if the run lasts for a
    tenth of a second, and knows the predecessor until then. What a process keeps when it dies is free, as what it
    holds, within the heartbeat's lease.
    """

    def __init__(self) -> None:
        self._fresh()
        _relays.add(self)

    def _fresh(self) -> None:
        """Have nothing: at first, and in a forked child."""
        self._begun: deque[float] = deque(maxlen=_BUSY)
        self._kept: dict[Limit[Any], list[tuple[Slot, float]]] = {}
        self._over: list[tuple[Limit[Any], Slot]] = []
        self._passed: dict[str, tuple[Limit[Any], Slot, float]] = {}
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None

    def take(self, pool: Limit[Any], owner: str) -> Slot | None:
        """Return a slot for a run that needs a plain one of ``pool``; ``None``: none is kept here."""
        now = time.monotonic()
        self._begun.append(now)
        kept = self._kept.get(pool)
        if not kept:
            return None
        with self._lock:
            while kept:
                slot, _ = kept.pop()
                asks = slot.has_one_ask(now)
                if not asks and slot.pick_up(owner, now):
                    break
                self._over.append((pool, slot))
                if asks:
                    return None
            else:
                return None
            self._passed[slot.token] = pool, slot, now
        if (observer := _telling.observer) is not None:
            observer.decided(pool.pools[0], "admitted")
        return slot

    def keep(self, pool: Limit[Any], slot: Slot) -> bool:
        """Keep the slot of a run that has ended well, with all that it was needed for; ``False``: release it."""
        now = time.monotonic()
        busy = len(self._begun) == _BUSY and now - self._begun[0] < _WITHIN
        resting = slot.put_down(now) if busy else None
        if resting is None:
            return False
        if (observer := _telling.observer) is not None:
            observer.held(slot)
        with self._lock:
            self._kept.setdefault(pool, []).append((resting, now))
            if self._thread is not None or self._starts():
                return True
            ended = self._ended(math.inf)
        _release(ended)
        return True

    def _starts(self) -> bool:
        """Start the thread; ``False``: there can be none, as at the end of the process."""
        thread = threading.Thread(target=self._run, args=(self._closing,), name="slotline-relay", daemon=True)
        try:
            thread.start()
        except RuntimeError:
            return False
        self._thread = thread
        return True

    @property
    def is_open(self) -> bool:
        """Whether there is something to close."""
        return self._thread is not None

    def close(self) -> None:
        """Release what is kept."""
        with self._lock:
            thread, self._thread = self._thread, None
            self._closing.set()
            self._closing = threading.Event()
            ended = self._ended(math.inf)
        if thread is not None:
            thread.join()
        _release(ended)

    def _run(self, closing: threading.Event) -> None:
        used_at = time.monotonic()
        while not closing.wait(LOOKS):
            now = time.monotonic()
            with self._lock:
                if closing.is_set():
                    return
                ended, passed = self._ended(now), self._long(now - SHORT)
                if ended or self._kept or self._passed:
                    used_at = now
                elif now - used_at > _LINGERS:
                    self._thread = None
                    return
            _note(passed)
            _release(ended)

    def _ended(self, now: float) -> list[tuple[Limit[Any], Slot]]:
        """Keep nothing any more that has rested for long enough ``now``, or does not pass on."""
        ended, self._over = self._over, []
        for pool, slots in list(self._kept.items()):
            resting = []
            for slot, at in slots:
                if now - at < RESTS and slot.passes_on(now):
                    resting.append((slot, at))
                else:
                    ended.append((pool, slot))
            slots[:] = resting
            if not slots:
                del self._kept[pool]
        return ended

    def _long(self, taken_at: float) -> list[tuple[Limit[Any], Slot]]:
        """Return the slots whose runs go on, and have begun by ``taken_at``."""
        due = [entry for entry in self._passed.values() if entry[2] <= taken_at]
        for _, slot, _ in due:
            del self._passed[slot.token]
        return [(pool, slot) for pool, slot, _ in due if slot.is_held]


def _note(passed: list[tuple[Limit[Any], Slot]]) -> None:
    by_store: dict[Store, dict[str, Command]] = {}
    for pool, slot in passed:
        kept = slot._kept  # noqa: SLF001 - of this package
        if kept is not None:
            args = (*kept.renew.args[:2], slot.fence, slot.owner)
            by_store.setdefault(pool.store, {})[slot.token] = kept.renew._replace(args=args)
    for store, renewals in by_store.items():
        if store.keeper is not None:
            store.keeper.hasten(renewals)


def _release(ended: list[tuple[Limit[Any], Slot]]) -> None:
    by_store: dict[Store, list[tuple[Limit[Any], Command]]] = {}
    for pool, slot in ended:
        leave(pool.store, slot)
        by_store.setdefault(pool.store, []).append((pool, pool.release_of(slot)))
    for store, commands in by_store.items():
        try:
            replies = store.sync.execute_many([command for _, command in commands])
        except Exception as error:
            if not isinstance(error, StoreError):
                logger.exception("slots are released later")
            replies = [error] * len(commands)
        for (pool, command), reply in zip(commands, replies, strict=True):
            if isinstance(reply, Exception):
                store.settle(command, pool.patience)


_relays: WeakSet[Relay] = WeakSet()


def _after_fork() -> None:
    for relay in list(_relays):
        relay._fresh()  # noqa: SLF001 - of this module


os.register_at_fork(after_in_child=_after_fork)
