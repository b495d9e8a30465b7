"""A readiness loop on epoll: what can be read, and a way for other threads to be heard."""

from __future__ import annotations

import os
import select
from collections.abc import Callable
from typing import Final

_LONGEST: Final = 86_400.0
"""Seconds of a single wait; the system takes no number that is much larger, and a deadline may be."""


class Loop:
    """Calls what was registered for each descriptor that can be read; it never polls."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._callbacks: dict[int, Callable[[], None]] = {}
        self._wake_read, self._wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._closed = False
        self.watch(self._wake_read, self._woken)

    def fileno(self) -> int:
        """Return a descriptor that can be read whenever :meth:`run` has something to do."""
        return self._epoll.fileno()

    def watch(self, fd: int, callback: Callable[[], None]) -> None:
        """Call ``callback`` whenever ``fd`` can be read."""
        self._callbacks[fd] = callback
        self._epoll.register(fd, select.EPOLLIN)

    def pause(self, fd: int) -> None:
        """Look away from ``fd``, which stays known."""
        self._epoll.modify(fd, 0)

    def resume(self, fd: int) -> None:
        """Look at ``fd`` again."""
        self._epoll.modify(fd, select.EPOLLIN)

    def unwatch(self, fd: int) -> None:
        """Forget ``fd``; one that is not watched is fine."""
        if self._callbacks.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def run(self, timeout: float | None) -> None:
        """Wait until something can be read, at most ``timeout`` seconds, and make the calls for it."""
        for fd, _ in self._epoll.poll(timeout if timeout is None else min(timeout, _LONGEST)):
            callback = self._callbacks.get(fd)
            if callback is not None:
                callback()

    def wake(self) -> None:
        """End the wait of :meth:`run`, from any thread."""
        try:
            os.write(self._wake_write, b"w")
        except OSError:  # the pipe is full, so the loop is awake; or it is closed and there is nothing left to wake
            return

    def _woken(self) -> None:
        try:
            os.read(self._wake_read, 4096)
        except BlockingIOError:
            return

    def close(self) -> None:
        """Close the loop's own descriptors; closing twice is harmless."""
        if not self._closed:
            self._closed = True
            self._callbacks.clear()
            self._epoll.close()
            write, self._wake_write = self._wake_write, -1
            os.close(self._wake_read)
            os.close(write)
