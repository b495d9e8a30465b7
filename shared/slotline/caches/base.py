"""What every cache can do: the six methods that a backend implements."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import cached_property
from typing import Any, NamedTuple, TypeAlias

Creator: TypeAlias = Callable[[], Any]
"""Makes a missing value; it may return an awaitable, which is awaited once."""


class Hit(NamedTuple):
    """What :meth:`BaseCacheAdapter.lookup` found.

    Attributes:
        value: The value; ``None`` is one.
        stale: Whether its TTL is over and only its grace keeps it.
        error: The creator's exception, where that is what was stored.
    """

    value: Any
    stale: bool = False
    error: BaseException | None = None

    def unwrap(self) -> Any:
        """Return the value, or raise the stored exception."""
        if self.error is not None:
            raise self.error
        return self.value


class BaseCacheAdapter(ABC):
    """A cache: implement these six methods to bring a backend of your own.

    ``slotline.caches.testing.CacheAdapterConformance`` checks an implementation. ``.sync`` offers the same methods to
    plain threads; unless a backend brings a face of its own there, its coroutines run in one background event loop
    of the process.
    """

    @abstractmethod
    async def get_or_create(self, key: str, creator: Creator, ttl_seconds: float | None = 3600) -> Any:
        """Return the value under ``key``; where there is none, let one caller create it and give it to all.

        Args:
            key: The entry's name.
            creator: Called without arguments by one of the callers; an awaitable that it returns is awaited.
            ttl_seconds: How long the value is kept (default 3600); 0 and ``None`` mean no expiry.

        Raises:
            Exception: Whatever the creator raises, to everyone who waits; nothing is stored then.
        """

    @abstractmethod
    async def get(self, key: str) -> Any | None:
        """Return the value under ``key``, ``None`` where there is none."""

    @abstractmethod
    async def set(self, key: str, value: Any, ttl_seconds: float | None = 3600) -> None:
        """Store ``value`` for ``ttl_seconds`` (default 3600; 0 and ``None`` mean no expiry)."""

    @abstractmethod
    async def invalidate(self, key: str) -> bool:
        """Remove the entry at once; return whether there was one."""

    @abstractmethod
    async def clear(self) -> None:
        """Remove every entry of this cache, and nothing else."""

    @abstractmethod
    def get_stats(self) -> dict[str, Any]:
        """Return ``hits``, ``misses``, ``hit_rate``, ``size`` and ``keys``."""

    async def lookup(self, key: str) -> Hit | None:
        """Return what is stored under ``key``, ``None`` for nothing.

        Unlike :meth:`get` it tells a stored ``None`` from a miss, in the caches of this package; over a backend that
        implements only :meth:`get` it cannot.
        """
        value = await self.get(key)
        return None if value is None else Hit(value)

    @cached_property
    def sync(self) -> Any:
        """The same methods, blocking."""
        from slotline.caches._portal import PortalCache  # noqa: PLC0415 - it imports this module

        return PortalCache(self)

    async def close(self) -> None:
        """Close what this cache opened; it opens it again when it is used again."""
        end_loop = getattr(self.__dict__.get("sync"), "end_loop", None)
        if end_loop is not None:
            end_loop()
