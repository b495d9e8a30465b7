"""A blocking face for caches that have only coroutines: one event loop in a thread of its own."""

from __future__ import annotations

import asyncio
import inspect
import os
import threading
from typing import TYPE_CHECKING, Any

from slotline.caches._options import DEFAULT_TTL
from slotline.errors import AsyncCreatorError

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from slotline.caches.base import BaseCacheAdapter, Creator, Hit


class PortalCache:
    """The blocking face of a :class:`BaseCacheAdapter` that brings none of its own.

    Every call runs in one event loop, in a thread that starts with the first call and ends with :meth:`close`, so
    that clients bound to a loop keep working. A creator runs in a worker thread, never in that loop.

    Args:
        cache: The cache whose coroutines are run.
    """

    def __init__(self, cache: BaseCacheAdapter) -> None:
        self._cache = cache
        self._lock = threading.Lock()
        self._pid = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    def get_or_create(self, key: str, creator: Creator, ttl_seconds: float | None = DEFAULT_TTL) -> Any:
        """See :meth:`BaseCacheAdapter.get_or_create`."""

        async def in_a_thread() -> Any:
            return await asyncio.to_thread(called, key, creator)

        return self._run(self._cache.get_or_create(key, in_a_thread, ttl_seconds))

    def get(self, key: str) -> Any | None:
        """See :meth:`BaseCacheAdapter.get`."""
        return self._run(self._cache.get(key))

    def lookup(self, key: str) -> Hit | None:
        """See :meth:`BaseCacheAdapter.lookup`."""
        hit: Hit | None = self._run(self._cache.lookup(key))
        return hit

    def set(self, key: str, value: Any, ttl_seconds: float | None = DEFAULT_TTL) -> None:
        """See :meth:`BaseCacheAdapter.set`."""
        self._run(self._cache.set(key, value, ttl_seconds))

    def invalidate(self, key: str) -> bool:
        """See :meth:`BaseCacheAdapter.invalidate`."""
        return bool(self._run(self._cache.invalidate(key)))

    def clear(self) -> None:
        """See :meth:`BaseCacheAdapter.clear`."""
        self._run(self._cache.clear())

    def get_stats(self) -> dict[str, Any]:
        """See :meth:`BaseCacheAdapter.get_stats`."""
        return self._cache.get_stats()

    def close(self) -> None:
        """Close the cache in its loop, and end the loop."""
        self._run(self._cache.close())
        thread = self._thread
        self.end_loop()
        if thread is not None:
            thread.join(timeout=5.0)

    def end_loop(self) -> None:
        """End the loop and its thread; the next call starts new ones."""
        with self._mine():
            loop, self._loop = self._loop, None
        if loop is not None:
            loop.call_soon_threadsafe(loop.stop)

    def _run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        with self._mine():
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                self._thread = threading.Thread(target=_serve, args=(self._loop,), daemon=True)
                self._thread.name = "slotline-cache-loop"
                self._thread.start()
            loop = self._loop
        if loop is asyncio._get_running_loop():  # noqa: SLF001 - the public form raises where there is none
            coroutine.close()
            raise RuntimeError("A cache called its own .sync in its event loop; await its methods there.")
        future = asyncio.run_coroutine_threadsafe(coroutine, loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def _mine(self) -> threading.Lock:
        if self._pid != os.getpid():  # the thread of the parent does not exist here
            self._lock, self._loop, self._pid = threading.Lock(), None, os.getpid()
        return self._lock


def _serve(loop: asyncio.AbstractEventLoop) -> None:
    try:
        loop.run_forever()
    finally:
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()


def called(key: str, creator: Creator) -> Any:
    """Return what a blocking caller's creator makes.

    Raises:
        AsyncCreatorError: It has to be awaited.
    """
    if inspect.iscoroutinefunction(creator):
        raise AsyncCreatorError(key)
    value = creator()
    if hasattr(type(value), "__await__"):
        if asyncio.iscoroutine(value):
            value.close()
        raise AsyncCreatorError(key)
    return value
