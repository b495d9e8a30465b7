"""The places that ``waitforslot`` and ``putlocks`` wait for."""

from __future__ import annotations

import threading


class Places:
    """A semaphore whose size follows the number of processes and that can be opened for good."""

    def __init__(self, size: int) -> None:
        self._condition = threading.Condition()
        self._size, self._taken, self._open = size, 0, False

    def acquire(self, blocking: bool = True) -> bool:  # noqa: FBT001, FBT002 - the signature of every semaphore
        """Take a place, waiting for one; returns whether it was taken."""
        with self._condition:
            if blocking:
                self._condition.wait_for(lambda: self._open or self._taken < self._size)
            elif not self._open and self._taken >= self._size:
                return False
            self._taken += 1
            return True

    def release(self) -> None:
        """Give a place back."""
        with self._condition:
            self._taken = max(0, self._taken - 1)
            self._condition.notify()

    def grow(self) -> None:
        """Add a place."""
        with self._condition:
            self._size += 1
            self._condition.notify()

    def shrink(self) -> None:
        """Remove a place; whoever holds it keeps it until it is done."""
        with self._condition:
            self._size -= 1

    def clear(self) -> None:
        """Let everybody through from now on."""
        with self._condition:
            self._open = True
            self._condition.notify_all()
