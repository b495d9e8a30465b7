"""The one background thread of a manager: it sleeps until something is due."""

from __future__ import annotations

import logging
import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from slotline.leases._core import LeaseCore
    from slotline.leases._sizing import Sizing


class Checker:
    """Warns of expired leases, revokes those past their grace, and keeps the number of executors right.

    Args:
        core: The manager's books.
        sizing: The number of executors there should be.
        interval: Seconds between two looks when nothing else is due.
        name: The thread's name.
        logger: Gets a warning for each lease that expired.
    """

    def __init__(self, core: LeaseCore, sizing: Sizing, *, interval: float, name: str, logger: logging.Logger) -> None:
        self._core, self._sizing, self._interval, self._logger = core, sizing, interval, logger
        self._name = name
        self._thread: threading.Thread | None = None
        self._resize_due = 0.0
        self._stopping = False

    def start(self) -> None:
        """Start the thread."""
        self._stopping = False
        self._resize_due = self._core.next_check = time.monotonic() + self._interval
        self._thread = threading.Thread(target=self._loop, name=f"{self._name}-checker", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread and wait for it."""
        with self._core.lock:
            self._stopping = True
            self._core.changed.notify_all()
        if self._thread is not None:
            self._thread.join()

    def resize_now(self) -> None:
        """Have the number of executors looked at without delay."""
        with self._core.lock:
            self._resize_due = self._core.next_check = 0.0
            self._core.changed.notify_all()

    def _loop(self) -> None:
        core = self._core
        while True:
            with core.lock:
                while not self._stopping and (left := core.next_check - time.monotonic()) > 0:
                    core.changed.wait(min(left, threading.TIMEOUT_MAX))
                if self._stopping:
                    return
                resize = self._resize_due <= time.monotonic()
                if resize:
                    self._resize_due = time.monotonic() + self._interval
            try:
                if resize:
                    self._sizing.apply(core)
                self._expire()
            except Exception:
                self._logger.exception("A look at the leases failed; the next one follows.")
            with core.lock:
                core.next_check = min([self._resize_due, *(grant.due for grant in core.leases.values())])

    def _expire(self) -> None:
        core, now = self._core, time.monotonic()
        with core.lock:
            over = [grant for grant in core.leases.values() if grant.hard_expires_at <= now]
            soft = [
                grant
                for grant in core.leases.values()
                if grant.soft_expires_at <= now < grant.hard_expires_at and not grant.warned
            ]
            for grant in soft:
                grant.warned = True
        for grant in soft:
            self._logger.warning(
                "%s expired after %g s; it will be revoked in %g s unless it is renewed or released.",
                grant.described(),
                grant.lease_seconds,
                grant.hard_expires_at - now,
            )
        for grant in over:
            core.revoker.begin(grant, f"expired {grant.lease_seconds + core.grace:g} s after it was granted", "overdue")
