"""What is said and heard on the connection of a process's doorbells; whoever owns the connection sends and reads."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from abc import abstractmethod
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any

import redis

from slotline.errors import StoreUnavailableError
from slotline.stores._redis_errors import pauses
from slotline.stores._resp import MORE, packed, reader
from slotline.stores.wakeups import Bell, Wakeups

logger = logging.getLogger("slotline.stores")

LINGER = 60.0
"""Seconds for which it is listened after the last waiter has left."""
PATIENT = 1.0
"""Seconds after which whoever waits to be heard may go on without, and is told later to look again."""
CHECK = 20.0
"""Seconds of silence after which the server is asked whether it is still there."""
AT_ONCE = 65536
"""Bytes that are read at once: many messages, if they have come together."""
STOP = b"-"
CHANGED = b"+"
_PATIENCE = 6
_SAID = 3
"""Words of a message: its kind, the channel, and what is said; in RESP3 it is a push, and else the same."""
_PING = packed(("PING",))


class Hearing(Wakeups):
    """Hears the messages of one server, over a connection that somebody else makes, reads and writes.

    When the connection is lost, or has fallen silent, it is made anew, and every waiter is told to look again, since
    messages may be gone.

    Args:
        name: What logs and errors call the server.
        channel: Where scripts publish to be heard here.
        timeout: Seconds for an answer of the server.
        moved: Whether messages may have been missed before it is heard for the first time.
        patience: How often a connection is tried, at the least, before whoever waits is told that there is none.
    """

    def __init__(self, name: str, channel: str, *, timeout: float, moved: bool = False, patience: int = 0) -> None:
        super().__init__()
        self.channel = channel
        self._name = name
        self._own = channel.encode()
        self._timeout = timeout
        self._lock = threading.Lock()
        self._runs = False
        self._closing = False
        self._heard: Future[None] = Future()
        self._away = False
        self._begun = 0.0
        self._wanted_at = 0.0
        self._missed = moved
        self._patience = max(_PATIENCE, patience)
        self._pauses: Iterator[float] = iter(())
        self._asked_at: float | None = None
        self._expected = 0
        self._subscribed: set[str] = set()

    def bell(self, token: str) -> Bell:
        bell = super().bell(token)
        self.listening()
        return bell

    def join(self, channel: str, heard: Callable[[bytes], None]) -> None:
        """See :meth:`Wakeups.join`."""
        super().join(channel, heard)
        self.changed()

    def quit(self, channel: str, heard: Callable[[bytes], None]) -> None:
        """See :meth:`Wakeups.quit`."""
        super().quit(channel, heard)
        self.changed()

    def changed(self) -> None:
        """Subscribe anew, where it is listened already."""
        with self._lock:
            told = self._runs and self._heard.done()
            if told:
                self._unheard()
        if told:
            self._resubscribe()

    def listen_blocking(self, until: float | None = None) -> None:
        self.listening().result(None if until is None else max(0.0, until - time.monotonic()))

    async def listen(self) -> None:
        heard = self.listening()
        if not heard.done():
            await asyncio.wrap_future(heard)
        else:
            heard.result()

    def listening(self) -> Future[None]:
        """Listen; the future is done when messages reach this process, and has the error when they cannot."""
        if not self._runs:
            with self._lock:
                if not self._runs:
                    self._unheard()
                    self._closing = False
                    self._begun = self._wanted_at = time.monotonic()
                    self._pauses = pauses(self._patience)
                    self._runs = True
                    try:
                        self._start()
                    except RuntimeError:  # there can be no thread now: whoever comes next tries again
                        self._runs = False
                        raise
        return self._heard

    @property
    def is_heard(self) -> bool:
        """Whether messages have reached this process since it began to listen, or could not last."""
        return self._heard.done() and self._heard.exception() is None

    def _unheard(self) -> None:
        self._heard = Future()
        self._heard.set_running_or_notify_cancel()  # a caller that is cancelled must not cancel the others

    @abstractmethod
    def _start(self) -> None:
        """Begin to connect, without waiting for it."""

    @abstractmethod
    def _resubscribe(self) -> None:
        """Have :meth:`_subscribe` said by whoever may use the connection."""

    def _open(self, parse_error: Callable[[str], Exception]) -> bytes:
        """Begin with a new connection; return what is to be said."""
        self._reader = reader(parse_error)
        self._subscribed = set()
        return self._subscribe()

    def _subscribe(self) -> bytes:
        channels = {self.channel, *self._joined}
        gone = self._subscribed - channels
        self._expected, self._subscribed = len(channels), channels
        self._asked_at = time.monotonic()
        words = packed(("SUBSCRIBE", *channels))
        return packed(("UNSUBSCRIBE", *gone)) + words if gone else words

    def _receive(self, data: bytes) -> bytes:
        """Take what has come, ring for every message in it, and return what is to be said.

        Raises:
            redis.RedisError: What came is an error, or no message.
            TimeoutError: The server was asked, and does not come to an end of its answer.
        """
        if not data:
            raise redis.ConnectionError("the server has closed the connection")
        self._reader.feed(data)
        gets, words, whole = self._reader.gets, b"", False
        while (message := gets()) is not MORE:
            whole = True
            words += self._take(message)
        if whole:
            self._asked_at = time.monotonic() if self._expected else None
        elif self._asked_at is not None and time.monotonic() - self._asked_at >= self._timeout:
            raise self._unanswered()
        return words

    def _take(self, message: Any) -> bytes:
        if isinstance(message, Exception):
            raise message
        if not isinstance(message, list) or len(message) != _SAID:  # an answer to PING
            return b""
        kind, channel, said = message
        if kind == b"subscribe":
            return self._confirmed()
        if kind == b"message":
            if channel != self._own:
                self.hear(channel.decode(), said)
                return b""
            token, _, payload = said.partition(b" ")
            if token == CHANGED:
                return self._subscribe()
            if token != STOP:
                self.ring(token.decode(), payload)
        return b""

    def _confirmed(self) -> bytes:
        self._expected -= 1
        if self._expected or self._all_heard():
            return b""
        return self._subscribe()  # somebody has joined while this was under way

    def _unanswered(self) -> TimeoutError:
        return TimeoutError(f"no answer within {self._timeout:g} s")

    def _silent(self) -> bytes | None:
        """Look after things when nothing has come for long; return what is to be said, ``None`` to listen no more.

        Raises:
            TimeoutError: The server was asked, and has not answered.
        """
        if self._asked_at is not None:
            raise self._unanswered()
        now = time.monotonic()
        if self._bells or self._joined:
            self._wanted_at = now
        elif now - self._wanted_at >= LINGER and self._retired():
            return None
        words = b"" if self._heard.done() else self._subscribe()  # somebody has joined, and could not tell
        self._asked_at = now
        return words + _PING  # what died without a word does not answer

    def _retired(self) -> bool:
        with self._lock:
            # In this order: who hangs up a bell looks whether it runs afterwards, without the lock.
            self._runs = False
            if self._bells or self._joined:
                self._runs = True
            return not self._runs

    def _all_heard(self) -> bool:
        if self._away:
            self._away = False
            logger.info("wake-ups from %s are back", self._name)
        with self._lock:
            if {self.channel, *self._joined} != self._subscribed:
                return False
            again = self._heard.done()  # after a broken connection, or an error that somebody has seen
            if again:
                self._heard = Future()
            self._heard.set_result(None)
            missed, self._missed = self._missed, False
        self._pauses = pauses(self._patience)
        if again or missed or time.monotonic() - self._begun > PATIENT:
            self.nudge_all()
        return True

    def _lost(self, error: Exception) -> float:
        """Take notice that the connection broke, or that there is none; return the seconds before the next one."""
        pause = next(self._pauses, None)
        if pause is not None:
            return pause
        logger.log(logging.DEBUG if self._away else logging.WARNING, "no wake-ups from %s: %s", self._name, error)
        self._away = True
        with self._lock:
            if self._heard.done():
                self._heard = Future()
            self._heard.set_exception(StoreUnavailableError(self._name, f"{type(error).__name__}: {error}"))
        self.nudge_all()
        return 1.0

    def _end(self, why: str) -> None:
        """Listen no more, and let nobody wait for it."""
        self._closing = True
        self._runs = False
        with self._lock:
            if not self._heard.done():
                self._heard.set_exception(StoreUnavailableError(self._name, why))
