"""The connection of the doorbells ends, or falls silent, while somebody waits for a slot."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest

from slotline import Pool, RedisStore, StoreUnavailableError, configure
from slotline.stores import _hearing, _resp
from tests.harness.waiting import await_until

FIRST_WORDS = 20
"""Bytes of a message that come before its connection breaks."""


@pytest.fixture(autouse=True)
def _patient(monkeypatch):
    # A waiter that looks again by itself would come too late for the test.
    configure(heartbeat_lease=600.0)
    monkeypatch.setattr(_hearing, "CHECK", 0.3)


@pytest.fixture(params=["hiredis", "plain"])
def _reader(request, monkeypatch):
    if request.param == "plain":
        monkeypatch.setattr(_resp, "Reader", None)


@asynccontextmanager
async def waiting(call, proxy, url) -> AsyncIterator[tuple[Pool, asyncio.Task]]:
    """One who waits for a slot behind the proxy, and the pool of another, who holds it and is not."""
    async with AsyncExitStack() as stack:
        ours, theirs = RedisStore(proxy.redis_url, timeout=0.5), RedisStore(url)
        stack.push_async_callback(ours.close)
        stack.push_async_callback(theirs.close)
        pool = Pool("p", 1, store=theirs)
        await pool.acquire(owner="first")
        mine = Pool("p", 1, store=ours)
        task = asyncio.create_task(call(mine, "acquire", timeout=60))
        await await_until("it stands in line", lambda: _waits(pool))
        yield pool, task
        slot = await task
        await call(mine, "release", slot)


async def _waits(pool: Pool) -> bool:
    return (await pool.info()).waiting == 1


async def _release(pool: Pool) -> None:
    [holder] = (await pool.info()).holders
    await pool.store.execute(pool.release_command(holder.token, pool.shares_of(1, None)))


def _listeners(client) -> set[str]:
    return {one["id"] for one in client.client_list("pubsub")}


@pytest.mark.usefixtures("_reader")
@pytest.mark.parametrize("silently", [False, True], ids=["reset", "silence"])
async def test_a_message_that_breaks_off_is_looked_for_over_a_new_connection(call, redis_proxy, redis_url, silently):
    async with waiting(call, redis_proxy, redis_url) as (pool, task):
        cut = redis_proxy.cut_after("to_client", FIRST_WORDS, silently=silently)
        await _release(pool)
        slot = await task
        assert cut.happened.is_set()
        assert slot.fence


async def test_a_server_that_ends_the_connection_is_heard_again(call, redis_proxy, redis_url, redis_client):
    async with waiting(call, redis_proxy, redis_url) as (pool, _):
        before = _listeners(redis_client)
        redis_client.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
        await await_until("it listens anew", lambda: _listeners(redis_client) - before)
        await _release(pool)


async def test_a_silent_server_is_found_out_while_nothing_is_said(call, redis_proxy, redis_url):
    async with waiting(call, redis_proxy, redis_url) as (pool, _):
        silent = redis_proxy.break_at(b"PING", before=True, silently=True)
        await await_until("it is asked", silent.happened.is_set)
        accepted = redis_proxy.accepted
        await await_until("a new connection is made", lambda: redis_proxy.accepted > accepted)
        await _release(pool)


async def test_a_subscription_that_is_never_confirmed_is_made_anew(call, redis_proxy, redis_url):
    silent = redis_proxy.break_at(b"SUBSCRIBE", before=False, silently=True)
    async with waiting(call, redis_proxy, redis_url) as (pool, _):
        assert silent.happened.is_set()
        await _release(pool)


async def test_a_user_who_may_not_listen_is_told_what_the_server_said(call, redis_server, redis_client):
    redis_client.execute_command("ACL", "SETUSER", "deaf", "on", ">secret", "~*", "resetchannels", "+@all")
    try:
        store = RedisStore(f"redis://deaf:secret@127.0.0.1:{redis_server.port}/0", retries=0)
        pool = Pool("p", 1, store=store)
        slot = await call(pool, "acquire")
        with pytest.raises(StoreUnavailableError, match=r"(?i)permission"):
            await call(pool, "acquire", timeout=30)
        await call(pool, "release", slot)
        await store.close()
    finally:
        redis_client.execute_command("ACL", "DELUSER", "deaf")


async def test_who_waits_to_be_heard_is_told_when_the_server_is_away(call, redis_proxy):
    store = RedisStore(redis_proxy.redis_url, retries=0)
    pool = Pool("p", 1, store=store)
    slot = await call(pool, "acquire")
    redis_proxy.refuse()
    with pytest.raises(StoreUnavailableError):
        await call(pool, "acquire", timeout=30)
    redis_proxy.resume()
    await call(pool, "release", slot)
    await store.close()
