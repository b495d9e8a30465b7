"""The doorbells of an event loop: heard by the loop itself, gone with it, and nobody else's trouble."""

from __future__ import annotations

import asyncio
import os
import threading
import time

import pytest

from slotline import Pool, RedisStore, Slot, StoreUnavailableError
from slotline.pools.place import Place
from slotline.stores import _hearing
from tests.harness.ports import free_port
from tests.harness.waiting import await_until, wait_until


async def handed_over(holding: Pool, waiting: Pool) -> Slot:
    """Wait in one pool for the slot that the same pool, of another store, gives back."""
    slot = await holding.acquire()
    waiter = asyncio.create_task(waiting.acquire(timeout=60))

    async def waits() -> bool:
        return (await holding.info()).waiting == 1

    await await_until("it stands in line", waits)
    await holding.release(slot)
    return await waiter


def test_each_loop_has_its_own_which_end_with_it(redis_url, redis_client):
    store = RedisStore(redis_url)
    channels = set()

    async def use() -> None:
        pool = Pool("p", 1, store=store)
        await pool.release(await handed_over(pool, pool))
        channels.add(store.loop_wakeups.channel)
        assert redis_client.pubsub_numsub(store.loop_wakeups.channel)[0][1] == 1
        assert "slotline-wakeups" not in {thread.name for thread in threading.enumerate()}

    for _ in range(2):
        asyncio.run(use())
        wait_until("nobody listens", lambda: not any(heard for _, heard in redis_client.pubsub_numsub(*channels)))
    assert len(channels) == 2
    store.sync.close()


@pytest.mark.parametrize("seconds", [0, 0.2], ids=["at once", "between two tries"])
def test_a_loop_may_end_while_it_cannot_be_heard(seconds):
    store = RedisStore(f"redis://127.0.0.1:{free_port()}/0", retries=0)

    async def use() -> None:
        waiter = asyncio.create_task(store.loop_wakeups.listen())
        await asyncio.sleep(seconds)
        waiter.cancel()

    asyncio.run(use())
    store.sync.close()


async def test_who_still_waits_to_be_heard_when_the_store_is_closed_is_told():
    store = RedisStore(f"redis://127.0.0.1:{free_port()}/0", retries=0)
    waiter = asyncio.create_task(store.loop_wakeups.listen())
    await asyncio.sleep(0)
    await store.close()
    with pytest.raises(StoreUnavailableError, match="closed"):
        await waiter


async def test_a_waiter_whose_store_was_closed_is_called_by_the_next(redis_url):
    ours, theirs = RedisStore(redis_url), RedisStore(redis_url)
    place = Place(Pool("p", 1, store=ours))
    holding = Pool("p", 1, store=theirs)
    slot = await holding.acquire()
    assert await place.enter() is None
    await ours.close()
    assert await place.enter() is None
    await holding.release(slot)
    await await_until("the message has come", lambda: place.bell.payload)
    await place.leave()
    await ours.close()
    await theirs.close()


async def test_it_listens_no_more_when_nobody_has_waited_for_long_and_again_for_the_next(
    redis_url, redis_client, monkeypatch
):
    monkeypatch.setattr(_hearing, "CHECK", 0.1)
    monkeypatch.setattr(_hearing, "LINGER", 0.3)
    store = RedisStore(redis_url, timeout=0.2)
    pool = Pool("p", 1, store=store)
    for _ in range(2):
        await pool.release(await handed_over(pool, pool))
        channel = store.loop_wakeups.channel
        assert redis_client.pubsub_numsub(channel)[0][1] == 1
        await await_until(
            "its connection is closed", lambda channel=channel: not redis_client.pubsub_numsub(channel)[0][1]
        )
    await store.close()


@pytest.mark.parametrize("waits_first", [True, False])
async def test_a_process_that_waits_in_a_loop_hears_of_evictions_while_the_loop_is_held_up(redis_url, waits_first):
    theirs, ours = RedisStore(redis_url), RedisStore(redis_url)  # as in two processes
    told = threading.Event()
    watched = Pool("watched", 1, store=theirs, on_lost=lambda _: told.set())
    other = Pool("other", 1, store=ours)
    slot = None if waits_first else await watched.acquire()
    await other.release(await handed_over(other, Pool("other", 1, store=theirs)))
    slot = slot or await watched.acquire()
    await theirs.wakeups.listen()

    def evict() -> None:
        Pool("watched", 1, store=ours).sync.evict(slot.token)

    thread = threading.Thread(target=evict)
    thread.start()
    began = time.monotonic()
    assert told.wait(60), "it is told"  # the loop stands still
    assert time.monotonic() - began < 5, "renewals are ten seconds apart"
    thread.join()
    await watched.release(slot)
    await theirs.close()
    await ours.close()


async def test_a_child_that_is_forked_while_somebody_waits_waits_for_itself(redis_url):
    store = RedisStore(redis_url)
    pool, childs = Pool("p", 1, store=store), Pool("child's", 1, store=store)
    slot = await pool.acquire()
    waiter = asyncio.create_task(pool.acquire(timeout=60))
    await await_until("it is heard", lambda: store.loop_wakeups.listening().done())

    async def use() -> None:
        await childs.release(await handed_over(childs, childs))
        await store.close()

    child = os.fork()
    if child == 0:
        try:
            asyncio.run(use())
        except BaseException:  # it must not go on as a second run of the tests
            os._exit(1)
        os._exit(0)
    _, status = await asyncio.to_thread(os.waitpid, child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    await pool.release(slot)
    await pool.release(await waiter)
    await store.close()


def test_who_is_called_in_any_thread_needs_no_loop(redis_url):
    store, theirs = RedisStore(redis_url), RedisStore(redis_url)
    holding = Pool("p", 1, store=theirs)
    slot = holding.sync.acquire()
    granted: list[Slot] = []
    place = Place(Pool("p", 1, store=store), on_grant=granted.append)
    assert asyncio.run(place.enter()) is None
    holding.sync.release(slot)
    wait_until("its slot has come", lambda: granted)
    place.sync.leave()
    store.sync.close()
    theirs.sync.close()


async def test_threads_and_loops_wait_in_one_line(redis_url):
    store = RedisStore(redis_url)
    pool = Pool("p", 1, store=store)
    slot = await pool.acquire()
    served: list[str] = []

    async def use() -> None:
        async with pool.slot(timeout=60):
            served.append("loop")

    def use_blocking() -> None:
        with pool.slot(timeout=60):
            served.append("thread")

    waiters = []
    for at in range(6):
        waiters.append(asyncio.create_task(asyncio.to_thread(use_blocking) if at % 2 else use()))

        async def waits(number: int = at + 1) -> bool:
            return (await pool.info()).waiting == number

        await await_until("it stands in line", waits)
    await pool.release(slot)
    await asyncio.gather(*waiters)
    assert served == ["loop", "thread"] * 3
    await store.close()
