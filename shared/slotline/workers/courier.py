"""The thread that runs callers' code, so that a slow callback never delays a time limit or a worker's replacement."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable
from typing import Any

logger = logging.getLogger("slotline.workers")


class Courier:
    """Runs callbacks one after another in a thread of its own, which is made for the first of them.

    Args:
        threaded: ``False`` makes no thread; the callbacks run where :meth:`drain` is called.
    """

    def __init__(self, *, threaded: bool) -> None:
        self._threaded = threaded
        self._queue: queue.SimpleQueue[tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]] | None] = (
            queue.SimpleQueue()
        )
        self._thread: threading.Thread | None = None
        self._mutex = threading.Lock()
        self._closed = False

    def put(self, callback: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        """Have ``callback`` run soon, after everything that was put before."""
        if not self._threaded or self._running():
            self._queue.put((callback, args, kwargs))
        else:
            _run(callback, args, kwargs)

    def drain(self) -> None:
        """Run what was put, in the calling thread, if there is no thread for it."""
        while not self._threaded and not self._queue.empty():
            item = self._queue.get()
            if item is not None:
                _run(*item)

    def _running(self) -> bool:
        if self._thread is not None:
            return not self._closed
        with self._mutex:
            if self._thread is None and not self._closed:
                thread = threading.Thread(target=self._serve, name="slotline-callbacks", daemon=True)
                try:
                    thread.start()
                except RuntimeError:  # the interpreter is shutting down and starts no threads
                    return False
                self._thread = thread
        return not self._closed

    def _serve(self) -> None:
        while (item := self._queue.get()) is not None:
            try:
                _run(*item)
            except BaseException:
                logger.exception("A callback of a process pool wanted to end its thread: %r", item[0])
            del item  # keeps neither results nor callers alive while it waits

    def close(self, timeout: float | None = None) -> None:
        """Run what was put and end the thread, waiting for it unless this is the thread itself."""
        with self._mutex:
            first, self._closed = not self._closed, True
            thread = self._thread
        if thread is None:
            self.drain()
            return
        if first:
            self._queue.put(None)
        if thread is not threading.current_thread():
            thread.join(timeout)


def _run(callback: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    try:
        callback(*args, **kwargs)
    except Exception:
        logger.exception("A callback of a process pool failed: %r", callback)
