"""The suite that ships for users' own caches, on every cache of the package and on a minimal one of a user's."""

from __future__ import annotations

import asyncio
import time

import pytest

from slotline.caches import BaseCacheAdapter, InMemoryCacheAdapter, RedisCacheAdapter, TieredCacheAdapter
from slotline.caches.testing import CacheAdapterConformance
from tests.harness.waiting import await_until


class TestMemory(CacheAdapterConformance):
    async def make_cache(self):
        return InMemoryCacheAdapter()


@pytest.mark.leaves("keys", reason="entries with ttl 0 or None stay by intention")
class TestRedis(CacheAdapterConformance):
    @pytest.fixture(autouse=True)
    def _server(self, redis_url):
        self.url = redis_url

    async def make_cache(self):
        return RedisCacheAdapter(self.url)


@pytest.mark.leaves("keys", reason="entries with ttl 0 or None stay by intention")
class TestTiered(CacheAdapterConformance):
    @pytest.fixture(autouse=True)
    def _server(self, redis_url):
        self.url = redis_url

    async def make_cache(self):
        cache = TieredCacheAdapter(RedisCacheAdapter(self.url))
        cache._announcements.start()
        await await_until("copies can be used", lambda: cache._announcements.heard)
        return cache


class MinimalAdapter(BaseCacheAdapter):
    """What a user might write: six methods and nothing else."""

    def __init__(self):
        self._entries = {}
        self._runs = {}
        self._counted = {"hits": 0, "misses": 0}

    async def get_or_create(self, key, creator, ttl_seconds=3600):
        if self._fresh(key):
            self._counted["hits"] += 1
            return self._entries[key][0]
        if key not in self._runs:
            self._counted["misses"] += 1
            self._runs[key] = asyncio.create_task(self._run(key, creator, ttl_seconds))
        return await asyncio.shield(self._runs[key])

    async def _run(self, key, creator, ttl_seconds):
        try:
            value = creator()
            if asyncio.iscoroutine(value):
                value = await value
            await self.set(key, value, ttl_seconds)
            return value
        finally:
            del self._runs[key]

    def _fresh(self, key):
        return key in self._entries and self._entries[key][1] > time.monotonic()

    async def get(self, key):
        return self._entries[key][0] if self._fresh(key) else None

    async def set(self, key, value, ttl_seconds=3600):
        self._entries[key] = (value, time.monotonic() + (ttl_seconds or 1e9))

    async def invalidate(self, key):
        return self._entries.pop(key, None) is not None

    async def clear(self):
        self._entries.clear()

    def get_stats(self):
        rate = self._counted["hits"] / max(1, sum(self._counted.values()))
        return {**self._counted, "hit_rate": rate, "size": len(self._entries), "keys": list(self._entries)}


class TestMinimal(CacheAdapterConformance):
    async def make_cache(self):
        return MinimalAdapter()
