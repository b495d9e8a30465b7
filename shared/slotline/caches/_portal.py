"""A blocking face for caches that have only coroutines: one event loop in a thread of its own."""

from __future__ import annotations

import asyncio
import os
import threading
from typing import TYPE_CHECKING, Any

from slotline.caches._options import DEFAULT_TTL
from slotline.errors import AsyncCreatorError

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from slotline.caches.base import BaseCacheAdapter, Creator, Hit


class _LoopThread:
    """An event loop in a daemon thread, started at first use and made anew after a fork."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pid = 0
        self._loop: asyncio.AbstractEventLoop | None = None

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Run a coroutine there and return its result."""
        loop = self._running()
        if loop is asyncio._get_running_loop():  # noqa: SLF001 - the public form raises where there is none
            coroutine.close()
            raise RuntimeError(
                "A creator called .sync of its own cache in the cache's event loop; await the cache itself."
            )
        future = asyncio.run_coroutine_threadsafe(coroutine, loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def _running(self) -> asyncio.AbstractEventLoop:
        if self._pid != os.getpid():
            self._lock, self._loop, self._pid = threading.Lock(), None, os.getpid()
        with self._lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                threading.Thread(target=self._loop.run_forever, name="slotline-cache-loop", daemon=True).start()
            return self._loop


_thread = _LoopThread()


class PortalCache:
    """The blocking face of a :class:`BaseCacheAdapter` that brings none of its own.

    Every call runs in one background event loop of the process, so that clients bound to a loop keep working. A
    creator runs in a worker thread, never in that loop.
    """

    def __init__(self, cache: BaseCacheAdapter) -> None:
        self._cache = cache

    def get_or_create(self, key: str, creator: Creator, ttl_seconds: float | None = DEFAULT_TTL) -> Any:
        """See :meth:`BaseCacheAdapter.get_or_create`."""

        async def in_a_thread() -> Any:
            return await asyncio.to_thread(called, key, creator)

        return _thread.run(self._cache.get_or_create(key, in_a_thread, ttl_seconds))

    def get(self, key: str) -> Any | None:
        """See :meth:`BaseCacheAdapter.get`."""
        return _thread.run(self._cache.get(key))

    def lookup(self, key: str) -> Hit | None:
        """See :meth:`BaseCacheAdapter.lookup`."""
        hit: Hit | None = _thread.run(self._cache.lookup(key))
        return hit

    def set(self, key: str, value: Any, ttl_seconds: float | None = DEFAULT_TTL) -> None:
        """See :meth:`BaseCacheAdapter.set`."""
        _thread.run(self._cache.set(key, value, ttl_seconds))

    def invalidate(self, key: str) -> bool:
        """See :meth:`BaseCacheAdapter.invalidate`."""
        return bool(_thread.run(self._cache.invalidate(key)))

    def clear(self) -> None:
        """See :meth:`BaseCacheAdapter.clear`."""
        _thread.run(self._cache.clear())

    def get_stats(self) -> dict[str, Any]:
        """See :meth:`BaseCacheAdapter.get_stats`."""
        return self._cache.get_stats()

    def close(self) -> None:
        """See :meth:`BaseCacheAdapter.close`."""
        _thread.run(self._cache.close())


def called(key: str, creator: Creator) -> Any:
    """Return what a blocking caller's creator makes.

    Raises:
        AsyncCreatorError: It has to be awaited.
    """
    if asyncio.iscoroutinefunction(creator):
        raise AsyncCreatorError(key)
    value = creator()
    if hasattr(type(value), "__await__"):
        if asyncio.iscoroutine(value):
            value.close()
        raise AsyncCreatorError(key)
    return value
