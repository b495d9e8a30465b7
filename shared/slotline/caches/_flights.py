"""One run per key in a process: whoever asks for a key whose value is being made waits for that run.

A :class:`Flight` is shared by coroutines of any event loop and by plain threads. It ends with a value, with an error
that everyone waiting gets, or *abandoned*: whoever flew it is gone (its loop ended, its thread was interrupted), and
the next one in line flies again.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from contextvars import Context, ContextVar, copy_context
from typing import TYPE_CHECKING, Any, NamedTuple

from slotline.errors import CacheRecursionError

if TYPE_CHECKING:
    from collections.abc import Iterator

_LOOK_AGAIN = 1.0
"""Seconds after which a waiter looks whether the loop that flies for it is still there."""


class Outcome(NamedTuple):
    """How a flight ended.

    Attributes:
        value: What it brought; meaningless with an error.
        error: What the creator raised, with the traceback that it had then.
        abandoned: Whether it ended without either: try again.
    """

    value: Any = None
    error: BaseException | None = None
    traceback: Any = None
    abandoned: bool = False

    def unwrap(self) -> Any:
        """Return the value or raise the error."""
        if self.error is not None:
            # The same exception is raised to many: each starts from the creator's own traceback.
            raise self.error.with_traceback(self.traceback)
        return self.value


ABANDONED = Outcome(abandoned=True)


def failed(error: BaseException) -> Outcome:
    """Return the outcome of a creator that raised ``error``."""
    return Outcome(None, error, error.__traceback__)


class Claim(NamedTuple):
    """One process's right to make a value, on a store that others share.

    Attributes:
        store: The store's name.
        base: What the names of the entry's keys start with.
        token: The claim's own.
    """

    store: str
    base: str
    token: str


class Flight:
    """One run of a creator and everyone who waits for it."""

    __slots__ = (
        "_ended", "_futures", "_lock",
        "callers", "claim", "home", "key", "loop", "outcome", "own_error", "refused", "tags", "void",
    )  # fmt: skip

    def __init__(self, home: Flights, key: str, tags: tuple[str, ...] = ()) -> None:
        self.home = home
        self.key = key
        self.tags = tags
        self.outcome: Outcome | None = None
        self.void = False
        """Whether the key was set or invalidated meanwhile, so that what the creator brings is not stored."""
        self.own_error: BaseException | None = None
        """What the creator raised to its own caller alone."""
        self.loop: asyncio.AbstractEventLoop | None = None
        """The loop in which the creator runs; ``None`` while it runs in a plain thread."""
        self.callers: list[Flight] = []
        """The flights whose creators wait for this one."""
        self.refused: frozenset[Flight] = frozenset()
        """Of the callers, those for whose values this flight would have had to wait in turn."""
        self.claim: Claim | None = None
        """What this process has of the value, so that no other one makes it."""
        self._lock = threading.Lock()
        self._ended: threading.Event | None = None
        self._futures: dict[asyncio.AbstractEventLoop, list[asyncio.Future[None]]] = {}

    def held_up(self) -> list[Flight]:
        """Return the flights that cannot end before this one has: itself, its callers, theirs, and so on."""
        found = [self]
        for flight in found:
            found += [caller for caller in flight.callers if caller.outcome is None and caller not in found]
        return found

    def end(self, outcome: Outcome) -> None:
        """Wake everyone who waits; only the first call counts."""
        with self._lock:
            if self.outcome is not None:
                return
            self.outcome = outcome
            ended, futures = self._ended, self._futures
            self._futures = {}
        if ended is not None:
            ended.set()
        for loop, waiting in futures.items():
            with contextlib.suppress(RuntimeError):  # that loop is closed: nobody waits in it any more
                loop.call_soon_threadsafe(_release, waiting)

    @property
    def lost(self) -> bool:
        """Whether nobody flies it any more: its loop was closed over it."""
        return self.loop is not None and self.loop.is_closed()

    async def wait(self) -> Outcome:
        """Return the outcome; cancelling the waiter disturbs nobody."""
        loop = asyncio.get_running_loop()
        woken: asyncio.Future[None] | None = None
        while True:
            with self._lock:
                if self.outcome is not None:
                    return self.outcome
                if woken is None:
                    woken = loop.create_future()
                    self._futures.setdefault(loop, []).append(woken)
            if self.loop is loop:
                await woken
                continue
            await asyncio.wait((woken,), timeout=_LOOK_AGAIN)
            if self.lost:
                self.end(ABANDONED)

    def wait_blocking(self) -> Outcome:
        """Return the outcome.

        Raises:
            CacheRecursionError: The caller blocks the very event loop in which the creator runs.
        """
        here = asyncio._get_running_loop()  # noqa: SLF001 - the public form raises where there is none
        if here is not None and here is self.loop and self.outcome is None:
            raise CacheRecursionError(self.key)
        while True:
            with self._lock:
                if self.outcome is not None:
                    return self.outcome
                if self._ended is None:
                    self._ended = threading.Event()
                ended = self._ended
            if not ended.wait(_LOOK_AGAIN) and self.lost:
                self.end(ABANDONED)


def _release(waiting: list[asyncio.Future[None]]) -> None:
    for woken in waiting:
        if not woken.done():
            woken.set_result(None)


_flying: ContextVar[Flight | None] = ContextVar("slotline_flying", default=None)


class Flights:
    """The flights of one cache in this process."""

    def __init__(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self.live: dict[str, Flight] = {}

    def lock(self) -> threading.Lock:
        """Return the lock of this process; the cache guards its entries with it, too."""
        # A forked child has neither the threads nor the loops that fly, and maybe a lock that nobody will release.
        if self._pid != os.getpid():
            self._lock, self.live, self._pid = threading.Lock(), {}, os.getpid()
        return self._lock

    def join(self, key: str, tags: tuple[str, ...] = ()) -> tuple[Flight, bool]:
        """Return the flight for ``key``, and whether the caller has to fly it.

        Raises:
            CacheRecursionError: The caller is the creator of this very value.
        """
        mine = _flying.get()
        if mine is not None and mine.home is self and mine.key == key and mine.outcome is None:
            raise CacheRecursionError(key)  # also in a forked child, and where the key was invalidated meanwhile
        with self.lock():
            flight = self.live.get(key)
            leading = flight is None or flight.lost
            if flight is None or leading:
                flight = self.live[key] = Flight(self, key, tags)
        return flight, leading

    def end(self, flight: Flight, outcome: Outcome) -> None:
        """End a flight for everyone; the next caller starts one of its own."""
        with self.lock():
            if self.live.get(flight.key) is flight:
                del self.live[flight.key]
        flight.end(outcome)

    def void(self, key: str | None = None, tag: str | None = None) -> None:
        """Let whoever comes from now on start anew: the value was set or invalidated. The caller holds the lock.

        Args:
            key: Whose flight is meant; ``None`` for all.
            tag: Only flights with this tag.
        """
        for name in list(self.live) if key is None else [key]:
            flight = self.live.get(name)
            if flight is not None and (tag is None or tag in flight.tags):
                flight.void = True
                del self.live[name]

    def flying(self, key: str) -> bool:
        """Return whether a value for ``key`` is on its way."""
        return key in self.live and self._pid == os.getpid()


@contextlib.contextmanager
def awaiting(flight: Flight) -> Iterator[None]:
    """Let it be known inside that the caller waits for ``flight``, if it is a creator.

    Raises:
        CacheRecursionError: The flight waits for the value that the caller makes.
    """
    mine = _flying.get()
    if mine is None or mine.outcome is not None:
        yield
        return
    # Noted first and looked at afterwards: of two that wait for each other, one at least sees it.
    flight.callers.append(mine)
    try:
        if flight in mine.held_up():
            raise CacheRecursionError(flight.key)
        yield
    finally:
        flight.callers.remove(mine)
    if mine in flight.refused:
        raise CacheRecursionError(flight.key)


@contextlib.contextmanager
def in_flight(flight: Flight) -> Iterator[None]:
    """Mark what runs inside as the creator of this flight."""
    token = _flying.set(flight)
    try:
        yield
    finally:
        _flying.reset(token)


def context_of(flight: Flight) -> Context:
    """Return a copy of the caller's context in which this flight's creator runs."""
    context = copy_context()
    context.run(_flying.set, flight)
    return context
