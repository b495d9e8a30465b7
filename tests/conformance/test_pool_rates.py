"""Rates and pauses, on every store and through both faces."""

from __future__ import annotations

import asyncio
import time

import pytest

from slotline import InvalidOptionError, MemoryStore, Pool, PoolFullError, PoolTimeoutError
from slotline.pools.rate import Rate
from tests.harness.waiting import await_until


async def test_a_rate_lets_a_burst_in_and_then_says_when_the_next_start_is_allowed(store, call):
    pool = Pool("p", None, rate="6/m", burst=3, store=store)
    for _ in range(3):
        await call(pool, "release", await call(pool, "acquire"))
    with pytest.raises(PoolFullError, match="used up its rate") as caught:
        await call(pool, "acquire")
    assert 5 < caught.value.retry_after <= 10
    assert (await call(pool, "info")).max_size is None


async def test_starts_are_spaced_and_waiters_served_in_order_at_the_rates_pace(store):
    pool = Pool("p", None, rate="20/s", store=store)
    started: list[tuple[float, int]] = []

    async def use(number: int) -> None:
        async with pool.slot(timeout=20):
            started.append((time.monotonic(), number))

    begun = time.monotonic()
    tasks: list[asyncio.Task[None]] = []

    async def all_have_asked() -> bool:
        return (await pool.info()).waiting + len(started) == len(tasks)

    for number in range(11):  # one after the other: calls of one moment may travel on two connections
        tasks.append(asyncio.create_task(use(number)))
        await await_until(f"caller {number} stands in line", all_have_asked)
    await asyncio.gather(*tasks)
    assert [number for _, number in started] == list(range(11))
    assert started[-1][0] - begun >= 0.5 * 0.95
    assert (await pool.info()).used == 0


async def test_a_rate_counts_starts_and_a_size_those_inside_and_both_hold(store, call):
    pool = Pool("p", 1, rate="100/s", burst=10, store=store)
    slot = await call(pool, "acquire")
    with pytest.raises(PoolFullError, match="its one slot is"):
        await call(pool, "acquire")
    await call(pool, "release", slot)
    await call(pool, "acquire", timeout=5)


async def test_a_waiter_whose_time_is_up_before_the_rate_allows_it_leaves_the_line(store, call):
    pool = Pool("p", None, rate="1/h", store=store)
    await call(pool, "acquire")
    with pytest.raises(PoolTimeoutError):
        await call(pool, "acquire", timeout=0.1)
    assert (await pool.info()).waiting == 0


async def test_an_emptied_pool_does_not_forget_its_rate(store, call):
    pool = Pool("p", None, rate="1/h", store=store)
    await call(pool, "release", await call(pool, "acquire"))
    with pytest.raises(PoolFullError):
        await call(Pool("p", None, rate="1/h", store=store), "acquire")


async def test_a_rate_that_is_declared_anew_acts_at_once_whatever_the_one_before_left(store, call):
    for _ in range(3):
        await call(Pool("p", None, rate="1/d", burst=3, store=store), "acquire")
    await call(Pool("p", None, rate="1000/s", store=store), "acquire", timeout=10)


async def test_a_size_that_is_declared_anew_leaves_the_starts_of_its_rate_counted(store, call):
    await call(Pool("p", 5, rate="1/h", store=store), "acquire")
    with pytest.raises(PoolFullError, match="used up its rate"):
        await call(Pool("p", 6, rate="1/h", store=store), "acquire")


async def test_a_paused_pool_lets_nobody_in_and_a_resumed_one_serves_its_waiters_at_once(store, call):
    pool = Pool("p", 2, store=store)
    held = await call(pool, "acquire")
    assert await call(pool, "pause") is True
    assert await call(pool, "pause") is False
    assert (await call(pool, "info")).paused is True
    with pytest.raises(PoolFullError, match="paused"):
        await call(pool, "acquire")
    waiter = asyncio.create_task(pool.acquire(timeout=20))

    async def waits() -> bool:
        return (await pool.info()).waiting == 1

    await await_until("it waits", waits)
    assert await call(pool, "release", held) is True
    assert await waits()
    assert await call(pool, "resume") is True
    await pool.release(await waiter)
    assert await call(pool, "resume") is False
    assert (await call(pool, "info")).paused is False


@pytest.mark.parametrize(
    ("rate", "interval_us"),
    [("1/s", 1_000_000), ("100/m", 600_000), ("3600/h", 1_000_000), ("1/d", 86_400_000_000), ("3/10s", 3_333_333)],
)
def test_rates_are_read(rate, interval_us):
    assert Rate.parse(rate, None) == Rate(rate, interval_us, 1)


@pytest.mark.parametrize(
    "rate", ["", "5", "5/", "5/x", "-1/s", "0/s", "1.5/s", "5/s ", "5 /s", 5, 0.1, True, "9999999999/s"]
)
def test_what_is_no_rate_is_refused_by_name(rate):
    with pytest.raises(InvalidOptionError, match=r"^rate="):
        Pool("p", 1, rate=rate, store=MemoryStore())


@pytest.mark.parametrize("burst", [0, -1, 1.5, True, "2", float("nan")])
def test_what_is_no_burst_is_refused_by_name(burst):
    with pytest.raises(InvalidOptionError, match=r"^burst="):
        Pool("p", 1, rate="1/s", burst=burst, store=MemoryStore())


def test_a_burst_without_a_rate_and_a_pool_without_any_limit_are_refused():
    with pytest.raises(InvalidOptionError, match=r"^burst="):
        Pool("p", 1, burst=2, store=MemoryStore())
    with pytest.raises(InvalidOptionError, match=r"^max_size="):
        Pool("p", None, store=MemoryStore())
