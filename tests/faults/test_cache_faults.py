"""The cache on Redis under kills, cancellations, restarts, flushes, pauses, cuts and full servers."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from contextlib import ExitStack
from unittest.mock import AsyncMock

import pytest

from slotline.caches import RedisCacheAdapter
from slotline.errors import StoreUnavailableError
from slotline.stores import RedisStore
from tests.harness.ports import free_port
from tests.harness.waiting import await_until, wait_until
from tests.integration.cache_process import CacheProcess, most_at_once, runs, wait_for_run


@pytest.fixture
def log(tmp_path):
    return tmp_path / "runs.log"


@pytest.fixture
def begin(log):
    """A function that starts processes on a server and lets them all begin together."""
    with ExitStack() as stack:

        def start(url, *options):
            started = [stack.enter_context(CacheProcess(url, log, **one)) for one in options]
            for process in started:
                process.begin()
            return started

        yield start


def waiters(client, count):
    """Wait until ``count`` processes stand in line for the value."""
    wait_until(f"{count} wait", lambda: client.hlen("slotline:{cache:k}:w") == count, timeout=40)


@pytest.mark.parametrize("face", ["async", "sync"])
def test_when_the_creators_process_is_killed_a_waiter_takes_over_within_the_lease(
    begin, log, redis_url, redis_client, face
):
    (doomed,) = begin(redis_url, {"callers": 5, "work": 100, "face": face, "cache": {"lock_timeout": 2}})
    wait_for_run(log)
    heirs = begin(redis_url, *[{"callers": 5, "work": 0.5, "face": face, "cache": {"lock_timeout": 2}}] * 2)
    waiters(redis_client, 2)
    os.kill(doomed.pid, signal.SIGKILL)
    killed = time.monotonic()
    values = {value for heir in heirs for value in heir.outcome()["values"]}
    assert len(values) == 1
    first, second = runs(log)
    assert killed < second.began < killed + 2 + 10
    assert most_at_once([first, second], died={doomed.pid: killed}) == 1


def test_a_process_that_stalls_past_its_lease_does_not_overwrite_its_successors_value(
    begin, log, redis_url, redis_client
):
    (stalled,) = begin(redis_url, {"work": 0.5, "cache": {"lock_timeout": 1}})
    wait_for_run(log)
    os.kill(stalled.pid, signal.SIGSTOP)
    try:
        (heir,) = begin(redis_url, {"work": 0.1, "cache": {"lock_timeout": 1}})
        value = heir.outcome()["values"]
    finally:
        os.kill(stalled.pid, signal.SIGCONT)
    assert stalled.outcome()["values"] == [f"made by {stalled.pid}"]  # its own caller is served
    assert value == [f"made by {heir.pid}"]
    assert value[0].encode() in redis_client.get("slotline:{cache:k}:v")


def test_when_the_creators_loop_ends_the_next_process_takes_over_at_once(begin, log, redis_url, redis_client):
    (leaving,) = begin(redis_url, {"work": 100, "leave": 3, "cache": {"lock_timeout": 60}})
    wait_for_run(log)
    began = time.monotonic()
    (heir,) = begin(redis_url, {"work": 0.1, "cache": {"lock_timeout": 60}})
    assert heir.outcome()["values"] == [f"made by {heir.pid}"]
    assert time.monotonic() - began < 30
    leaving.outcome()
    assert redis_client.exists("slotline:{cache:k}:c") == 0


def test_a_flushed_server_costs_no_second_run(begin, log, redis_url, redis_client):
    options = {"callers": 20, "work": 5.0, "cache": {"lock_timeout": 3}}
    first = begin(redis_url, options)
    wait_for_run(log)
    second = begin(redis_url, options)
    waiters(redis_client, 1)
    redis_client.flushall()
    wait_until("the claim is back", lambda: redis_client.exists("slotline:{cache:k}:c"))
    newcomer = begin(redis_url, options)
    values = [value for process in first + second + newcomer for value in process.outcome()["values"]]
    assert len(values) == 60
    assert len(set(values)) == len(runs(log)) == 1


def test_a_restarted_server_costs_no_second_run(begin, log, own_redis):
    options = {"callers": 20, "work": 6.0, "cache": {"lock_timeout": 4}}
    first = begin(own_redis.url, options)
    wait_for_run(log)
    second = begin(own_redis.url, options)
    with own_redis.client() as client:
        waiters(client, 1)
    own_redis.restart(keep_data=False)
    values = [value for process in first + second for value in process.outcome()["values"]]
    assert len(values) == 40
    assert len(set(values)) == len(runs(log)) == 1
    with own_redis.client() as client:
        assert client.keys() == [b"slotline:{cache:k}:v"]


def test_a_paused_server_costs_a_delay(begin, log, own_redis):
    options = {"callers": 20, "work": 1.0, "cache": {"lock_timeout": 20}}
    processes = begin(own_redis.url, options, options)
    wait_for_run(log)
    own_redis.pause()
    time.sleep(2.5)  # the fault is time itself
    own_redis.resume()
    values = [value for process in processes for value in process.outcome()["values"]]
    assert len(values) == 40
    assert len(set(values)) == len(runs(log)) == 1


def test_a_cut_wake_up_connection_costs_a_delay(begin, log, redis_url, redis_client):
    options = {"callers": 20, "work": 3.0, "cache": {"lock_timeout": 3}}
    first = begin(redis_url, options)
    wait_for_run(log)
    second = begin(redis_url, options)
    waiters(redis_client, 1)
    assert redis_client.execute_command("CLIENT KILL TYPE pubsub") >= 1
    values = [value for process in first + second for value in process.outcome()["values"]]
    assert len(values) == 40
    assert len(set(values)) == len(runs(log)) == 1


async def test_cutting_every_connection_again_and_again_changes_no_result(redis_proxy):
    cache = RedisCacheAdapter(redis_proxy.redis_url, lock_timeout=5)
    runs_of = dict.fromkeys(range(30), 0)

    def creator(number):
        async def create():
            runs_of[number] += 1
            await asyncio.sleep(0.02)
            return number

        return create

    async def cut():
        for _ in range(10):
            await asyncio.sleep(0.02)
            redis_proxy.cut()

    cutting = asyncio.create_task(cut())
    jobs = [cache.get_or_create(f"k{number}", creator(number)) for number in range(30) for _ in range(10)]
    values = await asyncio.gather(*jobs)
    await cutting
    assert values == [number for number in range(30) for _ in range(10)]
    assert set(runs_of.values()) == {1}
    await cache.close()


async def test_without_a_server_callers_still_get_values_one_run_each_and_one_log_line(caplog):
    store = RedisStore(f"redis://127.0.0.1:{free_port()}", retries=0, timeout=1)
    cache = RedisCacheAdapter(store=store)
    count = 0

    async def create():
        nonlocal count
        count += 1
        await asyncio.sleep(0.05)
        return count

    assert await asyncio.gather(*(cache.get_or_create("k", create) for _ in range(20))) == [1] * 20
    assert await asyncio.to_thread(cache.sync.get_or_create, "k", lambda: "made") == "made"
    assert await cache.get("k") is None
    await cache.set("k", 1)
    assert caplog.text.count("caching without") == 1
    for attempt in (cache.invalidate("k"), cache.invalidate_tag("t"), cache.clear()):
        with pytest.raises(StoreUnavailableError):
            await attempt
    assert cache.get_stats()["errors"] > 0
    await cache.close()
    await store.close()


async def test_a_server_that_does_not_answer_holds_up_one_caller_at_a_time(own_redis, monkeypatch):
    store = RedisStore(own_redis.url, retries=0, timeout=1)
    cache = RedisCacheAdapter(store=store)
    await cache.set("k", 1)
    asked = AsyncMock(wraps=store.execute)
    monkeypatch.setattr(store, "execute", asked)
    own_redis.pause()
    try:
        assert await cache.get_or_create("k", lambda: 2) == 2
        assert asked.await_count == 1  # who has just learned that it is silent does not ask for the claim, too
        cache._outage._until = 0.0  # the pause is over
        assert await asyncio.gather(*(cache.get_or_create(f"k{n}", lambda: 3) for n in range(20))) == [3] * 20
        assert asked.await_count == 2
    finally:
        own_redis.resume()
    await store.close()


async def test_on_store_error_fail_says_so_and_runs_nothing():
    store = RedisStore(f"redis://127.0.0.1:{free_port()}", retries=0, timeout=1)
    cache = RedisCacheAdapter(store=store, on_store_error="fail")
    ran = []
    for attempt in (cache.get_or_create("k", lambda: ran.append(1)), cache.get("k"), cache.set("k", 1)):
        with pytest.raises(StoreUnavailableError):
            await attempt
    with pytest.raises(StoreUnavailableError):
        await asyncio.to_thread(cache.sync.get_or_create, "k", lambda: ran.append(1))
    assert ran == []
    await store.close()


async def test_a_server_that_comes_back_is_used_again(own_redis, caplog):
    caplog.set_level("INFO")
    store = RedisStore(own_redis.url, retries=0)
    cache = RedisCacheAdapter(store=store)
    await cache.set("k", 1)
    own_redis.kill()
    assert await cache.get_or_create("other", lambda: 2) == 2
    own_redis.start()
    assert await await_until("the cache is back", lambda: _stored(cache), interval=0.2)
    assert "caching without" in caplog.text
    assert "answers again" in caplog.text
    await store.close()


async def _stored(cache):
    await cache.set("again", 1)
    return await cache.get("again")


async def test_a_full_server_costs_one_log_line_and_still_serves_what_it_has(own_redis, caplog):
    caplog.set_level("INFO")
    cache = RedisCacheAdapter(own_redis.url)
    await cache.set("there", "old")
    with own_redis.client() as client:
        client.config_set("maxmemory-policy", "noeviction")
        client.config_set("maxmemory", 1)
    for number in range(10):
        assert await cache.get_or_create(f"k{number}", lambda number=number: number) == number
        assert await cache.get_or_create("there", lambda: "new") == "old"
    assert caplog.text.count("takes no values") == 1
    assert await cache.invalidate("there") is True  # what frees memory goes on
    with own_redis.client() as client:
        client.config_set("maxmemory", 0)
    assert await cache.get_or_create("k0", lambda: "stored") == await cache.get("k0") == "stored"
    assert caplog.text.count("takes values again") == 1
    await cache.store.close()


async def test_a_read_only_server_costs_one_log_line_and_still_serves_what_it_has(own_redis, caplog):
    cache = RedisCacheAdapter(own_redis.url)
    await cache.set("there", 1)
    with own_redis.client() as client:
        client.replicaof("127.0.0.1", str(free_port()))
    for number in range(5):
        assert await cache.get_or_create(f"k{number}", lambda number=number: number) == number
        assert await cache.get_or_create("there", lambda: 2) == 1
    assert caplog.text.count("takes no values") == 1
    with own_redis.client() as client:
        client.replicaof("no", "one")
    await cache.store.close()


@pytest.mark.parametrize("face", ["async", "sync"])
@pytest.mark.parametrize("trouble", ["full", "read-only"])
async def test_a_server_that_takes_nothing_is_an_error_on_request(own_redis, trouble, face):
    cache, ran = RedisCacheAdapter(own_redis.url, on_store_error="fail"), []
    await cache.set("there", "old")
    with own_redis.client() as client:
        if trouble == "full":
            client.config_set("maxmemory-policy", "noeviction")
            client.config_set("maxmemory", 1)
        else:
            client.replicaof("127.0.0.1", str(free_port()))

    async def call(key):
        if face == "async":
            return await cache.get_or_create(key, lambda: ran.append(key))
        return await asyncio.to_thread(cache.sync.get_or_create, key, lambda: ran.append(key))

    with pytest.raises(StoreUnavailableError):
        await call("new")
    with pytest.raises(StoreUnavailableError):
        await cache.set("new", 1)
    assert await call("there") == "old"  # what it has is no error
    assert ran == []
    await cache.store.close()
