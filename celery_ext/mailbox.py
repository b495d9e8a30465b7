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

    def do_here(self, errand: Callable[..., None], *args: Any) -> None:
        """Have an errand that suits any thread done soon, and by this one where that is faster."""
        self.post(errand, *args)

    def drain(self) -> None:
        """Do what is in the box, unless another frame or thread is at it, which then does this as well."""
        while self._errands and self._busy.acquire(blocking=False):
            try:
                self._do_all()
            finally:
                self._busy.release()

    def _do_all(self) -> None:
        while True:
            try:
                errand, args = self._errands.popleft()
            except IndexError:
                return
            attempt(errand, *args)

    def wake(self) -> None:  # noqa: B027 - only a box with a pipe has something to do
        """Have the event loop go round once more before it waits: there is something that it does only then."""

    def register(self, hub: Any) -> None:  # noqa: B027 - only a box with a pipe has something to do
        """Take part in an event loop that the consumer has just made ready."""

    def close(self) -> None:  # noqa: B027 - only a box with a pipe has something to do
        """Give back what the box holds of the operating system."""


def attempt(errand: Callable[..., None], *args: Any) -> None:
    """Do an errand inside another one, which goes on if it fails."""
    try:
        errand(*args)
    except Exception:
        logger.exception("Slotline: an errand of the gate failed")


class HubMailbox(Mailbox):
    """For workers with an event loop: everything happens in its thread, which a pipe wakes, but for :meth:`do_here`.

    ``hub.call_soon`` alone wakes the loop only from kombu 5.7 on, and acknowledgements come to it by that.
    """

    def __init__(self) -> None:
        super().__init__()
        self._home = threading.get_ident()
        self._at_it = False
        self._hears_calls = True
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._reader, False)
        os.set_blocking(self._writer, False)

    def register(self, hub: Any) -> None:
        """Have the loop's thread do the errands from now on."""
        self._home = threading.get_ident()
        self._hears_calls = hasattr(hub, "_waker")
        hub.add_reader(self._reader, self._woken)
        self.drain()

    def drain(self) -> None:
        """Do what is in the box; one errand that another thread is doing is waited for, as if it were in the box."""
        if threading.get_ident() != self._home:
            super().drain()
        elif not self._at_it:
            self._at_it = True
            try:
                while self._errands:
                    with self._busy:
                        self._do_all()
            finally:
                self._at_it = False

    def do_here(self, errand: Callable[..., None], *args: Any) -> None:
        """Do an errand in this thread if no other is being done: two changes of threads fewer."""
        if threading.get_ident() == self._home or not self._busy.acquire(blocking=False):
            self.post(errand, *args)
            return
        try:
            attempt(errand, *args)
        finally:
            self._busy.release()
        if self._errands or not self._hears_calls:
            self.wake()

    def trip(self) -> None:
        """Wake the loop, unless this is its thread."""
        if threading.get_ident() == self._home:
            self.drain()
        else:
            self.wake()

    def wake(self) -> None:
        """Make the loop's next wait a short one."""
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
    """For thread pools without an event loop: whoever posts does it."""

    def trip(self) -> None:
        """Drain the box here."""
        self.drain()


class GreenMailbox(Mailbox):
    """For green pools: a greenlet of no pool does what is posted.

    Starting a task blocks there until the pool has room, and the greenlet that reports the end of a task leaves room
    only when it has ended: it may not wait.

    Args:
        spawn: Has a function called in a new greenlet.
    """

    def __init__(self, spawn: Callable[[Callable[[], None]], Any]) -> None:
        super().__init__()
        self._spawn = spawn

    def trip(self) -> None:
        """Drain the box in a greenlet of its own."""
        self._spawn(self.drain)


class SoloMailbox(Mailbox):
    """For solo workers without an event loop, where the consumer's own thread runs the tasks.

    Args:
        call_soon: Has a function called in that thread; it looks for such calls every two seconds at the latest.
    """

    def __init__(self, call_soon: Callable[[Callable[[], None]], Any]) -> None:
        super().__init__()
        self._call_soon = call_soon
        self._home = threading.get_ident()

    def trip(self) -> None:
        """Drain the box here if this is the consumer's thread, else have that called."""
        if threading.get_ident() == self._home:
            self.drain()
        else:
            self._call_soon(self.drain)


class ThreadMailbox(Mailbox):
    """For prefork workers without an event loop: a thread of its own does what others post.

    Starting a task blocks there until a process is free, and the threads that report the end of a task are what
    frees it: they may not wait.
    """

    def __init__(self) -> None:
        super().__init__()
        self._posted = threading.Event()
        self._thread: threading.Thread | None = None
        self._starting = threading.Lock()
        self._closed = False

    def trip(self) -> None:
        """Wake the thread."""
        self._posted.set()
        if self._thread is None and not self._closed:
            with self._starting:
                if self._thread is None:
                    self._thread = threading.Thread(target=self._run, name="slotline-gate", daemon=True)
                    self._thread.start()

    def _run(self) -> None:
        while not self._closed:
            self._posted.wait()
            self._posted.clear()
            self.drain()

    def close(self) -> None:
        """End the thread."""
        self._closed = True
        self._posted.set()


def mailbox_for(consumer: Any) -> Mailbox:
    """Return the kind of box that suits the consumer's pool and event loop."""
    if consumer.hub is not None:
        return HubMailbox()
    pool = consumer.pool
    kind = type(pool).__module__.rpartition(".")[2]
    if kind == "solo":
        return SoloMailbox(consumer.call_soon)
    if getattr(pool, "uses_semaphore", False):
        return ThreadMailbox()
    if getattr(pool, "is_green", False):
        return GreenMailbox(pool.spawn_n)
    return AnywhereMailbox()
