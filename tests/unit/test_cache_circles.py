"""Creators that wait for their own value, or for each other's, in one process: told at once, and nobody else is."""

from __future__ import annotations

import asyncio
import os
import threading

import pytest

from slotline.caches import InMemoryCacheAdapter
from slotline.errors import CacheRecursionError
from tests.harness.waiting import await_until


@pytest.mark.parametrize("face", ["async", "sync"])
async def test_a_creator_that_asks_for_its_own_value_is_told(face):
    cache = InMemoryCacheAdapter()

    def plain():
        return cache.sync.get_or_create("k", plain)

    async def awaiting():
        return await cache.get_or_create("k", awaiting)

    with pytest.raises(CacheRecursionError, match="'k'"):
        await (cache.get_or_create("k", awaiting) if face == "async" else asyncio.to_thread(plain))
    assert await cache.get_or_create("k", lambda: "works again") == "works again"


async def test_two_creators_that_wait_for_each_other_are_told():
    cache = InMemoryCacheAdapter()
    both = asyncio.Barrier(2)

    def creator(other):
        async def create():
            await both.wait()
            return await cache.get_or_create(other, lambda: 1)

        return create

    jobs = [cache.get_or_create("a", creator("b")), cache.get_or_create("b", creator("a"))]
    outcomes = await asyncio.wait_for(asyncio.gather(*jobs, return_exceptions=True), 20)
    assert any(isinstance(outcome, CacheRecursionError) for outcome in outcomes)


def test_two_blocking_creators_that_wait_for_each_other_are_told():
    cache, both, outcomes = InMemoryCacheAdapter(), threading.Barrier(2), []

    def call(mine, other):
        def create():
            both.wait(30)
            return cache.sync.get_or_create(other, lambda: 1)

        try:
            outcomes.append(cache.sync.get_or_create(mine, create))
        except CacheRecursionError as error:
            outcomes.append(error)

    threads = [threading.Thread(target=call, args=keys) for keys in (("a", "b"), ("b", "a"))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(outcomes) == 2
    assert any(isinstance(outcome, CacheRecursionError) for outcome in outcomes)


async def test_a_thread_and_a_task_in_a_circle_through_two_caches_are_told():
    one, two, both = InMemoryCacheAdapter(), InMemoryCacheAdapter(), threading.Barrier(2)

    async def awaiting():
        await asyncio.to_thread(both.wait, 30)
        return await two.get_or_create("b", lambda: 1)

    def blocking():
        both.wait(30)
        return one.sync.get_or_create("a", lambda: 1)

    jobs = [one.get_or_create("a", awaiting), asyncio.to_thread(two.sync.get_or_create, "b", blocking)]
    outcomes = await asyncio.wait_for(asyncio.gather(*jobs, return_exceptions=True), 60)
    assert any(isinstance(outcome, CacheRecursionError) for outcome in outcomes)


async def test_a_creator_may_use_other_keys_and_leave_tasks_behind():
    cache = InMemoryCacheAdapter()
    left = []

    async def outer():
        inner = await asyncio.gather(*(cache.get_or_create(f"inner{at}", lambda: 1) for at in range(3)))
        go = asyncio.Event()

        async def background():
            await go.wait()
            return await cache.get_or_create("outer", lambda: "again")

        left.append((go, asyncio.create_task(background())))
        return sum(inner)

    assert await cache.get_or_create("outer", outer) == 3
    await cache.invalidate("outer")
    go, task = left[0]
    go.set()
    assert await task == "again"


async def test_a_creator_that_waits_no_longer_closes_no_circle():
    cache, given_up, go = InMemoryCacheAdapter(), asyncio.Event(), asyncio.Event()

    async def impatient():
        waiting = asyncio.create_task(cache.get_or_create("b", lambda: 1))
        await await_until("it waits", lambda: cache.get_stats()["coalesced"] == 1)
        waiting.cancel()
        await asyncio.wait([waiting])
        given_up.set()
        await go.wait()
        return "a"

    async def patient():
        await given_up.wait()
        waiting = asyncio.create_task(cache.get_or_create("a", lambda: 1))
        await await_until("it waits", lambda: cache.get_stats()["coalesced"] == 2)
        go.set()
        return ["b", await waiting]

    b = asyncio.create_task(cache.get_or_create("b", patient))
    a = asyncio.create_task(cache.get_or_create("a", impatient))
    assert await asyncio.wait_for(asyncio.gather(a, b), 60) == ["a", ["b", "a"]]


async def test_a_creator_does_not_wait_for_the_refresh_that_it_has_set_off():
    cache, refreshing = InMemoryCacheAdapter(grace_seconds=60), asyncio.Event()

    async def refresh():
        refreshing.set()
        return ["new b", await cache.get_or_create("a", lambda: 1)]

    async def create():
        old = await cache.get_or_create("b", refresh, 60)
        await refreshing.wait()
        await await_until("it waits", lambda: cache.get_stats()["coalesced"] == 1)
        return ["a", old]

    await cache.set("b", "old b", 0.001)
    await await_until("it is stale", lambda: cache._entries["b"].fresh_until < asyncio.get_running_loop().time())
    assert await asyncio.wait_for(cache.get_or_create("a", create), 60) == ["a", "old b"]
    await await_until("it is refreshed", lambda: cache._entries["b"].value == ["new b", ["a", "old b"]])


async def test_nothing_is_left_of_the_values_that_a_creator_has_waited_for():
    cache = InMemoryCacheAdapter()

    async def create():
        mine = cache._flights.live["outer"]
        for number in range(20):
            await cache.get_or_create(f"inner{number}", lambda: 1)
        return len(mine.held_up())

    assert await cache.get_or_create("outer", create) == 1


async def test_a_creator_that_invalidates_its_own_key_and_asks_for_it_is_told():
    cache = InMemoryCacheAdapter()

    async def create():
        await cache.invalidate("k")
        return await cache.get_or_create("k", create)

    with pytest.raises(CacheRecursionError):
        await cache.get_or_create("k", create)


def test_a_creators_forked_child_may_use_other_keys_and_is_told_about_its_own():
    cache = InMemoryCacheAdapter()

    def in_child():
        try:
            cache.sync.get_or_create("k", lambda: 1)
        except CacheRecursionError:
            return cache.sync.get_or_create("other", lambda: 3)
        return 1

    def create():
        pid = os.fork()
        if pid == 0:
            os._exit(in_child())
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    assert cache.sync.get_or_create("k", create) == 3
