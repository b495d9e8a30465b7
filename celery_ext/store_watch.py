"""A store that is away is noticed once, and does not stop the worker again and again."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, TypeVar

from celery.utils.log import get_logger

from slotline.errors import StoreError, StoreUnavailableError
from slotline.pools import Limit, Slot
from slotline.stores import Command, Store

logger = get_logger(__name__)
T = TypeVar("T")

PAUSE = 0.5
"""Seconds between two tries to reach a store that is away."""


class StoreWatch:
    """Asks a store for the gate, whose thread must not wait for one that does not answer.

    The first question that fails takes the time of the store's own retries. From then on questions fail at once and
    releases are put by, while a thread of its own looks for the store, until that answers again, and is heard again by
    those who wait: until then a question that needs that would fail, and the store be taken to be away once more.

    Args:
        store: The store.
        on_back: Called in that thread when the store is back.
    """

    def __init__(self, store: Store, on_back: Callable[[], None]) -> None:
        self.store = store
        self._on_back = on_back
        self._lock = threading.Lock()
        self._away = False
        self._owed: list[tuple[Limit[Any], Slot]] = []
        self._ended = threading.Event()

    def ask(self, question: Callable[[], T]) -> T:
        """Ask the store.

        Raises:
            StoreUnavailableError: It is away.
        """
        if self._away:
            raise StoreUnavailableError(self.store.name, "it did not answer a moment ago")
        try:
            return question()
        except StoreUnavailableError:
            self._lost()
            raise

    def release(self, pool: Limit[Any], slot: Slot) -> None:
        """Give a slot back, now or when the store is back."""
        self.release_by(lambda: pool.sync.release(slot), pool, slot)

    def release_by(self, question: Callable[[], T], pool: Limit[Any], slot: Slot) -> T | None:
        """Give a slot back by a question that does this, too, now or when the store is back.

        Returns:
            The answer; ``None`` if there is none.
        """
        if not self._away:
            try:
                return self.ask(question)
            except StoreUnavailableError as error:
                logger.warning("slot %s of pool %r is given back later: %s", slot.token, slot.key, error)
            except StoreError as error:
                logger.warning("slot %s of pool %r ends by its lease: %s", slot.token, slot.key, error)
                return None
        with self._lock:
            if self._away:
                self._owed.append((pool, slot))
                return None
        if not self._ended.is_set():
            self.release(pool, slot)  # the store came back just now
        return None

    def close(self) -> None:
        """Look for the store no more."""
        self._ended.set()

    def _lost(self) -> None:
        with self._lock:
            if self._away or self._ended.is_set():
                return
            self._away = True
        logger.warning("the store %s is away; limited tasks go by slotline_on_store_error", self.store.name)
        threading.Thread(target=self._look, name="slotline-store-watch", daemon=True).start()

    def _look(self) -> None:
        while not self._ended.wait(PAUSE):
            try:
                self.store.sync.execute(Command("PING", ()))
                self.store.wakeups.hasten()
                self.store.wakeups.listen_blocking()
            except StoreError:
                continue
            with self._lock:
                owed, self._owed, self._away = self._owed, [], False
            logger.warning("the store %s is back", self.store.name)
            for pool, slot in owed:
                self.release(pool, slot)
            self._on_back()
            return
