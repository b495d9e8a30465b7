"""Caches: one run in any stampede, in memory, on Redis, or on both."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from slotline.caches._engine import CacheAdapter, Overrides, SyncCacheAdapter
from slotline.caches._options import DEFAULT_TTL, EntryOptions
from slotline.caches.base import BaseCacheAdapter, Creator, Hit
from slotline.caches.decorator import BoundCachedFunction, CachedFunction, cached, default_cache
from slotline.caches.memory import InMemoryCacheAdapter
from slotline.caches.serializer import Serializer

if TYPE_CHECKING:
    from slotline.caches.redis import RedisCacheAdapter
    from slotline.caches.tiered import TieredCacheAdapter

__all__ = [
    "DEFAULT_TTL",
    "BaseCacheAdapter",
    "BoundCachedFunction",
    "CacheAdapter",
    "CachedFunction",
    "Creator",
    "EntryOptions",
    "Hit",
    "InMemoryCacheAdapter",
    "Overrides",
    "RedisCacheAdapter",
    "Serializer",
    "SyncCacheAdapter",
    "TieredCacheAdapter",
    "cached",
    "default_cache",
]


def __getattr__(name: str) -> Any:
    # redis is an extra: the rest works without it.
    if name == "RedisCacheAdapter":
        from slotline.caches.redis import RedisCacheAdapter  # noqa: PLC0415 - see above

        return RedisCacheAdapter
    if name == "TieredCacheAdapter":
        from slotline.caches.tiered import TieredCacheAdapter  # noqa: PLC0415 - see above

        return TieredCacheAdapter
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
