"""The cache on Redis in one process: grace, early refresh, kept errors, tags, invalidation and clearing."""

from __future__ import annotations

import asyncio

import pytest

from slotline.caches import RedisCacheAdapter
from slotline.errors import CacheRecursionError, CreatorFailedError
from tests.harness.waiting import await_until

LONG = 3600_000


@pytest.fixture
async def cache(redis_url):
    made = RedisCacheAdapter(redis_url)
    yield made
    await made.close()


async def settled(cache):
    await await_until("no run is under way", lambda: not cache._flights.live)


def entry_key(key):
    return f"slotline:{{cache:{key}}}:v"


# -- freshness --------------------------------------------------------------------------------------------------------


async def aged(cache, redis_client, key, value, grace_seconds=100):
    """Store a value whose TTL is over and whose grace has just begun."""
    await cache.set(key, value, 100, grace_seconds=grace_seconds)
    redis_client.pexpire(entry_key(key), grace_seconds * 1000 - 1)


@pytest.mark.parametrize("face", ["async", "sync"])
async def test_an_aged_value_is_served_while_one_caller_refreshes_it(cache, redis_client, face):
    await aged(cache, redis_client, "k", "old")
    runs = []

    def create():
        runs.append(1)
        return "new"

    if face == "async":
        assert (
            await asyncio.gather(*(cache.get_or_create("k", create, grace_seconds=100) for _ in range(20)))
            == ["old"] * 20
        )
        await settled(cache)
    else:
        assert await asyncio.to_thread(cache.sync.get_or_create, "k", create, grace_seconds=100) == "new"
    assert await cache.get("k") == "new"
    assert runs == [1]


async def test_a_reader_without_grace_of_its_own_keeps_to_the_entrys(cache, redis_client):
    await aged(cache, redis_client, "k", "old")
    assert await cache.get("k") is None
    assert (await cache.lookup("k", stale=True))[:2] == ("old", True)
    assert await cache.get_or_create("k", lambda: "new") == "old"
    await settled(cache)
    assert await cache.get("k") == "new"


async def test_only_one_process_refreshes(cache, redis_client, redis_url):
    await aged(cache, redis_client, "k", "old")
    go, runs = asyncio.Event(), []

    async def create():
        runs.append(1)
        await go.wait()
        return "new"

    other = RedisCacheAdapter(redis_url)
    assert await cache.get_or_create("k", create) == "old"
    await await_until("the refresh runs", lambda: runs)
    for _ in range(5):
        assert await other.get_or_create("k", create) == "old"
    await settled(other)
    go.set()
    await settled(cache)
    assert await other.get_or_create("k", create) == "new"
    assert runs == [1]
    await other.close()


@pytest.mark.parametrize("face", ["async", "sync"])
async def test_a_failing_refresh_leaves_the_old_value_and_rests(cache, redis_client, face, caplog):
    await aged(cache, redis_client, "k", "old")
    runs = []

    def create():
        runs.append(1)
        raise ValueError("down")

    for _ in range(5):
        if face == "async":
            assert await cache.get_or_create("k", create) == "old"
            await settled(cache)
        else:
            assert await asyncio.to_thread(cache.sync.get_or_create, "k", create) == "old"
    assert runs == [1]
    assert caplog.text.count("refreshing 'k' failed") == 1
    assert (await cache.lookup("k", stale=True)).value == "old"


async def test_a_value_is_refreshed_early_near_its_end(cache, redis_client):
    runs = []

    async def create():
        runs.append(1)
        await asyncio.sleep(0.05)
        return len(runs)

    await cache.get_or_create("k", create, 1000, beta=1.0)
    for _ in range(20):
        assert await cache.get_or_create("k", create, 1000, beta=1.0) == 1
    redis_client.pexpire(entry_key("k"), 5000)
    for _ in range(50):
        await cache.get_or_create("k", create, 1000, beta=300.0)
    await settled(cache)
    assert runs == [1, 1]
    assert redis_client.pttl(entry_key("k")) > 900_000


async def test_errors_are_kept_on_request_for_their_own_time(cache, redis_client, redis_url):
    runs = []

    def create():
        runs.append(1)
        raise KeyError("gone", 3)

    for _ in range(3):
        with pytest.raises(KeyError) as raised:
            await cache.get_or_create("k", create, 1000, cache_errors=50)
        assert raised.value.args == ("gone", 3)
    assert runs == [1]
    assert 45_000 < redis_client.pttl(entry_key("k")) <= 50_000
    assert await cache.get("k") is None
    other = RedisCacheAdapter(redis_url)
    with pytest.raises(KeyError):
        await asyncio.to_thread(other.sync.get_or_create, "k", create)
    await other.close()
    assert runs == [1]


async def test_an_exception_that_cannot_be_made_again_keeps_its_name_and_text(cache):
    class LocalError(Exception):
        def __init__(self, *, code):
            super().__init__(f"code {code}")

    def create():
        raise LocalError(code=7)

    with pytest.raises(LocalError):
        await cache.get_or_create("k", create, cache_errors=50)
    with pytest.raises(CreatorFailedError, match=r"LocalError: code 7"):
        await cache.get_or_create("k", create)


async def test_a_creator_that_asks_for_its_own_value_is_told(cache):
    async def create():
        return await cache.get_or_create("k", create)

    with pytest.raises(CacheRecursionError):
        await asyncio.wait_for(cache.get_or_create("k", create), 20)


# -- tags, invalidation, clear ----------------------------------------------------------------------------------------


async def test_a_tag_invalidates_all_that_carry_it_in_batches(cache, redis_client, redis_url):
    for number in range(1200):
        cache_tags = ["all", "even"] if number % 2 == 0 else ["all"]
        await cache.set(f"k{number}", number, tags=cache_tags)
    await cache.get_or_create("made", lambda: 1, tags=["even"])
    other = RedisCacheAdapter(redis_url)
    assert await other.invalidate_tag("even") == 601
    assert await cache.get("k1") == 1
    assert [await cache.get("k0"), await cache.get("made")] == [None, None]
    assert await asyncio.to_thread(other.sync.invalidate_tag, "all") == 600
    assert redis_client.keys() == []
    await other.close()


async def test_a_tag_forgets_entries_that_have_ended(cache, redis_client):
    await cache.set("short", 1, 0.05, tags=["t"])
    name = "slotline:{cache-tag:t}"
    redis_client.zadd(name, {"slotline:{cache:old}": 1})
    await cache.set("k", 1, tags=["t"])
    assert b"slotline:{cache:old}" not in redis_client.zrange(name, 0, -1)
    assert redis_client.pttl(name) > 0


async def test_a_tag_knows_an_entry_as_long_as_its_last_value_can_be_had(cache, redis_client):
    await cache.set("set", 1, 60, tags=["of set"], keep_seconds=86_400)
    await cache.get_or_create("made", lambda: 1, 60, tags=["of made"], keep_seconds=86_400)
    now = redis_client.time()[0]
    for key in ("set", "made"):
        ((_, until_us),) = redis_client.zrange(f"slotline:{{cache-tag:of {key}}}", 0, -1, withscores=True)
        assert until_us / 1e6 - now >= redis_client.ttl(f"slotline:{{cache:{key}}}:k")


async def test_a_value_whose_tag_cannot_be_noted_is_not_stored(cache, redis_client, caplog):
    redis_client.set("slotline:{cache-tag:t}", "of another kind", px=LONG)
    assert await cache.get_or_create("k", lambda: "made", tags=["t"]) == "made"
    await cache.set("s", "set", tags=["t"])
    assert [await cache.get("k"), await cache.get("s")] == [None, None]
    assert redis_client.keys() == [b"slotline:{cache-tag:t}"]
    assert caplog.text.count("was refused") == 1


@pytest.mark.parametrize("how", ["set", "invalidate", "invalidate_tag", "clear"])
@pytest.mark.parametrize("where", ["here", "elsewhere"])
async def test_a_run_under_way_does_not_overwrite_what_came_after_it_began(cache, redis_url, how, where):
    started, go = asyncio.Event(), asyncio.Event()

    async def outdated():
        started.set()
        await go.wait()
        return "old"

    other = cache if where == "here" else RedisCacheAdapter(redis_url)
    early = asyncio.create_task(cache.get_or_create("k", outdated, tags=["t"]))
    await started.wait()
    arguments = {"set": ("k", "new"), "invalidate": ("k",), "invalidate_tag": ("t",), "clear": ()}[how]
    await getattr(other, how)(*arguments)
    assert await other.get_or_create("k", lambda: "new") == "new"
    go.set()
    assert await early == "old"
    assert await cache.get("k") == "new"
    await other.close()


async def test_clear_takes_only_its_own_keys_and_does_not_block_the_server(cache, redis_client, redis_server):
    redis_client.mset(
        {f"foreign:{number}": 1 for number in range(100)} | {"slotline:{pool:x}:slots": 1, "slotline:{cachet:x}:v": 1}
    )
    await asyncio.gather(*(cache.set(f"k{number}", number, tags=["t"]) for number in range(3000)))
    with redis_server.counting() as commands:
        await cache.clear()
    assert redis_client.dbsize() == 102
    redis_client.flushdb()
    assert commands["keys"] == commands["del"] == commands["flushdb"] == 0
    assert commands["unlink"] == 3001
    assert commands["scan"] >= 6


async def test_stored_keys_lists_what_is_on_the_server(cache, redis_url):
    for number in range(30):
        await cache.set(f"k{number}", 1)
    other = RedisCacheAdapter(redis_url)
    assert sorted(await other.stored_keys()) == sorted(f"k{number}" for number in range(30))
    assert len(await asyncio.to_thread(other.sync.stored_keys, 10)) == 10
    assert other.get_stats()["keys"] == []  # its own view
    assert cache.get_stats()["size"] == 30
    await other.close()
