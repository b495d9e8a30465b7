"""Holders, waiters, the server and the network die; the limit holds and the slots come back."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from slotline import Pool, PoolFullError, RedisStore, Slot, StoreUnavailableError, configure
from slotline.stores._scripts import load
from tests.harness.waiting import await_until

LEASE = 1.5

HOLDER = """
import sys, threading
import slotline
slotline.configure(heartbeat_lease={lease})
pool = slotline.Pool("p", {size}, slot_exp=None, store=slotline.RedisStore({url!r}))
if {wait}:
    print("waiting", flush=True)
    slot = pool.sync.acquire(timeout=None)
else:
    slot = pool.sync.acquire()
print("holding", slot.fence, flush=True)
sys.stdin.read()
"""


def start(url: str, *, size: int = 1, wait: bool = False, lease: float = LEASE) -> subprocess.Popen[str]:
    """Start a process that takes a slot, or stands in line for one."""
    source = HOLDER.format(url=url, size=size, wait=wait, lease=lease)
    process = subprocess.Popen([sys.executable, "-c", source], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline().startswith("waiting" if wait else "holding")
    return process


def end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            stream.close()


@pytest.fixture
async def store(redis_url):
    configure(heartbeat_lease=LEASE)
    store = RedisStore(redis_url, timeout=1, retries=2)
    yield store
    await store.close()


async def _waiting(pool: Pool, count: int) -> bool:
    return (await pool.info()).waiting == count


async def _used(pool: Pool, count: int) -> bool:
    return (await pool.info()).used == count


async def test_a_killed_holders_slot_is_free_within_the_lease_whatever_slot_exp_says(store, redis_url):
    pool = Pool("p", 1, slot_exp=None, store=store)
    holder = start(redis_url)
    with pytest.raises(PoolFullError):
        await pool.acquire()
    end(holder)
    killed = time.monotonic()
    slot = await pool.acquire(timeout=20)
    assert time.monotonic() - killed < 2 * LEASE + 3  # for a busy machine
    assert await pool.release(slot) is True


async def test_a_living_holder_keeps_its_slot_for_many_leases(store, redis_url):
    pool = Pool("p", 1, slot_exp=None, store=store)
    holder = start(redis_url)
    try:
        until = time.monotonic() + 3 * LEASE
        while time.monotonic() < until:
            with pytest.raises(PoolFullError):
                await pool.acquire()
            await asyncio.sleep(0.1)
    finally:
        end(holder)


async def test_a_stopped_holder_loses_its_slot_and_knows_it_when_it_goes_on(store, redis_url):
    pool = Pool("p", 1, slot_exp=None, store=store)
    lost: list = []
    mine = Pool("p", 1, slot_exp=None, store=store, on_lost=lost.append)
    slot = await mine.acquire()
    holder = start(redis_url, wait=True)
    try:
        os.kill(holder.pid, signal.SIGSTOP)
        await pool.release(slot)
        slot = await mine.acquire(timeout=20)  # the stopped one was given the slot and cannot keep it
        os.kill(holder.pid, signal.SIGCONT)
        with pytest.raises(PoolFullError):
            await pool.acquire()
        assert lost == []
        await pool.release(slot)
    finally:
        end(holder)


async def test_killed_waiters_at_the_head_of_the_line_are_passed_over_at_once(store, redis_url, redis_client):
    pool = Pool("p", 1, slot_exp=None, store=store)
    slot = await pool.acquire()
    dead = [start(redis_url, wait=True, lease=60) for _ in range(2)]
    await await_until("both stand in line", lambda: _waiting(pool, 2))
    waiter = asyncio.create_task(pool.acquire(timeout=20))
    await await_until("the third stands behind them", lambda: _waiting(pool, 3))
    listening = len(redis_client.pubsub_channels())
    for process in dead:
        end(process)
    await await_until("the server knows", lambda: len(redis_client.pubsub_channels()) == listening - len(dead))
    await pool.release(slot)
    await pool.release(await waiter)  # long before the leases of the dead end


async def test_slots_survive_a_server_that_stands_still_for_less_than_the_lease(own_redis):
    configure(heartbeat_lease=6.0)
    store = RedisStore(own_redis.url, timeout=1, retries=2)
    pool = Pool("p", 1, store=store)
    slot = await pool.acquire()
    hasty = RedisStore(own_redis.url, timeout=0.2, retries=1)
    own_redis.pause()
    try:
        with pytest.raises(StoreUnavailableError):
            await Pool("q", 1, store=hasty).acquire()
    finally:
        own_redis.resume()
    await hasty.close()
    assert slot.lost is False
    assert await pool.release(slot) is True
    await store.close()


async def test_a_holder_that_cannot_renew_knows_by_its_own_clock_before_anybody_else_can_enter(own_redis):
    configure(heartbeat_lease=LEASE)
    store = RedisStore(own_redis.url, timeout=0.5, retries=1)
    lost_at: list[float] = []
    pool = Pool("p", 1, slot_exp=None, store=store, on_lost=lambda slot: lost_at.append(time.monotonic()))
    taken = time.monotonic()
    slot = await pool.acquire()
    own_redis.pause()
    try:
        await await_until("the slot is lost", lambda: lost_at, timeout=4 * LEASE)
        assert slot.lost is True
        assert lost_at[0] - taken < 2 * LEASE
    finally:
        own_redis.resume()
    assert len(lost_at) == 1
    again = await pool.acquire(timeout=10)
    assert again.fence > slot.fence
    await store.close()


async def test_waiters_survive_the_death_of_the_server(own_redis):
    configure(heartbeat_lease=LEASE)
    store = RedisStore(own_redis.url, timeout=1, retries=8)
    pool = Pool("p", 2, store=store)
    inside, peak, served = 0, 0, 0

    async def use() -> None:
        nonlocal inside, peak, served
        while True:
            try:
                async with pool.slot(timeout=60) as slot:
                    inside += 1
                    peak = max(peak, inside)
                    await asyncio.sleep(0.02)
                    inside -= 1
                    served += 1
                    assert slot.fence > 0
                    return
            except StoreUnavailableError:
                await asyncio.sleep(0.05)

    tasks = [asyncio.create_task(use()) for _ in range(40)]
    await await_until("some are served", lambda: served > 4)
    own_redis.kill()
    await asyncio.to_thread(own_redis.restart)
    await asyncio.wait_for(asyncio.gather(*tasks), 60)
    assert served == 40
    # The server came back empty: those who were inside held slots that it no longer knew.
    assert peak <= 4
    await store.close()


async def test_an_answer_that_is_cut_off_costs_neither_a_slot_nor_the_call(redis_proxy, redis_server):
    configure(heartbeat_lease=LEASE)
    store = RedisStore(redis_proxy.redis_url, timeout=1, retries=5)
    direct = RedisStore(redis_server.url)
    pool, seen = Pool("p", 1, store=store), Pool("p", 1, store=direct)
    await pool.release(await pool.acquire())
    for _ in range(5):
        cut = redis_proxy.cut_after("to_client", 1)
        slot = await pool.acquire()
        assert cut.happened.is_set()
        assert await seen.size() == 1
        redis_proxy.cut_after("to_client", 1)
        await pool.release(slot)
        assert await seen.size() == 0
    await store.close()
    await direct.close()


async def test_a_release_that_meets_a_dead_network_is_made_good_later(redis_proxy, redis_server):
    configure(heartbeat_lease=20.0)
    store = RedisStore(redis_proxy.redis_url, timeout=0.5, retries=0)
    direct = RedisStore(redis_server.url)
    pool, seen = Pool("p", 1, store=store), Pool("p", 1, store=direct)
    async with pool:  # the block's own outcome stands
        redis_proxy.refuse()
        redis_proxy.cut()
    assert await seen.size() == 1
    redis_proxy.resume()

    async def free() -> bool:
        return await seen.size() == 0

    await await_until("the slot is free long before its lease ends", free, timeout=10)
    await store.close()
    await direct.close()


async def test_wake_ups_that_are_lost_with_their_connection_cost_a_delay_and_no_hang(redis_proxy, redis_server):
    configure(heartbeat_lease=3.0)
    store = RedisStore(redis_proxy.redis_url, timeout=1, retries=5)
    direct = RedisStore(redis_server.url)
    pool, other = Pool("p", 1, store=store), Pool("p", 1, store=direct)
    held = await other.acquire()
    waiter = asyncio.create_task(pool.acquire(timeout=30))
    await await_until("it waits", lambda: _waiting(other, 1))
    redis_proxy.refuse()
    redis_proxy.cut()
    await other.release(held)
    redis_proxy.resume()
    slot = await asyncio.wait_for(waiter, 15)
    assert await pool.release(slot) is True
    await store.close()
    await direct.close()


async def test_a_clients_clock_that_is_wrong_changes_nothing(store, monkeypatch):
    pool = Pool("p", 1, store=store)
    slot = await pool.acquire()
    monkeypatch.setattr(time, "time", lambda: 4e9)
    with pytest.raises(PoolFullError):
        await pool.acquire()
    assert slot.lost is False
    await pool.release(slot)


async def test_threads_killed_with_their_process_leave_the_limit_intact(store, redis_url):
    pool = Pool("p", 3, slot_exp=None, store=store)
    holders = [start(redis_url, size=3) for _ in range(3)]
    fences: list[int] = []

    def take() -> None:
        with pool.slot(timeout=20) as slot:
            fences.append(slot.fence)

    threads = [threading.Thread(target=take) for _ in range(6)]
    for thread in threads:
        thread.start()
    for holder in holders:
        end(holder)
    await asyncio.to_thread(lambda: [thread.join() for thread in threads])
    assert len(set(fences)) == 6
    await await_until("the slots of the dead are free", lambda: _used(pool, 0))


async def test_a_loss_is_told_also_where_the_first_answer_was_lost(redis_proxy, redis_client):
    configure(heartbeat_lease=LEASE)
    redis_client.script_load(load("pool_acquire").text)
    store = RedisStore(redis_proxy.redis_url, timeout=0.2, retries=3)
    told: list[Slot] = []
    pool = Pool("p", 1, store=store, on_lost=told.append)
    cut = redis_proxy.break_at(load("pool_acquire").sha, before=False, silently=True)
    slot = await pool.acquire()
    assert cut.happened.is_set()
    redis_proxy.refuse()
    await await_until("the slot is lost", lambda: slot.lost)
    assert slot.forfeited is True
    await await_until("its holder is told", lambda: told == [slot])
    await store.close()
