"""The cache in memory: time, bounds, grace, early refresh, errors, tags and bad input."""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time

import pytest

from slotline.caches import InMemoryCacheAdapter, memory
from slotline.errors import InvalidOptionError
from tests.harness.waiting import await_until


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    made = Clock()
    monkeypatch.setattr(memory, "monotonic", made)
    return made


class Runs:
    """A creator that counts its runs, in both forms."""

    def __init__(self, *outcomes):
        self.outcomes = outcomes
        self.count = 0

    def __call__(self):
        self.count += 1
        outcome = self.outcomes[min(self.count, len(self.outcomes)) - 1] if self.outcomes else self.count
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    async def later(self):
        await asyncio.sleep(0)
        return self()


async def obtain(face, cache, key, creator, *args, **options):
    if face == "async":
        return await cache.get_or_create(key, creator, *args, **options)
    return await asyncio.to_thread(cache.sync.get_or_create, key, creator, *args, **options)


@pytest.fixture(params=["async", "sync"])
def face(request):
    return request.param


async def settled(cache):
    await await_until("no run is under way", lambda: not cache._flights.live)


# -- time and bounds --------------------------------------------------------------------------------------------------


async def test_values_live_as_long_as_their_ttl_and_no_longer(clock, face):
    cache, runs = InMemoryCacheAdapter(), Runs()
    assert await obtain(face, cache, "k", runs, 10) == 1
    clock.now += 9.99
    assert await obtain(face, cache, "k", runs, 10) == 1
    clock.now += 0.02
    assert await cache.get("k") is None
    assert await obtain(face, cache, "k", runs, 10) == 2


@pytest.mark.parametrize("ttl", [0, None, 0.0])
async def test_no_ttl_means_no_expiry(clock, ttl):
    cache, runs = InMemoryCacheAdapter(), Runs()
    await cache.get_or_create("k", runs, ttl)
    clock.now += 1e9
    assert await cache.get_or_create("k", runs, ttl) == 1


async def test_the_default_ttl_is_the_caches_own(clock):
    for cache, life in [(InMemoryCacheAdapter(), 3600), (InMemoryCacheAdapter(default_ttl=5), 5)]:
        await cache.set("set", 1)
        await cache.get_or_create("made", lambda: 1)
        clock.now += life - 0.01
        assert [await cache.get("set"), await cache.get("made")] == [1, 1]
        clock.now += 0.02
        assert [await cache.get("set"), await cache.get("made")] == [None, None]


@pytest.mark.parametrize(
    "ttl", [-1, math.nan, math.inf, -math.inf, pytest.param(10**400, id="huge"), "5", True, [1], b"1"]
)
async def test_impossible_ttls_are_refused_everywhere(ttl):
    cache = InMemoryCacheAdapter()
    for attempt in (cache.get_or_create("k", lambda: 1, ttl), cache.set("k", 1, ttl)):
        with pytest.raises(InvalidOptionError, match="ttl_seconds"):
            await attempt
    with pytest.raises(InvalidOptionError, match="ttl_seconds"):
        cache.sync.get_or_create("k", lambda: 1, ttl)
    with pytest.raises(InvalidOptionError, match="default_ttl"):
        InMemoryCacheAdapter(default_ttl=ttl)


@pytest.mark.parametrize(
    "options",
    [
        {"max_size": 0},
        {"max_size": 1.5},
        {"max_size": True},
        {"grace_seconds": -1},
        {"grace_seconds": "1"},
        {"beta": -1},
        {"beta": math.nan},
        {"beta": 10**400},
        {"cache_errors": "true"},
        {"cache_errors": -1},
        {"jitter": 1},
        {"jitter": -0.1},
        {"jitter": "x"},
    ],
)
def test_impossible_options_are_refused_by_name(options):
    with pytest.raises(InvalidOptionError, match=next(iter(options))):
        InMemoryCacheAdapter(**options)


@pytest.mark.parametrize(
    "overrides", [{"tags": "one"}, {"tags": [""]}, {"tags": [1]}, {"grace_seconds": math.inf}, {"beta": "1"}]
)
async def test_impossible_options_of_a_call_are_refused_by_name(overrides):
    with pytest.raises(InvalidOptionError, match=next(iter(overrides))):
        await InMemoryCacheAdapter().get_or_create("k", lambda: 1, **overrides)


@pytest.mark.parametrize("key", ["", None, 1, b"k", ("a",)])
async def test_a_key_is_a_string_that_is_not_empty(key):
    cache = InMemoryCacheAdapter()
    for attempt in (cache.get_or_create(key, lambda: 1), cache.get(key), cache.set(key, 1), cache.invalidate(key)):
        with pytest.raises(InvalidOptionError, match="key"):
            await attempt


async def test_the_least_recently_used_entry_leaves_first():
    cache = InMemoryCacheAdapter(max_size=3)
    for key in "abc":
        await cache.set(key, key)
    await cache.get("a")
    await cache.get_or_create("b", lambda: 0)
    await cache.set("d", "d")
    assert set(cache.get_stats()["keys"]) == {"a", "b", "d"}
    await cache.get_or_create("e", lambda: "e")
    assert set(cache.get_stats()["keys"]) == {"b", "d", "e"}


async def test_nothing_is_left_of_a_hundred_thousand_expired_keys(clock):
    cache = InMemoryCacheAdapter(max_size=None)
    for number in range(100_000):
        cache.sync.set(f"k{number}", number, 10, tags=("t",) if number % 1000 == 0 else ())
    clock.now += 11
    for _ in range(101):
        cache.sync.set("new", 1)
    assert len(cache._entries) == 1  # each call has removed some on its way
    assert cache.get_stats()["size"] == 1
    assert len(cache._ends) < 150
    assert cache._tagged == {}
    assert cache._flights.live == {}


async def test_an_entry_that_is_set_again_and_again_takes_no_more_memory():
    cache = InMemoryCacheAdapter()
    for number in range(10_000):
        await cache.set("k", number)
    assert len(cache._ends) < 200


async def test_jitter_shortens_lives_by_different_shares(clock):
    cache = InMemoryCacheAdapter(default_ttl=100, jitter=0.5)
    for number in range(200):
        await cache.set(str(number), number)
    clock.now += 49.9
    assert cache.get_stats()["size"] == 200
    clock.now += 25
    assert 20 < cache.get_stats()["size"] < 180
    clock.now += 25.2
    assert cache.get_stats()["size"] == 0


# -- grace, early refresh, errors, tags -------------------------------------------------------------------------------


async def test_an_aged_value_is_served_at_once_while_one_caller_refreshes_it(clock):
    cache = InMemoryCacheAdapter(grace_seconds=100)
    go, runs = asyncio.Event(), Runs("new")

    async def create():
        await go.wait()
        return runs()

    await cache.set("k", "old", 10)
    clock.now += 11
    assert [await cache.get_or_create("k", create, 10) for _ in range(20)] == ["old"] * 20
    assert await cache.get("k") is None
    assert (await cache.lookup("k", stale=True))[:2] == ("old", True)
    go.set()
    await settled(cache)
    assert await cache.get_or_create("k", create, 10) == "new"
    assert runs.count == 1
    assert cache.get_stats()["stale"] == 21


async def test_a_blocking_caller_refreshes_an_aged_value_itself_and_the_others_get_the_old_one(clock):
    cache = InMemoryCacheAdapter(grace_seconds=100)
    started, go = threading.Event(), threading.Event()

    def create():
        started.set()
        assert go.wait(20)
        return "new"

    cache.sync.set("k", "old", 10)
    clock.now += 11
    refreshing = asyncio.create_task(asyncio.to_thread(cache.sync.get_or_create, "k", create))
    await asyncio.to_thread(started.wait, 20)
    assert cache.sync.get_or_create("k", create) == "old"
    assert await cache.get_or_create("k", create) == "old"
    go.set()
    assert await refreshing == "new"


async def test_when_refreshing_fails_the_old_value_serves_until_the_grace_ends(clock, face, caplog):
    cache, runs = InMemoryCacheAdapter(grace_seconds=100), Runs(ValueError("down"))
    cache.sync.set("k", "old", 10)
    clock.now += 11
    for _ in range(5):
        assert await obtain(face, cache, "k", runs, 10) == "old"
        await settled(cache)
    assert runs.count == 1  # it rests a moment after a failure
    clock.now += memory.REFRESH_PAUSE
    assert await obtain(face, cache, "k", runs, 10) == "old"
    await settled(cache)
    assert runs.count == 2
    assert caplog.text.count("refreshing 'k' failed") == 2
    clock.now += 100
    with pytest.raises(ValueError, match="down"):
        await obtain(face, cache, "k", runs, 10)


async def test_a_value_is_refreshed_early_the_likelier_the_dearer_it_is_and_the_nearer_its_end(clock):
    cache = InMemoryCacheAdapter(beta=1.0)
    runs = 0

    async def create():
        nonlocal runs
        runs += 1
        clock.now += 2  # it takes two seconds
        return runs

    await cache.get_or_create("k", create, 1000)
    for _ in range(200):
        await cache.get_or_create("k", create, 1000)
    await settled(cache)
    assert runs == 1  # the end is 500 creator runs away
    clock.now += 999
    for _ in range(50):
        assert await cache.get_or_create("k", create, 1000) in (1, 2)
        await settled(cache)
    assert runs == 2


async def test_errors_are_kept_only_on_request_and_for_their_own_time(clock, face):
    cache, runs = InMemoryCacheAdapter(), Runs(ValueError("one"), ValueError("two"), "three")
    for _ in range(3):
        with pytest.raises(ValueError, match="one"):
            await obtain(face, cache, "k", runs, 1000, cache_errors=5)
    assert await cache.get("k") is None
    assert (await cache.lookup("k")).error.args == ("one",)
    clock.now += 5.1
    with pytest.raises(ValueError, match="two"):
        await obtain(face, cache, "k", runs, 1000)
    assert await obtain(face, cache, "k", runs, 1000) == "three"
    assert runs.count == 3


async def test_a_tag_invalidates_all_that_carry_it(face):
    cache = InMemoryCacheAdapter()
    await cache.set("a", 1, tags=["users", "eu"])
    await obtain(face, cache, "b", lambda: 2, tags=["users"])
    await cache.set("c", 3, tags=["eu"])
    removed = await (
        cache.invalidate_tag("users") if face == "async" else asyncio.to_thread(cache.sync.invalidate_tag, "users")
    )
    assert removed == 2
    assert cache.get_stats()["keys"] == ["c"]
    assert await cache.invalidate_tag("users") == 0
    assert set(cache._tagged) == {"eu"}


@pytest.mark.parametrize("how", ["set", "invalidate", "invalidate_tag", "clear"])
async def test_a_run_under_way_does_not_overwrite_what_came_after_it_began(how):
    cache = InMemoryCacheAdapter()
    started, go = asyncio.Event(), asyncio.Event()

    async def outdated():
        started.set()
        await go.wait()
        return "old"

    early = asyncio.create_task(cache.get_or_create("k", outdated, tags=["t"]))
    await started.wait()
    arguments = {"set": ("k", "new"), "invalidate": ("k",), "invalidate_tag": ("t",), "clear": ()}[how]
    await getattr(cache, how)(*arguments)
    assert await cache.get_or_create("k", lambda: "new") == "new"
    go.set()
    assert await early == "old"  # it asked before
    assert await cache.get("k") == "new"


async def test_statistics_count_the_calls_and_name_the_keys():
    cache = InMemoryCacheAdapter()
    assert cache.get_stats() == {
        "hits": 0,
        "misses": 0,
        "hit_rate": 0.0,
        "size": 0,
        "keys": [],
        "stale": 0,
        "coalesced": 0,
        "errors": 0,
    }
    for _ in range(45):
        await cache.get_or_create("k", lambda: 1)
    await cache.get("k")
    await cache.get("nothing")
    stats = cache.get_stats()
    assert (stats["hits"], stats["misses"], stats["size"], stats["keys"]) == (45, 2, 1, ["k"])
    assert stats["hit_rate"] == pytest.approx(45 / 47)


async def test_every_caller_gets_the_same_object():
    cache, value = InMemoryCacheAdapter(), object()
    assert await cache.get_or_create("k", lambda: value) is value
    assert await cache.get_or_create("k", lambda: 0) is value


async def test_logs_name_what_is_created_and_no_values(caplog):
    caplog.set_level(logging.DEBUG)
    cache = InMemoryCacheAdapter()
    for _ in range(3):
        await cache.get_or_create("k", lambda: "secret")
    assert [record.getMessage() for record in caplog.records if record.name == "slotline.caches"] == ["creating 'k'"]


def test_hits_are_cheap_enough():
    cache = InMemoryCacheAdapter()
    table = {"k": 1}

    async def look_up(key):
        return table[key]

    async def best(function, *args):
        times = []
        for _ in range(7):
            began = time.perf_counter()
            for _ in range(20_000):
                await function(*args)
            times.append(time.perf_counter() - began)
        return min(times)

    async def compare():
        await cache.set("k", 1)
        return await best(cache.get_or_create, "k", dict) / await best(look_up, "k")

    assert asyncio.run(compare()) < 8  # about 3 on a quiet machine
