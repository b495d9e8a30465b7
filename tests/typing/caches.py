"""The caches as a user writes them; checked by ``mypy --strict``, never run."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any, assert_type

from pydantic import BaseModel

from slotline.caches import (
    BaseCacheAdapter,
    CacheAdapter,
    EntryOptions,
    Hit,
    InMemoryCacheAdapter,
    RedisCacheAdapter,
    Serializer,
    TieredCacheAdapter,
    cached,
    default_cache,
)
from slotline.caches.testing import CacheAdapterConformance
from slotline.keys import KeyTemplate, call_key


class Account(BaseModel):
    id: int


memory = InMemoryCacheAdapter(default_ttl=60, max_size=1000, grace_seconds=5, beta=1.0, cache_errors=2.5, jitter=0.1)
shared = RedisCacheAdapter("redis://localhost:6379", 3600, 10, serializer=Serializer(compress_above=None))
caches: list[BaseCacheAdapter] = [memory, shared, TieredCacheAdapter(shared, local_ttl=5)]
assert_type(default_cache(), CacheAdapter)


@cached(60, key="account:{number}", cache=memory, tags=["accounts"])
async def load(number: int, *, fresh: bool = False) -> Account:
    return Account(id=number)


@cached()
def double(number: int) -> int:
    return number * 2


class Repository:
    @cached(ttl=None)
    async def find(self, number: int) -> Account:
        return Account(id=number)


async def awaiting() -> None:
    assert_type(await load(7, fresh=True), Account)
    pending: Coroutine[Any, Any, Account] = load(7)
    await pending
    assert_type(double(2), int)
    assert_type(await Repository().find(7), Account)
    assert_type(load.key_for(7), str)
    await load.invalidate(7)
    await Repository().find.invalidate(7)
    options = memory.entry_options(30, tags=("a",), own_errors=(KeyError,))
    assert_type(options, EntryOptions)
    await memory.get_or_create("k", lambda: 1, ttl_seconds=None, grace_seconds=5, returns=Account)
    await shared.set("k", Account(id=1), 5, returns=Account)
    assert_type(await shared.lookup("k", returns=Account, stale=True), Hit | None)
    assert_type(await shared.invalidate("k"), bool)
    assert_type(await shared.invalidate_tag("t"), int)
    assert_type(await shared.stored_keys(limit=5), list[str])


def blocking() -> None:
    assert_type(shared.sync.invalidate("k"), bool)
    assert_type(memory.sync.get_stats(), dict[str, Any])
    assert_type(call_key("f", double, (1,), {}, version=2), str)
    assert_type(KeyTemplate("a:{number}").for_call(load, (1,), {}), str)


class TestMemory(CacheAdapterConformance):
    async def make_cache(self) -> BaseCacheAdapter:
        return InMemoryCacheAdapter()
