"""Caches: one run in any stampede, in memory, on Redis, or on both."""

from __future__ import annotations

from slotline.caches._engine import CacheAdapter, Overrides, SyncCacheAdapter
from slotline.caches._options import DEFAULT_TTL, EntryOptions
from slotline.caches.base import BaseCacheAdapter, Creator, Hit
from slotline.caches.memory import InMemoryCacheAdapter
from slotline.caches.serializer import Serializer

__all__ = [
    "DEFAULT_TTL",
    "BaseCacheAdapter",
    "CacheAdapter",
    "Creator",
    "EntryOptions",
    "Hit",
    "InMemoryCacheAdapter",
    "Overrides",
    "Serializer",
    "SyncCacheAdapter",
]
