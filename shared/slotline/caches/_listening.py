"""Hearing what other processes set and removed, so that copies of it in this process's memory go."""

from __future__ import annotations

import logging
import os
import threading
import uuid
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

logger = logging.getLogger("slotline.caches")

_CHECK = 10.0
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 2.0


class Announcements:
    """Listens on one channel in a daemon thread, from the first :meth:`start` to :meth:`close`.

    Args:
        connect: Returns a redis-py client.
        channel: The channel.
        on_message: Called with each message, in the thread.
        on_lost: Called when messages may have been missed.
    """

    def __init__(
        self,
        connect: Callable[[], Any],
        channel: str,
        on_message: Callable[[bytes], None],
        on_lost: Callable[[], None],
    ) -> None:
        self._connect = connect
        self._channel = channel
        self._stop_channel = f"{channel}:{uuid.uuid4().hex}"
        self._on_message = on_message
        self._on_lost = on_lost
        self._pid = 0
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self.heard = False
        """Whether every message reaches this process now."""

    def start(self) -> None:
        """Listen, unless this process does already."""
        if self._pid == os.getpid() and self._thread is not None:
            return
        if self._pid != os.getpid():  # the thread of the parent does not exist here
            self._lock, self._thread, self.heard, self._pid = threading.Lock(), None, False, os.getpid()
            self._on_lost()
        with self._lock:
            if self._thread is None:
                self._stop = threading.Event()
                thread = threading.Thread(target=self._run, args=(self._stop,), daemon=True)
                thread.name = "slotline-announcements"
                thread.start()
                self._thread = thread

    def close(self) -> None:
        """Listen no more."""
        self.heard = False
        self._on_lost()
        if self._pid != os.getpid():
            return
        with self._lock:
            thread, self._thread = self._thread, None
        if thread is None:
            return
        self._stop.set()
        try:
            self._connect().publish(self._stop_channel, b"")
        except Exception as error:  # noqa: BLE001 - the server is gone: the thread finds that out by itself
            logger.debug("could not end the announcements on %s at once: %s", self._channel, error)
            return
        thread.join(timeout=2.0)

    def _run(self, stop: threading.Event) -> None:
        pause = _FIRST_PAUSE
        while not stop.is_set():
            try:
                with self._connect().pubsub() as pubsub:
                    pubsub.subscribe(self._channel, self._stop_channel)
                    while not stop.is_set():
                        message = pubsub.get_message(timeout=_CHECK)
                        if message is None:
                            pubsub.ping()  # a connection that died without a word shows here
                        else:
                            pause = _FIRST_PAUSE
                            self._take(message, stop)
            except Exception as error:  # noqa: BLE001 - whatever broke the connection, it is made anew
                if stop.is_set():
                    return
                if self.heard:
                    logger.warning("no announcements on %s, copies in memory are dropped: %s", self._channel, error)
                self.heard = False
                self._on_lost()
                stop.wait(pause)
                pause = min(_LONGEST_PAUSE, pause * 2)

    def _take(self, message: dict[str, Any], stop: threading.Event) -> None:
        if message["type"] == "subscribe":
            self._on_lost()
            self.heard = not stop.is_set()
        elif message["type"] == "message" and not stop.is_set():
            self._on_message(message["data"])
