"""One line of execution for the gate's decisions, whatever threads they come from.

The consumer hands over requests in its own thread, slots are granted in a listener's thread, and pools report the end
of a task in threads of theirs. All of them post here, and one thread at a time works through what was posted: the one
that the worker's kind of event loop allows.
"""

from __future__ import annotations

import contextlib
import os
import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from typing import Any

from celery.utils.log import get_logger

logger = get_logger(__name__)

Errand = tuple[Callable[..., None], tuple[Any, ...]]


class Mailbox(ABC):
    """A queue of errands, done one after the other and never one inside another.

    An errand that leads to another one, such as a finished task that makes room for the next, only posts it: the
    outermost loop does it, so that a thousand waiting tasks are no recursion.
    """

    def __init__(self) -> None:
        self._errands: deque[Errand] = deque()
        self._busy = threading.Lock()

    def do(self, errand: Callable[..., None], *args: Any) -> None:
        """Do an errand now; called where the worker itself hands over a request."""
        self._errands.append((errand, args))
        self.drain()

    def post(self, errand: Callable[..., None], *args: Any) -> None:
        """Have an errand done soon; called from any thread."""
        self._errands.append((errand, args))
        self.trip()

    @abstractmethod
    def trip(self) -> None:
        """Bring about a :meth:`drain` in a thread that may start tasks."""

    def drain(self) -> None:
        """Do what is in the box, unless another frame or thread is at it, which then does this as well."""
        while self._errands and self._busy.acquire(blocking=False):
            try:
                while True:
                    try:
                        errand, args = self._errands.popleft()
                    except IndexError:
                        break
                    try:
                        errand(*args)
                    except Exception:
                        logger.exception("Slotline: an errand of the gate failed")
            finally:
                self._busy.release()

    def register(self, hub: Any) -> None:  # noqa: B027 - only a box with a pipe has something to do
        """Take part in an event loop that the consumer has just made ready."""

    def close(self) -> None:  # noqa: B027 - only a box with a pipe has something to do
        """Give back what the box holds of the operating system."""


class HubMailbox(Mailbox):
    """For workers with an event loop: everything happens in its thread, which a pipe wakes.

    ``hub.call_soon`` alone wakes the loop only from kombu 5.7 on.
    """

    def __init__(self) -> None:
        super().__init__()
        self._home = threading.get_ident()
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._reader, False)
        os.set_blocking(self._writer, False)

    def register(self, hub: Any) -> None:
        """Have the loop's thread do the errands from now on."""
        self._home = threading.get_ident()
        hub.add_reader(self._reader, self._woken)
        self.drain()

    def trip(self) -> None:
        """Wake the loop, unless this is its thread."""
        if threading.get_ident() == self._home:
            self.drain()
        else:
            with contextlib.suppress(OSError):  # full: the loop is woken already; closed: nothing is left to do
                os.write(self._writer, b"!")

    def _woken(self, *_: Any) -> None:
        with contextlib.suppress(OSError):
            os.read(self._reader, 4096)
        self.drain()

    def close(self) -> None:
        """Close the pipe."""
        ends, self._reader, self._writer = (self._reader, self._writer), -1, -1
        for end in ends:
            with contextlib.suppress(OSError):
                os.close(end)


class AnywhereMailbox(Mailbox):
    """For thread and green pools without an event loop: whoever posts does it."""

    def trip(self) -> None:
        """Drain the box here."""
        self.drain()


class CallbackMailbox(Mailbox):
    """For pools without an event loop that may not start a task from every thread.

    Args:
        schedule: Has a function called in a thread that may.
        here: Whether the thread that made the box may, too: it does in solo, where the consumer's own thread runs
            the tasks.
    """

    def __init__(self, schedule: Callable[[Callable[[], None]], Any], *, here: bool) -> None:
        super().__init__()
        self._schedule = schedule
        self._here = threading.get_ident() if here else None

    def trip(self) -> None:
        """Drain the box here if this thread may, else have another one called."""
        if threading.get_ident() == self._here:
            self.drain()
        else:
            self._schedule(self.drain)


def mailbox_for(consumer: Any) -> Mailbox:
    """Return the kind of box that suits the consumer's pool and event loop."""
    if consumer.hub is not None:
        return HubMailbox()
    pool = consumer.pool
    kind = type(pool).__module__.rpartition(".")[2]
    if kind == "solo":
        # A task runs in the thread that starts it, and that must be the consumer's. Without an event loop it looks
        # for such calls every two seconds at the latest.
        return CallbackMailbox(consumer.call_soon, here=True)
    if getattr(pool, "uses_semaphore", False):
        # Starting a task blocks until a process is free; the pool's own threads are what frees it.
        return CallbackMailbox(lambda drain: consumer.timer.call_after(0, drain), here=False)
    return AnywhereMailbox()
