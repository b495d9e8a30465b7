"""Hearing what other processes set and removed, so that copies of it in this process's memory go."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING
from weakref import WeakSet

if TYPE_CHECKING:
    from collections.abc import Callable

    from slotline.stores import RedisStore
    from slotline.stores._redis_wakeups import RedisWakeups


class Announcements:
    """Listens on one channel, from the first :meth:`start` to :meth:`close`, anew in a forked child.

    Args:
        store: Where.
        channel: The channel.
        on_message: Called with each message, in a thread.
        on_lost: Called when messages may have been missed.
    """

    def __init__(
        self, store: RedisStore, channel: str, on_message: Callable[[bytes], None], on_lost: Callable[[], None]
    ) -> None:
        self._store = store
        self._channel = channel
        self._on_message = on_message
        self._on_lost = on_lost
        self._fresh()
        _all.add(self)

    def _fresh(self) -> None:
        self._lock = threading.Lock()
        self._ear: RedisWakeups | None = None
        self.heard = False
        """Whether every message reaches this process now."""

    def start(self) -> None:
        """Listen, unless this process does already."""
        if self._ear is not None:
            return
        with self._lock:
            if self._ear is None:
                self._ear = self._store.listener(self._channel, self._take)
                self._ear.on_lost = self._lose
                try:
                    self._ear.listening()
                except RuntimeError:  # there can be no thread now: whoever comes next tries again
                    self._ear = None
                    raise

    def close(self) -> None:
        """Listen no more."""
        with self._lock:
            ear, self._ear = self._ear, None
        if ear is not None:
            ear.close()
        self._lose()

    def _take(self, message: bytes) -> None:
        if message:
            self._on_message(message)
            return
        self._on_lost()
        ear = self._ear
        self.heard = ear is not None and ear.is_heard

    def _lose(self) -> None:
        self.heard = False
        self._on_lost()


_all: WeakSet[Announcements] = WeakSet()


def _after_fork() -> None:
    for announcements in list(_all):
        announcements._fresh()  # noqa: SLF001 - this module's own


os.register_at_fork(after_in_child=_after_fork)
