"""Doorbells over Redis pub/sub: one connection and one thread, as long as somebody waits.

redis-py connects and greets the server; the thread reads what comes then. redis-py's own reading of a message costs
more than all the rest of waking a waiter.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from slotline.stores import _hearing
from slotline.stores._hearing import AT_ONCE, CHANGED, STOP, Hearing
from slotline.stores.wakeups import together

if TYPE_CHECKING:
    import redis

logger = logging.getLogger("slotline.stores")


class RedisWakeups(Hearing):
    """Listens on this process's channel in a daemon thread that starts with the first waiter.

    Args:
        name: What logs and errors call the server.
        channel: This process's channel.
        connect: Makes a client, for each connection.
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
        super().__init__(name, channel, timeout=timeout, moved=moved, patience=patience)
        self.on_lost: Callable[[], None] | None = None
        """Called, in the thread, when its connection broke or could not be made."""
        self._connect = connect
        self._roused = False
        self._thread: threading.Thread | None = None
        self._hurry = threading.Event()
        self._socket: socket.socket | None = None

    def join(self, channel: str, heard: Callable[[bytes], None]) -> None:
        """See :meth:`Wakeups.join`."""
        super().join(channel, heard)
        if self._roused:
            self.listening()

    def rouse(self) -> None:
        """Hear what many are told from now on, if there is anything: this process listens elsewhere for itself."""
        self._roused = True
        if self._joined:
            self.listening()

    def _start(self) -> None:
        self._thread = threading.Thread(target=self._run, name="slotline-wakeups", daemon=True)
        self._thread.start()

    def _resubscribe(self) -> None:
        self._say(CHANGED)  # the thread alone may use its connection

    def hasten(self) -> None:
        """See :meth:`Wakeups.hasten`."""
        with self._lock:
            if not self._runs or not self._heard.done() or self._heard.exception() is None:
                return
            self._unheard()
            self._missed = True
        self._hurry.set()

    def _run(self) -> None:
        while self._is_listened_by(threading.current_thread()):
            try:
                with self._connect() as client:
                    connection = client.connection_pool.make_connection()
                    try:
                        self._hear(connection)
                    finally:
                        connection.disconnect()
            except Exception as error:  # noqa: BLE001 - whatever broke the connection, it is made anew
                self._pause_after(error)
            else:
                return

    def _hear(self, connection: Any) -> None:
        """Connect, and return when the thread should end."""
        connection.connect()
        wire = self._socket = connection._sock  # noqa: SLF001 - redis-py has no other way
        words: bytes | None = self._open(connection._parser.parse_error)  # noqa: SLF001 - redis-py has no other way
        receive, here = wire.recv, threading.current_thread()
        while self._is_listened_by(here):
            patience = _hearing.CHECK if self._asked_at is None else self._timeout
            if wire.gettimeout() != patience:
                wire.settimeout(patience)
            if words:
                wire.sendall(words)
            try:
                data = receive(AT_ONCE)
            except TimeoutError:
                words = self._silent()
                if words is None:
                    return
            else:
                if self._is_listened_by(here):
                    with together:
                        words = self._receive(data)

    def _is_listened_by(self, thread: threading.Thread) -> bool:
        # Whoever came with the doorbells in hand while they were closed has them heard by a thread of their own.
        return self._thread is thread and not self._closing

    def _pause_after(self, error: Exception) -> None:
        if not self._is_listened_by(threading.current_thread()):
            return
        if self.on_lost is not None:
            self.on_lost()
        self._hurry.wait(self._lost(error))
        self._hurry.clear()

    def close(self) -> None:
        """End the thread; whoever waits finds the store's next doorbells when it looks again."""
        thread, self._thread = self._thread, None
        runs = self._runs
        self._end("it was closed")
        if thread is None or not runs or thread is threading.current_thread():
            return
        if self._say(STOP):
            thread.join(timeout=2.0)

    def part(self) -> None:
        """End without a word to the server, which is no master any more, or cannot be reached."""
        self._thread = None
        self._end("its server has changed")
        # The thread alone may use its connection, but it may sit in it for long: its socket is what wakes it.
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)

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
