"""Several limits at once on a real server: commands, repeated calls, the dead, and data that is gone."""

from __future__ import annotations

import asyncio
import time

import pytest

from slotline import Limits, Pool, PoolFullError, Slot, configure
from slotline.pools import Place
from tests.harness.waiting import await_until, wait_until


@pytest.fixture
def pools(store):
    return Pool("a", 2, store=store), Pool("b", 1, store=store)


async def _hold(limits: Limits, seconds: float = 0.0) -> None:
    async with limits.slot(timeout=60):
        await asyncio.sleep(seconds)


@pytest.mark.parametrize("waiters", [1, 40])
async def test_a_hold_costs_two_commands_whether_it_has_to_wait_or_not(store, pools, redis_server, waiters):
    limits = Limits(*pools)
    await _hold(limits)
    with redis_server.counting() as counted:
        await asyncio.gather(*(_hold(limits, 0.005) for _ in range(waiters)))
    assert counted["evalsha"] == 2 * waiters


async def test_many_holdings_are_renewed_by_one_round_trip(store, redis_server):
    configure(heartbeat_lease=1.5)
    limits = Limits(*(Pool(key, 9, store=store, slot_exp=None) for key in "abc"))
    holdings = [await limits.acquire() for _ in range(3)]
    ends = [slot.expires_at for holding in holdings for slot in holding.slots]
    await await_until(
        "all are renewed",
        lambda: all(
            slot.expires_at > end + 0.2
            for slot, end in zip((slot for holding in holdings for slot in holding.slots), ends, strict=True)
        ),
    )
    assert not any(holding.lost for holding in holdings)
    for holding in holdings:
        assert await limits.release(holding) is True


def test_calls_are_safe_to_repeat(store, pools):
    limits = Limits(*pools)
    place = Place(limits)
    ask = limits.acquire_command(place, 0, "")
    first, again = store.sync.execute(ask), store.sync.execute(ask)
    assert first[0] == again[0] == 1
    assert first[3] == again[3]
    waiter = Place(limits)
    wait = limits.acquire_command(waiter, 30_000, store.wakeups.channel)
    assert [store.sync.execute(wait)[0] for _ in range(2)] == [0, 0]
    assert [pool.sync.info().waiting for pool in limits.pools] == [1, 0]
    for token in (waiter.token, place.token):
        leave = limits.release_command(token, place.shares)
        store.sync.execute(leave)
        assert store.sync.execute(leave) == 0
    assert [(pool.sync.info().used, pool.sync.info().waiting) for pool in limits.pools] == [(0, 0), (0, 0)]


def test_many_waiters_of_a_dead_process_delay_nobody(store, pools):
    a, b = pools
    limits = Limits(a, b)
    slot = limits.sync.acquire()
    for _ in range(100):
        place = Place(limits)
        store.sync.execute(limits.acquire_command(place, 30_000, "slotline:wake:dead"))
    granted: list[Slot] = []
    waiters = [Place(limit, on_grant=granted.append) for limit in (limits, b)]
    for waiter in waiters:
        assert waiter.sync.enter() is None
    limits.sync.release(slot)
    for number in (1, 2):
        wait_until(f"{number} behind them served", lambda number=number: len(granted) == number, timeout=5)
        served = next(waiter for waiter in waiters if waiter.token == granted[-1].token)
        served.sync.leave()
    assert (a.sync.size(), b.sync.size()) == (0, 0)


def test_what_a_dead_waiter_kept_passes_on_and_its_place_is_forgotten(store):
    configure(heartbeat_lease=1.0)
    a, b = Pool("a", 1, store=store), Pool("b", 1, store=store)
    limits = Limits(a, b)
    place = Place(limits)

    def ask() -> int:
        return int(store.sync.execute(limits.acquire_command(place, 1_500, store.wakeups.channel))[0])

    in_b = b.sync.acquire()
    assert ask() == 0
    in_a = a.sync.acquire()
    b.sync.release(in_b)
    assert ask() == 0  # it moves from b, which it gives back, to a
    in_b, moved = b.sync.acquire(), time.monotonic()
    wait_until("it has moved about for a while", lambda: time.monotonic() > moved + 0.7)
    a.sync.release(in_a)
    assert ask() == 0  # it moves from a, which it keeps for as long, to b; and never asks again
    with pytest.raises(PoolFullError):
        a.sync.acquire()
    a.sync.release(a.sync.acquire(timeout=20))
    b.sync.release(in_b)

    def forgotten() -> bool:
        with a.slot(timeout=20), b.slot(timeout=20):
            return a.sync.info().waiting == 0

    wait_until("its place is forgotten", forgotten)


@pytest.mark.parametrize("lost", ["line", "state", "ring", "slots"])
async def test_waiters_go_on_when_the_server_has_evicted_a_key(store, redis_client, lost):
    configure(heartbeat_lease=1.5)
    a, b = Pool("a", 1, store=store), Pool("b", 1, store=store)
    limits = Limits(a, b)
    held = await limits.acquire()
    waiters = [asyncio.create_task(_hold(limits)) for _ in range(5)]

    async def all_wait() -> bool:
        return (await a.info()).waiting == 5

    await await_until("they wait", all_wait)
    redis_client.delete(*(f"slotline:{{pool:{key}}}:{lost}" for key in "ab"))
    await limits.release(held)
    await asyncio.wait_for(asyncio.gather(*waiters), 30)
    for pool in (a, b):
        info = await pool.info()
        assert (info.used, info.waiting) == (0, 0)
