"""Those who wait for a lease: coroutines and threads in one line."""

from __future__ import annotations

import asyncio
import threading
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from slotline.errors import LeaseError
from slotline.leases._mailbox import mailbox_of, settle

if TYPE_CHECKING:
    from slotline.leases._grants import Grant


class Waiter(ABC):
    """One caller in the line.

    Args:
        seconds: The life of the lease that it wants.
        owner: The label of that lease.

    Attributes:
        lease: What it was given, set before it is woken.
        error: Why it will not be given anything.
    """

    __slots__ = ("error", "grant", "owner", "seconds")

    def __init__(self, seconds: float, owner: str | None) -> None:
        self.seconds, self.owner = seconds, owner
        self.grant: Grant | None = None
        self.error: LeaseError | None = None

    @abstractmethod
    def wake(self) -> bool:
        """Have the caller look at ``lease`` and ``error``; ``False`` if it can no longer be reached."""


class LoopWaiter(Waiter):
    """A coroutine; made in its own loop's thread."""

    __slots__ = ("_mailbox", "_thread", "future")

    def __init__(self, seconds: float, owner: str | None, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(seconds, owner)
        self.future: asyncio.Future[None] = loop.create_future()
        self._mailbox = mailbox_of(loop)
        self._thread = threading.get_ident()

    def wake(self) -> bool:
        if threading.get_ident() == self._thread:
            if self.future.get_loop().is_closed():
                return False
            settle(self.future, None, None)
            return True
        return self._mailbox.post(self.future, None, None)


class ThreadWaiter(Waiter):
    """A thread that blocks."""

    __slots__ = ("_gate",)

    def __init__(self, seconds: float, owner: str | None) -> None:
        super().__init__(seconds, owner)
        self._gate = threading.Lock()
        self._gate.acquire()

    def wake(self) -> bool:
        self._gate.release()
        return True

    def wait(self, timeout: float | None) -> bool:
        """Block until woken; ``False`` after ``timeout`` seconds."""
        return self._gate.acquire(timeout=-1 if timeout is None else timeout)
