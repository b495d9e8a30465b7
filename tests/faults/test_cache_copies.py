"""Copies in memory, whatever becomes of what tells of changes: none is used that may be an old one."""

from __future__ import annotations

import asyncio
import os
import threading

import pytest

from slotline.caches import RedisCacheAdapter, TieredCacheAdapter
from slotline.stores import RedisStore
from tests.harness.waiting import await_until


async def warmed(cache: TieredCacheAdapter) -> None:
    await cache.get("warm")
    await await_until("copies can be used", lambda: cache._announcements.heard)


async def sees(cache: TieredCacheAdapter, value: object) -> bool:
    return await cache.get_or_create("k", lambda: 0) == value


async def test_copies_in_memory_are_dropped_when_announcements_may_have_been_missed(own_redis):
    tiered, other = TieredCacheAdapter(RedisCacheAdapter(own_redis.url)), RedisCacheAdapter(own_redis.url)
    await warmed(tiered)
    await other.set("k", "old")
    assert await tiered.get_or_create("k", lambda: 0) == "old"
    with own_redis.client() as client:
        client.execute_command("CLIENT KILL TYPE pubsub")
        client.set("slotline:{cache:k}:v", b"\x01\x00" + b'"new"', px=600_000)  # nobody is told
    await await_until("it is seen", lambda: sees(tiered, "new"))
    await tiered.close()
    await other.close()


async def test_copies_in_memory_hear_of_changes_elsewhere(redis_url):
    one, two = (TieredCacheAdapter(RedisCacheAdapter(redis_url)) for _ in range(2))
    for cache in (one, two):
        await warmed(cache)
    for change, seen in [
        (lambda: one.set("k", "new", tags=["t"]), "new"),
        (lambda: one.invalidate("k"), 0),
        (lambda: one.set("k", "tagged", tags=["t"]), "tagged"),
        (lambda: one.invalidate_tag("t"), 0),
        (lambda: one.set("k", "last"), "last"),
        (one.clear, 0),
    ]:
        await two.get_or_create("k", lambda: 0)
        await two.get_or_create("k", lambda: 0)
        await change()
        await await_until(f"{seen!r} is seen", lambda seen=seen: sees(two, seen))
    before = two.get_stats()["local_hits"]
    assert await two.get_or_create("k", lambda: 1) == 0
    assert two.get_stats()["local_hits"] == before + 1
    await one.close()
    await two.close()


async def test_copies_are_used_again_when_the_server_is_back(own_redis):
    tiered, other = TieredCacheAdapter(RedisCacheAdapter(own_redis.url)), RedisCacheAdapter(own_redis.url)
    await warmed(tiered)
    await other.set("k", "old")
    assert await tiered.get_or_create("k", lambda: 0) == "old"
    own_redis.kill()
    await await_until("no copies are used", lambda: not tiered._announcements.heard)
    own_redis.start()
    await other.set("k", "new")
    assert await tiered.get_or_create("k", lambda: 0) == "new"
    await warmed(tiered)
    await tiered.get_or_create("k", lambda: 0)
    await other.set("k", "newer")
    await await_until("it is seen", lambda: sees(tiered, "newer"))
    await tiered.close()
    await other.close()


async def test_copies_are_used_again_when_sentinels_have_chosen_another_master(own_sentinels):
    store = RedisStore(own_sentinels.url, timeout=1, retries=30)
    tiered, other = TieredCacheAdapter(RedisCacheAdapter(store=store)), RedisCacheAdapter(own_sentinels.url)
    await warmed(tiered)
    own_sentinels.first.kill()
    await await_until("no copies are used", lambda: not tiered._announcements.heard)
    await await_until("the replica has taken over", lambda: own_sentinels.master is own_sentinels.second, timeout=30)
    await tiered.set("k", "old", 60)
    await warmed(tiered)
    assert await tiered.get_or_create("k", lambda: 0) == "old"
    await other.set("k", "new", 60)
    await await_until("it is seen", lambda: sees(tiered, "new"))
    await tiered.close()
    await other.close()
    await store.close()


def test_a_forked_child_uses_no_copies_before_it_hears_of_changes_itself(redis_url):
    store = RedisStore(redis_url)
    tiered, other = TieredCacheAdapter(RedisCacheAdapter(store=store)), RedisCacheAdapter(redis_url)

    async def uses_a_copy_of(value: str) -> bool:
        before = tiered.get_stats()["local_hits"]
        assert await tiered.get_or_create("k", lambda: 0) == value
        return tiered.get_stats()["local_hits"] > before

    async def use(value: str) -> None:
        await await_until(f"a copy of {value!r} is used", lambda: uses_a_copy_of(value))

    other.sync.set("k", "old", 60)
    asyncio.run(use("old"))
    changed, change = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.read(changed, 1)
            asyncio.run(use("new"))
            status = 0
        finally:
            os._exit(status)
    other.sync.set("k", "new", 60)
    os.write(change, b".")
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    for descriptor in (changed, change):
        os.close(descriptor)
    for cache in (tiered, other):
        cache.sync.close()
    store.sync.close()


async def test_a_cache_that_can_have_no_thread_for_a_moment_listens_later(redis_url, monkeypatch):
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    tiered = TieredCacheAdapter(RedisCacheAdapter(redis_url))
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse)
        with pytest.raises(RuntimeError, match="start new thread"):
            await tiered.get("k")
    await warmed(tiered)
    await tiered.close()


@pytest.mark.parametrize("face", ["async", "sync"])
async def test_a_cache_that_is_closed_uses_no_copies_and_hears_again_when_it_is_used(redis_url, face):
    store = RedisStore(redis_url)
    tiered = TieredCacheAdapter(RedisCacheAdapter(store=store))
    for _ in range(2):
        await warmed(tiered)
        await tiered.get_or_create("k", lambda: 0, 60)
        await (tiered.close() if face == "async" else asyncio.to_thread(tiered.sync.close))
        assert not tiered._announcements.heard
    await store.close()
