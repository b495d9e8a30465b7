"""The peers of the cache benchmark, each as ``async get_or_create(key, creator)`` on one Redis or in memory."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

Create = Callable[[], Awaitable[Any]]
GetOrCreate = Callable[[str, Create], Awaitable[Any]]


def installed(name: str) -> bool:
    """Return whether a peer can be imported."""
    return importlib.util.find_spec(name.partition(".")[0]) is not None


@asynccontextmanager
async def slotline_memory(_url: str):
    from slotline.caches import InMemoryCacheAdapter

    yield InMemoryCacheAdapter().get_or_create


@asynccontextmanager
async def slotline_redis(url: str):
    from slotline.caches import RedisCacheAdapter

    cache = RedisCacheAdapter(url)
    yield cache.get_or_create
    await cache.close()


@asynccontextmanager
async def slotline_tiered(url: str):
    from slotline.caches import RedisCacheAdapter, TieredCacheAdapter

    cache = TieredCacheAdapter(RedisCacheAdapter(url))
    yield cache.get_or_create
    await cache.close()


@asynccontextmanager
async def taskiq_flow_memory(_url: str):
    from taskiq_flow.cache import InMemoryCacheAdapter

    cache = InMemoryCacheAdapter()
    yield lambda key, create: cache.get_or_create(key, create, ttl_seconds=3600)


@asynccontextmanager
async def taskiq_flow_redis(url: str):
    from taskiq_flow.cache import RedisCacheAdapter

    logging.getLogger("taskiq_flow").setLevel(logging.CRITICAL)
    cache = RedisCacheAdapter(redis_url=url)
    yield lambda key, create: cache.get_or_create(key, create, ttl_seconds=3600)


def _decorating(decorate: Callable[[Any], Any], now: dict[str, Create]) -> GetOrCreate:
    """Make ``get_or_create`` of a peer that only has a decorator: one decorated function, its key an argument."""

    async def compute(key: str) -> Any:
        return await now[key]()

    decorated = decorate(compute)

    async def get_or_create(key: str, create: Create) -> Any:
        now[key] = create
        return await decorated(key)

    return get_or_create


@asynccontextmanager
async def cashews_memory(_url: str):
    from cashews import Cache

    cache = Cache()
    cache.setup("mem://")
    yield _decorating(cache.cache(ttl=3600, key="{key}", lock=True), {})


@asynccontextmanager
async def cashews_redis(url: str):
    from cashews import Cache

    cache = Cache()
    cache.setup(url)
    yield _decorating(cache.cache(ttl=3600, key="{key}", lock=True), {})
    await cache.close()


@asynccontextmanager
async def aiocache_memory(_url: str):
    from aiocache import cached_stampede

    yield _decorating(cached_stampede(lease=10, ttl=3600, key_builder=lambda _function, key: key), {})


@asynccontextmanager
async def aiocache_redis(url: str):
    from urllib.parse import urlsplit

    from aiocache import RedisCache, cached_stampede
    from aiocache.serializers import JsonSerializer

    where: dict[str, Any] = {
        "endpoint": urlsplit(url).hostname,
        "port": urlsplit(url).port,
        "serializer": JsonSerializer(),
    }
    decorate = cached_stampede(lease=10, ttl=3600, key_builder=lambda _function, key: key, cache=RedisCache, **where)
    yield _decorating(decorate, {})


@asynccontextmanager
async def py_cachify_redis(url: str):
    import redis
    import redis.asyncio
    from py_cachify import init_cachify

    client = redis.asyncio.from_url(url)
    cachify = init_cachify(sync_client=redis.from_url(url), async_client=client, is_global=False)
    yield _decorating(cachify.cached(key="{key}", ttl=3600), {})
    await client.aclose()


IN_MEMORY = {
    "slotline memory": ("slotline", slotline_memory),
    "slotline tiered": ("slotline", slotline_tiered),
    "taskiq-flow": ("taskiq_flow", taskiq_flow_memory),
    "cashews lock": ("cashews", cashews_memory),
    "aiocache stampede": ("aiocache", aiocache_memory),
}
ON_REDIS = {
    "slotline": ("slotline", slotline_redis),
    "taskiq-flow": ("taskiq_flow", taskiq_flow_redis),
    "cashews lock": ("cashews", cashews_redis),
    "aiocache stampede": ("aiocache", aiocache_redis),
    "py-cachify": ("py_cachify", py_cachify_redis),
}
