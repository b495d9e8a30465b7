"""What a cache does while its store cannot be reached: say so once, and leave the store alone for a moment."""

from __future__ import annotations

import logging
import time

from slotline.errors import StoreUnavailableError

logger = logging.getLogger("slotline.caches")

PAUSE = 2.0
"""Seconds after a failed call, and between two tries, in which the store is not asked."""


_ANSWERED = ("OutOfMemoryError", "ReadOnlyError", "NoPermissionError", "ResponseError", "NoReplicasError")
"""How the reason of an error begins that a server which reads and answers has given."""


class Outage:
    """Whether the store answers, and whether it takes values, as far as this process knows.

    Args:
        name: What logs call the store.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._until = 0.0
        self._error: StoreUnavailableError | None = None
        self._refusing = False

    @property
    def going(self) -> bool:
        """Whether the last call was not answered."""
        return self._error is not None

    def current(self) -> StoreUnavailableError | None:
        """Return the last error while it is too early to try again."""
        return self._error if self._error is not None and time.monotonic() < self._until else None

    def held_back(self) -> StoreUnavailableError | None:
        """Return the last error, unless it is the caller's turn to try the store again: one caller's in a pause."""
        now = time.monotonic()
        if self._error is not None and now >= self._until:
            self._until = now + PAUSE  # a silent server would hold up the others, too
            return None
        return self._error

    def began(self, error: StoreUnavailableError) -> None:
        """Note a failed call; the first of an outage is logged."""
        if error.reason.startswith(_ANSWERED):
            # Full or read-only: what is there can still be read.
            if not self._refusing:
                self._refusing = True
                logger.warning("%s takes no values: %s", self._name, error)
            return
        if self._error is None:
            logger.warning("caching without %s until it answers again: %s", self._name, error)
        self._error, self._until = error, time.monotonic() + PAUSE

    def answered(self) -> None:
        """Note that the store has answered."""
        if self._error is not None:
            self._error = None
            logger.info("%s answers again", self._name)

    def took(self) -> None:
        """Note that the store has taken a value."""
        self.answered()
        if self._refusing:
            self._refusing = False
            logger.info("%s takes values again", self._name)
