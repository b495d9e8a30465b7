"""Doorbells over Redis pub/sub: one connection and one thread, as long as somebody waits."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from slotline.errors import StoreUnavailableError
from slotline.stores._redis_errors import pauses
from slotline.stores.wakeups import Bell, Wakeups

if TYPE_CHECKING:
    import redis

logger = logging.getLogger("slotline.stores")

LINGER = 60.0
"""Seconds that the thread stays after the last waiter has left."""
PATIENT = 1.0
"""Seconds after which whoever waits to be heard may go on without, and is told later to look again."""
_CHECK = 20.0
_PATIENCE = 6
_STOP = b"-"
_CHANGED = b"+"


class RedisWakeups(Wakeups):
    """Listens on this process's channel in a daemon thread that starts with the first waiter.

    When the connection is lost, or has fallen silent, it is made anew, and every waiter is told to look again, since
    messages may be gone.

    Args:
        name: What logs and errors call the server.
        channel: This process's channel.
        connect: Makes a client.
        timeout: Seconds for an answer of the server.
        moved: Whether messages may have been missed before it is heard for the first time.
        patience: How often it tries to connect, at the least, before whoever waits is told that it cannot.
    """

    def __init__(
        self,
        name: str,
        channel: str,
        connect: Callable[[], redis.Redis],
        *,
        timeout: float,
        moved: bool = False,
        patience: int = 0,
    ) -> None:
        super().__init__()
        self.channel = channel
        self.on_lost: Callable[[], None] | None = None
        """Called, in the thread, when its connection broke or could not be made."""
        self._name = name
        self._connect = connect
        self._timeout = timeout
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._heard: Future[None] = Future()
        self._closing = False
        self._hurry = threading.Event()
        self._away = False
        self._pubsub: Any = None
        self._begun = 0.0
        self._wanted_at = 0.0
        self._missed = moved
        self._patience = max(_PATIENCE, patience)
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
        """Tell the thread, which alone may use its connection, to subscribe anew."""
        with self._lock:
            if self._thread is not None and self._heard.done():
                self._heard = Future()
                self._heard.set_running_or_notify_cancel()
                running = True
            else:
                running = False
        if running:
            self._say(_CHANGED)

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
        if self._thread is None:
            with self._lock:
                if self._thread is None:
                    self._heard = Future()
                    self._heard.set_running_or_notify_cancel()  # a caller that is cancelled must not cancel the others
                    self._closing = False
                    self._begun = self._wanted_at = time.monotonic()
                    self._thread = threading.Thread(target=self._run, name="slotline-wakeups", daemon=True)
                    self._thread.start()
        return self._heard

    def hasten(self) -> None:
        """See :meth:`Wakeups.hasten`."""
        with self._lock:
            if self._thread is None or not self._heard.done() or self._heard.exception() is None:
                return
            self._heard = Future()
            self._heard.set_running_or_notify_cancel()
            self._missed = True
        self._hurry.set()

    def _run(self) -> None:
        client = self._connect()
        patience = pauses(self._patience)
        try:
            while not self._closing:
                try:
                    with client.pubsub() as pubsub:
                        self._pubsub = pubsub
                        self._subscribe(pubsub)
                        for message in iter(lambda: self._next(pubsub), None):
                            patience = pauses(self._patience)
                            self._deliver(pubsub, message)
                        return
                except Exception as error:  # noqa: BLE001 - whatever broke the connection, it is made anew
                    self._lost(error, patience)
        finally:
            client.close()
            client.connection_pool.disconnect()

    def _next(self, pubsub: Any) -> Any:
        """Return the next message; ``None`` when the thread should end."""
        asked = self._expected > 0
        while not self._closing:
            message = pubsub.get_message(timeout=self._timeout if asked else _CHECK)
            if message is not None:
                return message
            if asked:
                raise TimeoutError(f"no answer within {self._timeout:g} s")
            now = time.monotonic()
            if self._bells or self._joined:
                self._wanted_at = now
            elif now - self._wanted_at >= LINGER and self._retired():
                return None
            if not self._heard.done():
                self._subscribe(pubsub)  # somebody has joined, and could not tell this thread
            pubsub.ping()  # what died without a word does not answer
            asked = True
        return None

    def _retired(self) -> bool:
        with self._lock:
            # In this order: who hangs up a bell looks for the thread afterwards, without the lock.
            self._thread = None
            if self._bells or self._joined:
                self._thread = threading.current_thread()
            return self._thread is None

    def _subscribe(self, pubsub: Any) -> None:
        channels = {self.channel, *self._joined}
        gone = [name for name in map(bytes.decode, pubsub.channels) if name not in channels]
        if gone:
            pubsub.unsubscribe(*gone)
        self._expected, self._subscribed = len(channels), channels
        pubsub.subscribe(*channels)

    def _deliver(self, pubsub: Any, message: Any) -> None:
        if message["type"] == "subscribe":
            self._expected -= 1
            if self._expected == 0 and not self._all_heard():
                self._subscribe(pubsub)  # somebody has joined while this was under way
        elif message["type"] == "message":
            channel = message["channel"].decode()
            if channel != self.channel:
                self.hear(channel, message["data"])
                return
            token, _, payload = message["data"].partition(b" ")
            if token == _CHANGED:
                self._subscribe(pubsub)
            elif token != _STOP:
                self.ring(token.decode(), payload)

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
        if again or missed or time.monotonic() - self._begun > PATIENT:
            self.nudge_all()
        return True

    def _lost(self, error: Exception, patience: Any) -> None:
        if self._closing:
            return
        if self.on_lost is not None:
            self.on_lost()
        pause = next(patience, None)
        if pause is None:
            logger.log(logging.DEBUG if self._away else logging.WARNING, "no wake-ups from %s: %s", self._name, error)
            self._away = True
            unreachable = StoreUnavailableError(self._name, f"{type(error).__name__}: {error}")
            with self._lock:
                if self._heard.done():
                    self._heard = Future()
                self._heard.set_exception(unreachable)
            self.nudge_all()
            pause = 1.0
        self._hurry.wait(pause)
        self._hurry.clear()

    def close(self) -> None:
        """End the thread; whoever waits finds the store's next doorbells when it looks again."""
        self._closing = True
        thread, self._thread = self._thread, None
        with self._lock:
            if not self._heard.done():
                self._heard.set_exception(StoreUnavailableError(self._name, "it was closed"))
        if thread is None or thread is threading.current_thread():
            return
        if self._say(_STOP):
            thread.join(timeout=2.0)

    def part(self) -> None:
        """End without a word to the server, which is no master any more, or cannot be reached."""
        self._closing = True
        self._thread = None
        with self._lock:
            if not self._heard.done():
                self._heard.set_exception(StoreUnavailableError(self._name, "its server has changed"))
        # The thread alone may use its connection, but it may sit in it for long: its socket is what wakes it.
        wire = getattr(getattr(self._pubsub, "connection", None), "_sock", None)
        if wire is not None:
            with contextlib.suppress(OSError):
                wire.shutdown(socket.SHUT_RDWR)

    def _say(self, word: bytes) -> bool:
        """Publish to the thread itself; without a server it finds out by itself, with its connection."""
        try:
            with self._connect() as client:
                client.publish(self.channel, word)
                client.connection_pool.disconnect()
        except Exception as error:  # noqa: BLE001 - see above
            logger.debug("no word to the wake-ups of %s: %s", self._name, error)
            return False
        return True
