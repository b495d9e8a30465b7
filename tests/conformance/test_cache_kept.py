"""The last value, however old: where it is had, and when it goes; in memory and on Redis."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from slotline.caches import CacheAdapter, Hit, InMemoryCacheAdapter, RedisCacheAdapter, TieredCacheAdapter
from slotline.errors import InvalidOptionError
from tests.harness.waiting import await_until


@pytest.fixture(params=["memory", "redis", "tiered"])
async def cache(request: pytest.FixtureRequest) -> AsyncIterator[CacheAdapter]:
    made: CacheAdapter = InMemoryCacheAdapter()
    if request.param != "memory":
        made = shared = RedisCacheAdapter(request.getfixturevalue("redis_url"))
        made = TieredCacheAdapter(shared) if request.param == "tiered" else shared
    yield made
    await made.close()


async def ended(cache: CacheAdapter) -> None:
    async def gone() -> bool:
        return await cache.lookup("k", stale=True) is None

    await await_until("the entry has ended", gone)


async def test_a_value_that_has_ended_is_a_miss_and_can_still_be_had_as_the_last_one(cache: CacheAdapter) -> None:
    assert await cache.get_or_create("k", lambda: (1,), 0.2, keep_seconds=60) == (1,)
    await ended(cache)
    assert await cache.kept("k") == Hit((1,), stale=True)
    assert cache.sync.kept("k") == Hit((1,), stale=True)
    assert await cache.get("k") is None
    assert await cache.get_or_create("k", lambda: 2, 60, keep_seconds=60) == 2
    assert (await cache.kept("k")).value == 2  # type: ignore[union-attr] # it is there


async def test_what_was_not_asked_to_be_kept_or_is_removed_is_not_had(cache: CacheAdapter) -> None:
    await cache.set("k", 1, 60)
    assert await cache.kept("k") is None
    await cache.set("k", 1, 60, keep_seconds=60, tags=["t"])
    assert await cache.kept("k") is not None
    for remove in (lambda: cache.invalidate("k"), lambda: cache.invalidate_tag("t"), cache.clear):
        await cache.set("k", 1, 60, keep_seconds=60, tags=["t"])
        await remove()
        assert await cache.kept("k") is None
    await cache.set("k", 1, 60, keep_seconds=60)
    await cache.set("k", 2, 60)  # an older value than the last one serves nobody
    assert await cache.kept("k") is None


async def test_a_run_that_fails_leaves_the_last_value(cache: CacheAdapter) -> None:
    await cache.set("k", 1, 0.2, keep_seconds=60)
    await ended(cache)

    def fail() -> None:
        raise ValueError("no luck")

    with pytest.raises(ValueError, match="no luck"):
        await cache.get_or_create("k", fail, 60, keep_seconds=60)
    assert (await cache.kept("k")).value == 1  # type: ignore[union-attr] # it is there


@pytest.mark.parametrize("seconds", [-1, float("nan"), "60", True])
async def test_impossible_times_are_refused(cache: CacheAdapter, seconds: Any) -> None:
    with pytest.raises(InvalidOptionError, match="keep_seconds"):
        await cache.set("k", 1, keep_seconds=seconds)
