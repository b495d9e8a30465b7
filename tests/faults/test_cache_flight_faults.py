"""Flights that meet forks, cancellations, a stalled wake-up connection and a server that fills up."""

from __future__ import annotations

import asyncio
import os
import threading

import pytest

from slotline.caches import RedisCacheAdapter
from slotline.errors import CacheRecursionError
from tests.harness.waiting import await_until, wait_until

CLAIM, WAITERS = "slotline:{cache:k}:c", "slotline:{cache:k}:w"


class Run:
    """A creator that counts its runs and ends when it is told."""

    def __init__(self):
        self.count = 0
        self.go = asyncio.Event()

    async def __call__(self):
        self.count += 1
        await self.go.wait()
        return f"made in run {self.count}"


def in_child(work):
    """Fork, and return what ``work()`` returns there as the child's exit code; an exception is 99."""
    pid = os.fork()
    if pid == 0:
        code = 99
        try:
            code = work()
        finally:
            os._exit(code)
    return pid


def exit_code(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


# -- forks ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("face", ["async", "sync"])
async def test_a_creator_may_fork_and_its_child_disturbs_nobody(redis_url, redis_client, face):
    cache = RedisCacheAdapter(redis_url, lock_timeout=5)

    def child():
        try:
            cache.sync.get_or_create("k", lambda: "the child's")
        except CacheRecursionError:
            return cache.sync.get_or_create("other", lambda: 3)
        return 1

    def create():
        claim = redis_client.get(CLAIM)
        assert exit_code(in_child(child)) == 3
        assert redis_client.get(CLAIM) == claim  # the child has neither used nor ended it
        return "made"

    if face == "async":
        assert await cache.get_or_create("k", create) == "made"
    else:
        assert await asyncio.to_thread(cache.sync.get_or_create, "k", create) == "made"
    assert await cache.get("other") == 3
    assert await cache.get("k") == "made"
    assert not redis_client.exists(CLAIM)
    await cache.close()


def test_a_child_that_is_forked_in_the_middle_of_a_flight_waits_for_it_like_any_process(redis_url, redis_client):
    cache, go, values = RedisCacheAdapter(redis_url, lock_timeout=5), threading.Event(), []

    def create():
        assert go.wait(60)
        return 7

    flying = threading.Thread(target=lambda: values.append(cache.sync.get_or_create("k", create)))
    flying.start()
    wait_until("it flies", lambda: redis_client.exists(CLAIM))
    children = [in_child(lambda: cache.sync.get_or_create("k", lambda: 1)) for _ in range(2)]
    wait_until("both children wait", lambda: redis_client.hlen(WAITERS) == 2)
    go.set()
    flying.join()
    assert values == [7]
    assert [exit_code(pid) for pid in children] == [7, 7]
    cache.sync.close()


async def test_a_loop_that_forks_in_the_middle_of_its_flights_lands_them(redis_url, redis_client):
    cache, run = RedisCacheAdapter(redis_url, lock_timeout=5), Run()
    callers = [asyncio.create_task(cache.get_or_create("k", run)) for _ in range(10)]
    await await_until("it flies", lambda: redis_client.exists(CLAIM))
    child = in_child(lambda: asyncio.run(cache.get_or_create("other", lambda: 4)))
    assert await asyncio.to_thread(exit_code, child) == 4
    run.go.set()
    assert await asyncio.gather(*callers) == ["made in run 1"] * 10
    await cache.close()


# -- cancellations ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("who", ["first", "middle", "last", "all"])
@pytest.mark.parametrize("where", ["of the process that flies", "of a process that waits"])
async def test_callers_that_are_cancelled_disturb_nobody(redis_url, redis_client, where, who):
    flying, waiting = (RedisCacheAdapter(redis_url, lock_timeout=5) for _ in range(2))
    run = Run()
    first = [asyncio.create_task(flying.get_or_create("k", run)) for _ in range(5)]
    await await_until("it flies", lambda: run.count)
    second = [asyncio.create_task(waiting.get_or_create("k", run)) for _ in range(5)]
    await await_until("the other process waits", lambda: redis_client.hlen(WAITERS))
    chosen = {"first": [0], "middle": [2], "last": [4], "all": range(5)}[who]
    callers = first if where == "of the process that flies" else second
    doomed = [callers[at] for at in chosen]
    for caller in doomed:
        caller.cancel()
    await asyncio.wait(doomed)
    assert all(caller.cancelled() for caller in doomed)
    newcomers = [asyncio.create_task(cache.get_or_create("k", run)) for cache in (flying, waiting)]
    await asyncio.sleep(0)
    run.go.set()
    others = [caller for caller in first + second if caller not in doomed]
    assert set(await asyncio.wait_for(asyncio.gather(*others, *newcomers), 60)) == {"made in run 1"}
    assert run.count == 1
    for cache in (flying, waiting):
        await await_until("no run is under way", lambda cache=cache: not cache._flights.live)
        await cache.close()


async def test_a_creator_that_is_cancelled_hands_its_run_to_whoever_waits(redis_url, redis_client):
    flying, waiting = (RedisCacheAdapter(redis_url, lock_timeout=60) for _ in range(2))
    run = Run()
    callers = [asyncio.create_task(flying.get_or_create("k", run)) for _ in range(3)]
    await await_until("it flies", lambda: run.count)
    callers += [asyncio.create_task(waiting.get_or_create("k", run)) for _ in range(3)]
    await await_until("the other process waits", lambda: redis_client.hlen(WAITERS))
    (flight,) = flying._tasks
    flight.cancel()  # as whoever cancels all tasks of a loop does
    await await_until("another one flies", lambda: run.count == 2)
    run.go.set()
    assert await asyncio.wait_for(asyncio.gather(*callers), 60) == ["made in run 2"] * 6
    for cache in (flying, waiting):
        await cache.close()


# -- wake-ups and room ------------------------------------------------------------------------------------------------


async def test_a_wake_up_connection_that_stalls_costs_a_delay(redis_url, redis_proxy, redis_client):
    flying, waiting = RedisCacheAdapter(redis_url, lock_timeout=3), RedisCacheAdapter(redis_proxy.redis_url)
    run = Run()
    first = asyncio.create_task(flying.get_or_create("k", run))
    await await_until("it flies", lambda: run.count)
    second = [asyncio.create_task(waiting.get_or_create("k", run)) for _ in range(100)]
    await await_until("the other process waits", lambda: redis_client.hlen(WAITERS))
    stalled = redis_proxy.cut_after("to_client", lambda seen: b"message" in seen, silently=True)
    run.go.set()
    assert await first == "made in run 1"
    assert await asyncio.wait_for(asyncio.gather(*second), 60) == ["made in run 1"] * 100
    assert stalled.happened.is_set()
    assert run.count == 1
    redis_proxy.resume()
    for cache in (flying, waiting):
        await cache.close()


async def test_a_server_that_fills_up_in_the_middle_of_a_flight_costs_runs_and_no_answers(own_redis, caplog):
    flying, waiting = (RedisCacheAdapter(own_redis.url, lock_timeout=5) for _ in range(2))
    run = Run()
    first = [asyncio.create_task(flying.get_or_create("k", run)) for _ in range(10)]
    await await_until("it flies", lambda: run.count)
    second = [asyncio.create_task(waiting.get_or_create("k", run)) for _ in range(10)]
    with own_redis.client() as client:
        await await_until("the other process waits", lambda: client.hlen(WAITERS))
        client.config_set("maxmemory-policy", "noeviction")
        client.config_set("maxmemory", 1)
        run.go.set()
        assert await asyncio.gather(*first) == ["made in run 1"] * 10
        assert await asyncio.wait_for(asyncio.gather(*second), 60) == ["made in run 2"] * 10
        assert caplog.text.count("takes no values") == 2  # one line a process
        await await_until("the claim is given back", lambda: not client.exists(CLAIM))
        client.config_set("maxmemory", 0)
    assert await flying.get_or_create("k", lambda: "stored") == await waiting.get("k") == "stored"
    for cache in (flying, waiting):
        await cache.close()
