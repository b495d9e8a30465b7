"""A master dies, or stands still, and its replica takes over: slots, waiters and parked messages come along."""

from __future__ import annotations

import asyncio
import time

import pytest

from slotline import Pool, PoolFullError, RedisStore, configure
from slotline.caches import RedisCacheAdapter
from slotline.pools import Parked, Room
from slotline.pools._wire import pool_keys
from tests.harness.redis_server import RedisServer
from tests.harness.waiting import await_until

LEASE = 16.0
"""Longer than a replica needs to be chosen, on a busy machine, too."""
RETRIES = 30
"""Enough pauses for the few seconds that a replica needs here to be chosen."""


@pytest.fixture(autouse=True)
def _lease():
    configure(heartbeat_lease=LEASE)


def replicated(master: RedisServer) -> None:
    """Wait until the replica has what the master has, since what it has not is lost with the master."""
    with master.client() as client:
        assert client.execute_command("WAIT", 1, 10_000) == 1


async def _waiting(pool: Pool, count: int) -> bool:
    return (await pool.info()).waiting == count


async def stand_in_line(pool: Pool) -> list[asyncio.Task]:
    """Let a coroutine and a thread wait for a slot."""
    tasks = [asyncio.create_task(pool.acquire(timeout=None))]
    await await_until("the first waits", lambda: _waiting(pool, 1))
    tasks.append(asyncio.create_task(asyncio.to_thread(pool.sync.acquire, timeout=60)))
    await await_until("both wait", lambda: _waiting(pool, 2))
    return tasks


async def outlive(pool: Pool, room: Room, master: RedisServer, fault: str, taken_over, meanwhile=None) -> None:
    """Hold a slot, wait and park in ``pool`` while ``fault`` befalls its master; nothing of it may be lost."""
    held = await pool.acquire()
    tasks = await stand_in_line(pool)
    assert await room.park(pool, b"message", lane="q") == Parked(0)
    replicated(master)
    since = time.monotonic()
    master.kill() if fault == "kill" else master.pause()
    if meanwhile is not None:
        await meanwhile()
    await await_until("the replica has taken over", taken_over, timeout=30)
    assert held.lost is False
    with pytest.raises(PoolFullError):
        await pool.acquire()
    assert await pool.release(held) is True
    first = await asyncio.wait_for(tasks[0], LEASE)
    assert not tasks[1].done()
    await pool.release(first)
    second = await asyncio.wait_for(tasks[1], LEASE)
    await pool.release(second)
    found = []

    async def take() -> bool:
        found.append(await room.take())
        return found[-1] is not None

    await await_until("the parked message is taken", take, timeout=2 * LEASE)
    taken = found[-1]
    assert taken.message == b"message"
    assert held.fence < first.fence < second.fence < taken.slot.fence
    await taken.settle()
    await taken.pool.release(taken.slot)
    assert time.monotonic() - since < 2 * LEASE
    assert (await pool.info()).used == 0


@pytest.mark.parametrize("fault", ["kill", "pause"])
async def test_a_failover_by_sentinels_loses_no_slot_no_waiter_and_no_message(own_sentinels, fault):
    store = RedisStore(own_sentinels.url, timeout=1, retries=RETRIES)
    pool, room = Pool("p", 1, slot_exp=None, store=store), Room(store, ["q"])
    first, second = own_sentinels.first, own_sentinels.second
    try:
        await outlive(pool, room, first, fault, lambda: own_sentinels.master is second)
        # What was the master comes back and takes writes until it is told better: nobody here may believe it.
        first.start() if fault == "kill" else first.resume()
        slot = await pool.acquire()
        await asyncio.to_thread(pool.sync.release, slot)
        with second.client() as client:
            assert int(client.hget(pool_keys(store, "p")[2], "fence")) == slot.fence
    finally:
        room.close()
        await store.close()


@pytest.mark.parametrize("fault", ["kill", "pause"])
async def test_a_lost_master_of_a_cluster_takes_nothing_along_and_disturbs_no_other(own_cluster, fault):
    store = RedisStore(own_cluster.url, timeout=1, retries=RETRIES)
    cache = RedisCacheAdapter(store=store)
    pool, room = Pool("p", 1, slot_exp=None, store=store), Room(store, ["q"])
    master = own_cluster.owner(pool_keys(store, "p")[0])
    others = [
        other
        for number in range(20)
        if own_cluster.owner(pool_keys(store, (other := Pool(f"o{number}", 1, store=store)).key)[0]) is not master
    ]
    kept = await others[0].acquire()

    async def others_go_on() -> None:
        stuck = asyncio.create_task(pool.size())  # does not get its answer before the replica has taken over
        async with asyncio.timeout(4):
            await asyncio.gather(*(_use(other) for other in others[1:]))
        await asyncio.wait([stuck])
        assert kept.lost is False

    def taken_over() -> bool:
        return own_cluster.owner(pool_keys(store, "p")[0]) is not master

    try:
        # The index of the lane must not be on the lost master alone: it is found there by its replica, too.
        await outlive(pool, room, master, fault, taken_over, others_go_on)
        await cache.set("k", 1, 60)
        assert await cache.get("k") == 1
        await others[0].release(kept)
    finally:
        room.close()
        await store.close()


async def _use(pool: Pool) -> None:
    async with pool:
        pass
