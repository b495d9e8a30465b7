"""A bound on how many things are inside, for coroutines and threads in one line."""

from __future__ import annotations

import asyncio
import threading
from collections import OrderedDict
from collections.abc import Callable

from slotline.leases._mailbox import mailbox_of


class Gate:
    """Lets a limited number of things in; callers that wait are served in the order in which they came.

    Args:
        limit: How many may be inside at a time.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._line: OrderedDict[_Caller, None] = OrderedDict()
        self._closed = False
        self.inside = 0

    def try_enter(self) -> bool:
        """Enter if there is room."""
        with self._lock:
            if self._closed or self.inside >= self._limit:
                return False
            self.inside += 1
            return True

    async def enter(self) -> bool:
        """Enter, waiting for room; ``False`` if the gate was closed."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        caller = _Caller(lambda: mailbox_of(loop).post(future, None, None))
        if self._stand(caller):
            try:
                await future
            except BaseException:
                self._leave_line(caller)
                raise
        return caller.entered

    def enter_blocking(self) -> bool:
        """Do the same in a thread."""
        woken = threading.Event()
        caller = _Caller(woken.set)
        if self._stand(caller):
            try:
                woken.wait()
            except BaseException:
                self._leave_line(caller)
                raise
        return caller.entered

    def leave(self, count: int = 1) -> None:
        """Let ``count`` things out, and as many of those who wait in."""
        woken = []
        with self._lock:
            self.inside -= count
            while self._line and self.inside < self._limit:
                caller, _ = self._line.popitem(last=False)
                caller.entered = True
                self.inside += 1
                woken.append(caller)
        for caller in woken:
            caller.wake()

    def close(self) -> None:
        """Turn away all who wait and all who come."""
        with self._lock:
            self._closed = True
            woken = list(self._line)
            self._line.clear()
        for caller in woken:
            caller.wake()

    def _stand(self, caller: _Caller) -> bool:
        with self._lock:
            if self._closed:
                return False
            if self.inside < self._limit:
                self.inside += 1
                caller.entered = True
                return False
            self._line[caller] = None
            return True

    def _leave_line(self, caller: _Caller) -> None:
        with self._lock:
            self._line.pop(caller, None)
        if caller.entered:
            self.leave()


class _Caller:
    __slots__ = ("entered", "wake")

    def __init__(self, wake: Callable[[], object]) -> None:
        self.wake = wake
        self.entered = False
