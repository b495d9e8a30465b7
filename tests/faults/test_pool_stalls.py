"""A server that is connected and does not answer: who waits for so many seconds has an answer then."""

from __future__ import annotations

import asyncio

import pytest

from slotline import Pool, PoolTimeoutError, RedisStore, StoreUnavailableError
from slotline.pools import Place
from slotline.steps import run_awaiting, run_blocking
from tests.harness.waiting import await_until

PATIENT = 60.0
"""Seconds for which the store waits for an answer: longer than any of these tests."""


@pytest.fixture
async def store(redis_proxy):
    store = RedisStore(redis_proxy.redis_url, timeout=PATIENT)
    yield store
    redis_proxy.resume()
    await store.close()


@pytest.fixture
async def direct(redis_url):
    """The same pools, past the proxy."""
    store = RedisStore(redis_url)
    yield store
    await store.close()


async def nothing_is_left(pool: Pool) -> None:
    async def idle() -> bool:
        info = await pool.info()
        return (info.used, info.waiting) == (0, 0)

    await await_until("neither a slot nor a place is left", idle)


@pytest.mark.parametrize("connected", [True, False])
async def test_who_waits_for_a_slot_of_a_silent_server_is_told_in_time(store, direct, redis_proxy, call, connected):
    pool = Pool("p", 1, store=store)
    if connected:
        await call(pool, "release", await call(pool, "acquire", timeout=30))
    redis_proxy.stall()
    for _ in range(2):  # the second time a thread has no connection any more
        with pytest.raises(StoreUnavailableError, match=r"has not answered within 0\.2 s"):
            await asyncio.wait_for(call(pool, "acquire", timeout=0.2), 20)
    redis_proxy.resume()
    # What the server reads only now takes a slot. It is given back: another has it long before its lease ends.
    slot = await call(pool, "acquire", timeout=20)
    await call(pool, "release", slot)
    await nothing_is_left(Pool("p", 1, store=direct))


async def test_who_stands_in_line_at_a_server_that_falls_silent_is_told_in_time(store, direct, redis_proxy, call):
    pool, theirs = Pool("p", 1, store=store), Pool("p", 1, store=direct)
    held = await theirs.acquire()
    place = Place(pool)
    obtaining = place.obtaining(timeout=4)  # what acquire() does
    waiting = asyncio.ensure_future(
        run_awaiting(obtaining) if call.face == "async" else asyncio.to_thread(run_blocking, obtaining)
    )
    await await_until("it knows that it stands in line", lambda: place.position == 0)
    redis_proxy.stall()
    with pytest.raises(PoolTimeoutError):
        await asyncio.wait_for(waiting, 20)
    redis_proxy.resume()
    await theirs.release(held)
    await nothing_is_left(theirs)
