"""Creators in several processes that wait for each other's values are told, and nobody else is."""

from __future__ import annotations

import asyncio
import threading

import pytest

from slotline.caches import InMemoryCacheAdapter, RedisCacheAdapter
from slotline.caches._circles import Needs
from slotline.errors import CacheRecursionError
from tests.harness.waiting import await_until, wait_until


@pytest.fixture
async def caches(redis_url):
    """Three caches, each with flights, connections and wake-ups of its own, as in three processes."""
    made = [RedisCacheAdapter(redis_url, lock_timeout=2) for _ in range(3)]
    yield made
    for cache in made:
        await await_until("no run is under way", lambda cache=cache: not cache._flights.live)
        await cache.close()


def creator(cache, other, both, value):
    """A creator of ``value`` that waits for the entry ``other``, once all of ``both`` have begun."""

    async def create():
        await both.wait()
        return [value, await cache.get_or_create(other, lambda: "not made by its own creator")]

    return create


@pytest.mark.parametrize("count", [2, 3])
async def test_creators_in_a_circle_of_processes_are_told(caches, redis_client, count):
    all_began = asyncio.Barrier(count)
    jobs = [
        cache.get_or_create(f"k{at}", creator(cache, f"k{(at + 1) % count}", all_began, at))
        for at, cache in enumerate(caches[:count])
    ]
    outcomes = await asyncio.wait_for(asyncio.gather(*jobs, return_exceptions=True), 60)
    assert {type(outcome) for outcome in outcomes} == {CacheRecursionError}  # a failure is everyone's who waits for it
    await await_until("nothing is noted any more", lambda: not redis_client.keys("*:n"))


async def test_only_the_creator_that_closes_a_circle_is_told_and_it_may_go_on(caches, monkeypatch):
    one, two, _ = caches
    innocents_wait, go = asyncio.Event(), asyncio.Event()
    close_a_circle = Needs.close_a_circle

    def looked(needs, seconds):
        found = yield from close_a_circle(needs, seconds)
        if needs._cache is two:  # whoever looks while the other one notes is told, too
            go.set()
        return found

    monkeypatch.setattr(Needs, "close_a_circle", looked)

    async def careful():
        await go.wait()
        try:
            return await one.get_or_create("b", lambda: "not made by its own creator")
        except CacheRecursionError as error:
            return f"a without {error.key}"

    async def patient():
        await innocents_wait.wait()
        return ["b", await two.get_or_create("a", lambda: "not made by its own creator")]

    a = asyncio.create_task(one.get_or_create("a", careful))
    b = asyncio.create_task(two.get_or_create("b", patient))
    await await_until("both have begun", lambda: one._flights.flying("a") and two._flights.flying("b"))
    innocent = [asyncio.create_task(cache.get_or_create("b", lambda: "wrong")) for cache in caches for _ in range(3)]
    doorbells = one.store.loop_wakeups
    await await_until("innocent ones wait in the careful one's process, too", lambda: _waits(doorbells))
    innocents_wait.set()
    found = await asyncio.wait_for(asyncio.gather(a, b, *innocent), 60)
    assert found == ["a without b", *[["b", "a without b"]] * 10]


def _waits(doorbells):
    return any(bell._callbacks for bell in doorbells._bells.values())


async def test_waiting_for_a_value_that_needs_nothing_of_ones_own_is_no_circle(caches, redis_client):
    one, two, three = caches
    go, both = asyncio.Event(), asyncio.Barrier(2)

    async def slow():
        await go.wait()
        return "c"

    c = asyncio.create_task(three.get_or_create("c", slow))
    await await_until("c is being made", lambda: redis_client.exists("slotline:{cache:c}:c"))
    a = asyncio.create_task(one.get_or_create("a", creator(one, "c", both, "a")))
    b = asyncio.create_task(two.get_or_create("b", creator(two, "c", both, "b")))
    await await_until("both wait for c", lambda: redis_client.hlen("slotline:{cache:c}:w") == 2)
    await await_until("that is noted", lambda: len(redis_client.keys("*:n")) == 2)
    go.set()
    assert await asyncio.wait_for(asyncio.gather(a, b, c), 60) == [["a", "c"], ["b", "c"], "c"]
    await await_until("nothing is noted any more", lambda: not redis_client.keys("*:n"))


async def test_a_creator_that_waits_no_longer_closes_no_circle(caches, redis_client):
    one, two, _ = caches
    go, began = asyncio.Event(), asyncio.Event()

    async def impatient():
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(one.get_or_create("b", lambda: "wrong"), 1)
        began.set()
        await go.wait()
        return "a"

    async def patient():
        await began.wait()
        await await_until("the note has ended", lambda: not redis_client.keys("*{cache:a}:n"))
        waiting = asyncio.create_task(two.get_or_create("a", lambda: "wrong"))
        await await_until("it waits", lambda: redis_client.hlen("slotline:{cache:a}:w"))
        go.set()
        return ["b", await waiting]

    b = asyncio.create_task(two.get_or_create("b", patient))
    await await_until("b is being made", lambda: redis_client.exists("slotline:{cache:b}:c"))
    a = asyncio.create_task(one.get_or_create("a", impatient))
    assert await asyncio.wait_for(asyncio.gather(a, b), 60) == ["a", ["b", "a"]]


async def test_notes_of_a_claim_that_has_ended_do_not_count(caches, redis_client):
    one, two, _ = caches
    go = asyncio.Event()

    async def slow():
        await go.wait()
        return "b"

    b = asyncio.create_task(two.get_or_create("b", slow))
    await await_until("b is being made", lambda: redis_client.exists("slotline:{cache:b}:c"))
    # As a process leaves it that was killed while its creator of b waited for a.
    redis_client.hset("slotline:{cache:b}:n", "slotline:{cache:a}", "of a process that was killed")
    redis_client.pexpire("slotline:{cache:b}:n", 60_000)
    a = asyncio.create_task(one.get_or_create("a", creator(one, "b", asyncio.Barrier(1), "a")))
    await await_until("a waits for b", lambda: redis_client.hlen("slotline:{cache:b}:w"))
    go.set()
    assert await asyncio.wait_for(asyncio.gather(a, b), 60) == [["a", "b"], "b"]


async def test_a_cache_in_between_hides_no_circle(caches):
    one, two, _ = caches
    memory, both = InMemoryCacheAdapter(), asyncio.Barrier(2)

    async def by_memory():
        return await memory.get_or_create("m", creator(one, "b", both, "m"))

    jobs = [one.get_or_create("a", by_memory), two.get_or_create("b", creator(two, "a", both, "b"))]
    outcomes = await asyncio.wait_for(asyncio.gather(*jobs, return_exceptions=True), 60)
    assert {type(outcome) for outcome in outcomes} == {CacheRecursionError}


def test_blocking_creators_in_a_circle_are_told(redis_url, redis_client):
    caches = [RedisCacheAdapter(redis_url, lock_timeout=2) for _ in range(2)]
    both, outcomes = threading.Barrier(2), []

    def call(mine, other, cache):
        def create():
            both.wait(30)
            return cache.sync.get_or_create(other, lambda: "not made by its own creator")

        try:
            outcomes.append(cache.sync.get_or_create(mine, create))
        except CacheRecursionError as error:
            outcomes.append(error)

    threads = [
        threading.Thread(target=call, args=("a", "b", caches[0])),
        threading.Thread(target=call, args=("b", "a", caches[1])),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [type(outcome) for outcome in outcomes] == [CacheRecursionError] * 2
    wait_until("nothing is noted any more", lambda: not redis_client.keys("*:n"))
    for cache in caches:
        cache.sync.close()


async def test_a_creator_that_waits_for_no_other_process_sends_nothing_more(caches, redis_server):
    cache = caches[0]
    await cache.get_or_create("scripts", lambda: 1)

    async def create():
        return await cache.get_or_create("inner", lambda: 1)

    with redis_server.counting() as commands:
        assert await cache.get_or_create("outer", create) == 1
    assert commands["evalsha"] == 4
