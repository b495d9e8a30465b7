"""Reads of one key that happen at the same time, as one read."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

T = TypeVar("T")
H = TypeVar("H")
_MISSING: Any = object()


class SharedReads:
    """Lets callers of one event loop who want the same key at the same time share one read."""

    def __init__(self) -> None:
        self._under_way: dict[str, _Read] = {}

    async def read(self, key: str, how: H, reader: Callable[[str, H], Awaitable[T]]) -> T:
        """Return what ``reader`` finds, or what a read of the same key in the same way that is under way finds.

        Args:
            key: What is read.
            how: Only reads with an equal object here are the same.
            reader: Reads, given key and ``how``; where it fails or is cancelled, the others read for themselves.
        """
        loop = asyncio.get_running_loop()
        shared = self._under_way.get(key)
        if shared is not None and shared.loop is loop and shared.how == how:
            found: T = await shared.join()
            if found is not _MISSING:
                return found
        mine = self._under_way[key] = _Read(loop, how)
        try:
            mine.found = found = await reader(key, how)
            return found
        finally:
            if self._under_way.get(key) is mine:
                del self._under_way[key]
            mine.end()

    def forget(self, key: str | None) -> None:
        """Let nobody join a read any more that began before now: of one key, or of all."""
        if key is None:
            self._under_way.clear()
        else:
            self._under_way.pop(key, None)


class _Read:
    __slots__ = ("_waiting", "found", "how", "loop")

    def __init__(self, loop: asyncio.AbstractEventLoop, how: object) -> None:
        self.loop = loop
        self.how = how
        self.found: Any = _MISSING
        self._waiting: list[asyncio.Future[None]] = []

    async def join(self) -> Any:
        """Return what was found, ``_MISSING`` where the reader failed or was cancelled."""
        woken: asyncio.Future[None] = self.loop.create_future()
        self._waiting.append(woken)
        await woken
        return self.found

    def end(self) -> None:
        for woken in self._waiting:
            if not woken.done():
                woken.set_result(None)
