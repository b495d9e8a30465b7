"""Doorbells: how a script in the store wakes whoever waits in this process.

A process listens on one channel of its own, whatever it waits for. A waiter hangs up a :class:`Bell` under its token
before it stands in line; a script that has something for it publishes ``"<token> <payload>"`` on the channel. Messages
can be lost, so a waiter also looks again from time to time: a lost one costs a delay, never a hang.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from slotline.steps import Step

if TYPE_CHECKING:
    from slotline.stores.base import Store

logger = logging.getLogger("slotline.stores")


def _call(callback: Callable[..., None], *args: object) -> None:
    # In the thread that brings the messages of all: an error of one must not keep them from the others.
    try:
        callback(*args)
    except Exception:
        logger.exception("a callback for a wake-up failed")


class _Together(threading.local):
    """What one thread's rings have event loops do: each loop is woken once, for all bells that are rung in a block.

    To wake a loop costs a system call, at which the thread may lose the interpreter to it, and a server's messages
    often come several at a time.
    """

    def __init__(self) -> None:
        self._due: dict[asyncio.AbstractEventLoop, list[Callable[[], None]]] | None = None

    def call(self, loop: asyncio.AbstractEventLoop, callback: Callable[[], None]) -> None:
        """Have ``callback`` called in a loop that runs in another thread."""
        if self._due is None:
            self._wake(loop, callback)
        else:
            self._due.setdefault(loop, []).append(callback)

    def __enter__(self) -> None:
        self._due = {}

    def __exit__(self, *exc: object) -> None:
        due, self._due = self._due or {}, None
        for loop, callbacks in due.items():
            self._wake(loop, _call_all, callbacks)

    def _wake(self, loop: asyncio.AbstractEventLoop, callback: Callable[..., None], *args: object) -> None:
        with contextlib.suppress(RuntimeError):  # the waiters' loop is closed: nobody waits any more
            loop.call_soon_threadsafe(callback, *args)


def _call_all(callbacks: list[Callable[[], None]]) -> None:
    for callback in callbacks:
        callback()


together = _Together()


class Bell:
    """One waiter's doorbell; rings at most once with a payload, and any number of times without.

    A ring without a payload (``b""``) says only that there is a reason to look again; ``nudged`` remembers one that was
    meant for this bell until its waiter has heard it.
    """

    __slots__ = ("_callbacks", "_hub", "_lock", "loop", "nudged", "payload", "token")

    def __init__(self, hub: Wakeups, token: str) -> None:
        self.token = token
        self.payload: bytes | None = None
        self.nudged = False
        self.loop: asyncio.AbstractEventLoop | None = None  # in which somebody waits for it just now
        self._hub = hub
        self._lock = threading.Lock()
        self._callbacks: list[Callable[[], None]] = []

    def on_ring(self, callback: Callable[[], None]) -> None:
        """Call ``callback`` at each ring, in whatever thread it comes; at once if it has rung by now."""
        with self._lock:
            rung = self.payload is not None or self.nudged
            if self.payload is None:
                self._callbacks.append(callback)
        if rung:
            callback()

    def forget(self, callback: Callable[[], None]) -> None:
        """Call ``callback`` no more."""
        with self._lock, contextlib.suppress(ValueError):
            self._callbacks.remove(callback)

    def ring(self, payload: bytes) -> None:
        """Deliver ``payload``, or a mere nudge where it is empty."""
        with self._lock:
            if payload and self.payload is None:
                self.payload = payload
            callbacks = list(self._callbacks)
        for callback in callbacks:
            _call(callback)

    def hangs_on(self, hub: Wakeups) -> bool:
        """Whether it hangs, on ``hub``: a store that was closed has other doorbells when it is used again."""
        return self._hub is hub and hub.has(self)

    def close(self) -> None:
        """Take the bell down; what comes for it later is dropped."""
        self._hub.remove(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class Wakeups(ABC):
    """The doorbells of one process on one store.

    Attributes:
        channel: Where scripts publish to reach this process.
    """

    channel: str

    def __init__(self) -> None:
        self._bells: dict[str, Bell] = {}
        self._joined: dict[str, tuple[Callable[[bytes], None], ...]] = {}

    def bell(self, token: str) -> Bell:
        """Hang up a bell under ``token``."""
        bell = self._bells[token] = Bell(self, token)
        return bell

    def has(self, bell: Bell) -> bool:
        """Whether a bell hangs."""
        return self._bells.get(bell.token) is bell

    def remove(self, bell: Bell) -> None:
        """Take a bell down, if it still hangs."""
        if self.has(bell):
            del self._bells[bell.token]

    def ring(self, token: str, payload: bytes) -> bool:
        """Ring the bell under ``token``; return whether there was one."""
        bell = self._bells.get(token)
        if bell is None:
            return False
        bell.nudged = bell.nudged or not payload
        bell.ring(payload)
        return True

    def nudge_all(self) -> None:
        """Ring every bell without a payload: messages may have been lost."""
        for bell in list(self._bells.values()):
            bell.nudged = True
            bell.ring(b"")
        for channel in list(self._joined):
            self.hear(channel, b"")

    def join(self, channel: str, heard: Callable[[bytes], None]) -> None:
        """Listen on a channel that many processes share, besides this process's own.

        Args:
            channel: The channel.
            heard: Called with each message, in any thread; with ``b""`` when messages may have been lost.
        """
        self._joined[channel] = (*self._joined.get(channel, ()), heard)

    def quit(self, channel: str, heard: Callable[[bytes], None]) -> None:
        """Call ``heard`` no more."""
        left = tuple(other for other in self._joined.pop(channel, ()) if other != heard)
        if left:
            self._joined[channel] = left

    def hear(self, channel: str, message: bytes) -> None:
        """Deliver a message of a shared channel."""
        for heard in self._joined.get(channel, ()):
            _call(heard, message)

    def hasten(self) -> None:  # noqa: B027 - only what was lost is made anew
        """Try to be heard again at once, where that could not be: the store answers by now."""

    @abstractmethod
    def listen_blocking(self, until: float | None = None) -> None:
        """Return when messages on the channel reach this process.

        Raises:
            TimeoutError: They do not by ``until`` (monotonic).
        """

    @abstractmethod
    async def listen(self) -> None:
        """Return when messages on the channel reach this process."""


@dataclass(slots=True, frozen=True)
class Here(Step):
    """Find the doorbells for one who waits where this is done: in a thread, or in an event loop."""

    store: Store

    def blocking(self) -> Wakeups:
        """Return those of the process."""
        return self.store.wakeups

    async def awaiting(self) -> Wakeups:
        """Return those of the running loop."""
        return self.store.loop_wakeups


@dataclass(slots=True, frozen=True)
class Listen(Step):
    """Make sure that the doorbells can be heard; needed before a command that puts the caller into a line."""

    asks = True
    hub: Wakeups

    def blocking(self) -> None:
        """Block until they can be heard."""
        self.hub.listen_blocking()

    async def awaiting(self) -> None:
        """Wait until they can be heard."""
        await self.hub.listen()

    def blocking_until(self, until: float) -> None:
        """Block until they can be heard, at the longest until ``until`` (monotonic)."""
        self.hub.listen_blocking(until)


@dataclass(slots=True, frozen=True)
class Wait(Step):
    """Wait for a ring, for ``timeout`` seconds at the most; the result is the payload, ``None`` without one."""

    bell: Bell
    timeout: float

    def blocking(self) -> bytes | None:
        """Block the calling thread."""
        rung = threading.Event()
        self.bell.on_ring(rung.set)
        try:
            rung.wait(self.timeout)
        finally:
            self.bell.forget(rung.set)
            self.bell.nudged = False
        return self.bell.payload

    async def awaiting(self) -> bytes | None:
        """Wait in the running event loop."""
        loop = asyncio.get_running_loop()
        rung: asyncio.Future[None] = loop.create_future()

        def wake() -> None:
            if asyncio._get_running_loop() is loop:  # noqa: SLF001 - it is named among asyncio's functions
                settle()
            else:
                together.call(loop, settle)

        def settle() -> None:
            if not rung.done():
                rung.set_result(None)

        self.bell.on_ring(wake)
        self.bell.loop = loop
        timer = loop.call_later(self.timeout, settle)
        try:
            await rung
        finally:
            timer.cancel()
            self.bell.loop = None
            self.bell.forget(wake)
            self.bell.nudged = False
        return self.bell.payload
