"""What a cache does while its store cannot be reached: say so once, and leave the store alone for a moment."""

from __future__ import annotations

import logging
import time

from slotline.errors import StoreError

logger = logging.getLogger("slotline.caches")

PAUSE = 2.0
"""Seconds after a failed call in which the store is not asked again."""


class Outage:
    """Whether the store answers, as far as this process knows.

    Args:
        name: What logs call the store.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._until = 0.0
        self._error: StoreError | None = None
        self._logged = False

    @property
    def going(self) -> bool:
        """Whether the last call failed."""
        return self._error is not None

    def current(self) -> StoreError | None:
        """Return the last error while it is too early to try again."""
        return self._error if self._error is not None and time.monotonic() < self._until else None

    def began(self, error: StoreError) -> None:
        """Note a failed call; the first of an outage is logged."""
        self._error, self._until = error, time.monotonic() + PAUSE
        if not self._logged:
            self._logged = True
            logger.warning("caching without %s until it answers again: %s", self._name, error)

    def over(self) -> None:
        """Note that the store has answered."""
        if self._error is not None:
            self._error, self._logged = None, False
            logger.info("%s answers again", self._name)
