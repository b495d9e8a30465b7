"""The cache on Redis in one process: what is sent, what is stored, what comes back, and how it is built."""

from __future__ import annotations

import asyncio
import logging
import math
import threading
from collections import Counter
from dataclasses import dataclass

import pytest
from pydantic import BaseModel

from slotline.caches import InMemoryCacheAdapter, RedisCacheAdapter, Serializer, cached, default_cache
from slotline.errors import InvalidOptionError, SerializationError
from slotline.settings import configure
from slotline.stores import MemoryStore, RedisStore
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


class User(BaseModel):
    id: int
    tags: set[str] = set()


@dataclass
class Point:
    x: int
    y: tuple[int, ...]


# -- what is sent -----------------------------------------------------------------------------------------------------


def names(sent):
    return Counter(command.name for command in sent if command.name not in {"client", "hello", "auth", "select"})


async def warmed(cache):
    """Open the connections and load the scripts, so that a recording sees only what a call sends."""
    await cache.get_or_create("warm", lambda: 1)
    await asyncio.to_thread(cache.sync.get, "warm")


async def test_a_hit_is_one_get(cache, redis_server):
    await warmed(cache)
    with redis_server.recording() as sent:
        for _ in range(5):
            assert await cache.get_or_create("warm", lambda: 2) == 1
        assert await asyncio.to_thread(cache.sync.get_or_create, "warm", lambda: 2) == 1
    assert names(sent) == {"get": 6}


async def test_a_miss_is_a_get_a_claim_and_a_fill(cache, redis_server):
    await warmed(cache)
    with redis_server.recording() as sent:
        await cache.get_or_create("k", lambda: 1)
    assert names(sent) == {"get": 1, "evalsha": 2}


async def test_a_thousand_callers_of_one_missing_key_send_three_commands(cache, redis_server):
    await warmed(cache)
    runs = []

    async def create():
        runs.append(1)
        await asyncio.sleep(0.1)
        return "made"

    with redis_server.recording() as sent:
        values = await asyncio.gather(*(cache.get_or_create("k", create) for _ in range(1000)))
    assert values == ["made"] * 1000
    assert runs == [1]
    assert names(sent) == {"get": 1, "evalsha": 2}
    assert len({command.client for command in sent}) <= 4


async def test_a_thousand_callers_of_one_key_that_is_there_share_a_read(cache, redis_server):
    await warmed(cache)
    with redis_server.recording() as sent:
        assert await asyncio.gather(*(cache.get_or_create("warm", lambda: 2) for _ in range(1000))) == [1] * 1000
    assert names(sent) == {"get": 1}


async def test_a_cancelled_reader_does_not_take_the_others_along(cache):
    await warmed(cache)
    callers = [asyncio.create_task(cache.get_or_create("warm", lambda: 2)) for _ in range(5)]
    await asyncio.sleep(0)
    callers[0].cancel()
    outcomes = await asyncio.gather(*callers, return_exceptions=True)
    assert isinstance(outcomes[0], asyncio.CancelledError)
    assert outcomes[1:] == [1] * 4


async def test_setting_and_invalidating_are_one_command(cache, redis_server):
    await warmed(cache)
    await cache.set("k", 1)
    await cache.invalidate("k")
    with redis_server.recording() as sent:
        await cache.set("k", 1)
        await cache.invalidate("k")
    assert names(sent) == {"evalsha": 2}


async def test_nothing_but_the_entry_is_left_and_it_ends_by_the_servers_clock(cache, redis_client):
    await cache.get_or_create("k", lambda: 1, 50)
    await cache.set("s", 1, 50)
    assert sorted(redis_client.keys()) == [entry_key("k").encode(), entry_key("s").encode()]
    for key in ("k", "s"):
        assert 45_000 < redis_client.pttl(entry_key(key)) <= 50_000


@pytest.mark.leaves("keys", reason="entries with ttl 0 or None stay by intention")
async def test_no_ttl_means_no_expiry(cache, redis_client):
    await cache.set("zero", 1, 0)
    await cache.get_or_create("none", lambda: 1, None)
    assert [redis_client.pttl(entry_key(key)) for key in ("zero", "none")] == [-1, -1]


async def test_the_longest_life_is_as_long_as_a_server_can_tell(cache, redis_client):
    options = {"ttl_seconds": 1e308, "grace_seconds": 1e308, "keep_seconds": 1e308, "tags": ["t"]}
    await cache.set("set", 1, **options)
    await cache.get_or_create("made", lambda: 2, **options)
    assert [await cache.get("set"), await cache.get("made")] == [1, 2]
    assert redis_client.pttl("slotline:{cache:made}:v") > 0


async def test_a_user_may_bring_a_store_a_namespace_and_a_default_ttl(redis_url, redis_client):
    store = RedisStore(redis_url, prefix="app")
    one = RedisCacheAdapter(store=store, namespace="one", default_ttl=50)
    two = RedisCacheAdapter(store=store, namespace="two")
    await one.set("k", 1)
    await two.set("k", 2)
    assert [await one.get("k"), await two.get("k")] == [1, 2]
    assert 45_000 < redis_client.pttl("app:{one:k}:v") <= 50_000
    await one.clear()
    assert [await one.get("k"), await two.get("k")] == [None, 2]
    await one.close()
    assert await two.get("k") == 2  # the store is the user's
    await store.close()


# -- values -----------------------------------------------------------------------------------------------------------


async def test_later_callers_get_the_types_that_the_creator_returned(cache, redis_url):
    value = {"t": (1, 2), 3: {4, 5}, "nan": math.nan, "b": b"\xff"}
    assert await cache.get_or_create("k", lambda: value) is value
    other = RedisCacheAdapter(redis_url)
    again = await other.get_or_create("k", dict)
    assert repr(again) == repr(value)
    await other.close()


async def test_models_come_back_by_their_declared_type(cache, redis_url):
    users = [User(id=1, tags={"a"})]
    await cache.get_or_create("users", lambda: users, returns=list[User])
    assert await cache.get_or_create("users", list, returns=list[User]) == users
    assert await cache.get("users", returns=list[User]) == users
    assert await cache.get("users") is None
    assert await asyncio.to_thread(cache.sync.get, "users", returns=list[User]) == users


async def test_a_value_that_cannot_be_stored_reaches_its_callers_and_is_named_once(cache, caplog):
    values = await asyncio.gather(*(cache.get_or_create("k", object) for _ in range(3)))
    assert len(set(values)) == 1
    await cache.get_or_create("k", object)
    assert caplog.text.count("A value of type object cannot be cached") == 1
    with pytest.raises(SerializationError, match="object"):
        await cache.set("k", object())


async def test_a_value_that_is_too_large_reaches_its_callers(redis_url, caplog):
    cache = RedisCacheAdapter(redis_url, serializer=Serializer(max_value_bytes=1000, compress_above=None))
    assert await cache.get_or_create("k", lambda: "x" * 2000) == "x" * 2000
    assert await cache.get("k") is None
    assert "max_value_bytes=1000" in caplog.text
    await cache.close()


@pytest.mark.parametrize("raw", [b"", b"garbage", b"\x02\x00{}", b"\x01\x00{", b"\x80\x04N."])
async def test_foreign_bytes_under_our_key_are_a_miss_logged_once_and_replaced(cache, redis_client, raw, caplog):
    redis_client.set(entry_key("k"), raw, px=LONG)
    assert await cache.get("k") is None
    assert await cache.get_or_create("k", lambda: "made") == "made"
    assert await cache.get("k") == "made"
    assert caplog.text.count("is taken for a miss") == 1


async def test_a_key_of_another_kind_under_our_name_costs_one_log_line(cache, redis_client, caplog):
    redis_client.rpush(entry_key("k"), 1)
    redis_client.pexpire(entry_key("k"), LONG)
    assert await cache.get_or_create("k", lambda: "made") == "made"
    assert await cache.get_or_create("k", lambda: "again") == "again"
    assert caplog.text.count("WRONGTYPE") == 2  # a plain GET and a script say it in different words
    await cache.set("other", 1)
    assert await cache.get("other") == 1


async def test_signed_entries_of_others_are_misses(redis_url):
    signed = RedisCacheAdapter(redis_url, serializer=Serializer(signing_key=b"sixteen bytes aa"))
    plain = RedisCacheAdapter(redis_url)
    await plain.set("k", "forged")
    assert await signed.get("k") is None
    assert await signed.get_or_create("k", lambda: "mine") == "mine"
    assert await signed.get("k") == "mine"
    assert await plain.get("k") is None
    await signed.close()
    await plain.close()


@pytest.mark.parametrize("key", ["{", "}", "}{", "{}", "a}b{c", "\ud800", "é" * 300, "x" * 5000, "\x00", "*?[a]\\"])
async def test_any_text_is_a_key(cache, key, redis_client):
    assert await cache.get_or_create(key, lambda: 1) == 1
    assert await cache.get(key) == 1
    await cache.set(key, 2, tags=[key])
    assert await cache.invalidate_tag(key) == 1
    assert await cache.invalidate(key) is False
    await cache.set(key, 3)
    await cache.clear()
    assert redis_client.keys() == []


# -- threads, construction, defaults ----------------------------------------------------------------------------------


async def test_threads_and_the_loop_share_one_run(cache):
    started, go, runs = threading.Event(), threading.Event(), []

    def create():
        runs.append(1)
        started.set()
        assert go.wait(20)
        return "made"

    threads = [asyncio.create_task(asyncio.to_thread(cache.sync.get_or_create, "k", create)) for _ in range(3)]
    await asyncio.to_thread(started.wait, 20)
    loop = [asyncio.create_task(cache.get_or_create("k", create)) for _ in range(3)]
    await await_until("all of them wait", lambda: cache.get_stats()["coalesced"] == 5)
    go.set()
    assert await asyncio.gather(*threads, *loop) == ["made"] * 6
    assert runs == [1]


@pytest.mark.parametrize(
    "options",
    [
        {"lock_timeout": 0},
        {"lock_timeout": -1},
        {"lock_timeout": "10"},
        {"lock_timeout": math.nan},
        {"default_ttl": -1},
        {"redis_url": "http://localhost"},
        {"redis_url": 5},
        {"namespace": "a:b"},
        {"namespace": "{"},
        {"namespace": ""},
        {"on_store_error": "wait"},
        {"grace_seconds": -1},
        {"store": MemoryStore()},
    ],
)
def test_impossible_options_are_refused_by_name(options):
    option = next(iter(options))
    with pytest.raises(InvalidOptionError, match="url" if option == "redis_url" else option):
        RedisCacheAdapter(**{"redis_url": "redis://localhost", **options} if option != "store" else options)


def test_without_a_shared_store_it_says_what_to_configure():
    with pytest.raises(InvalidOptionError, match="configure"):
        RedisCacheAdapter()


async def test_the_default_cache_follows_the_settings(redis_url):
    configure()
    assert isinstance(default_cache(), InMemoryCacheAdapter)
    assert default_cache() is default_cache()
    configure(redis_url=redis_url)
    assert isinstance(default_cache(), RedisCacheAdapter)

    @cached(60)
    async def double(number: int) -> Point:
        return Point(number, (number,))

    assert await double(2) == await double(number=2) == Point(2, (2,))
    assert await default_cache().stored_keys() == [double.key_for(2)]
    assert await double.invalidate(2) is True
    await default_cache().store.close()


async def test_statistics_are_local_and_complete(cache, caplog):
    caplog.set_level(logging.DEBUG)
    await cache.get_or_create("k", lambda: 1)
    await cache.get_or_create("k", lambda: 1)
    await cache.get("nothing")
    stats = cache.get_stats()
    assert {name: stats[name] for name in ("hits", "misses", "size", "keys", "errors")} == {
        "hits": 1,
        "misses": 2,
        "size": 1,
        "keys": ["k"],
        "errors": 0,
    }
    assert [record.getMessage() for record in caplog.records if record.name == "slotline.caches"] == ["creating 'k'"]
