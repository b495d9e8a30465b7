"""Several limits at once: all of them or none, on every store and through both faces."""

from __future__ import annotations

import asyncio
import threading
from functools import partial

import pytest

from slotline import Holding, InvalidOptionError, Limits, Pool, PoolFullError, PoolTimeoutError, Slot
from slotline.pools import Place
from tests.harness.waiting import await_until


async def waiting(pool: Pool, count: int) -> bool:
    return (await pool.info()).waiting == count


async def used(*pools: Pool) -> list[int]:
    return [await pool.size() for pool in pools]


async def is_empty(*pools: Pool) -> bool:
    return all((info.used, info.waiting) == (0, 0) for info in [await pool.info() for pool in pools])


@pytest.fixture
def pools(store):
    return Pool("a", 2, store=store, group="g"), Pool("b", 1, store=store, group="g")


@pytest.fixture
def limits(pools):
    return Limits(*pools)


async def test_takes_a_slot_of_each_pool_or_none(pools, limits, call):
    a, b = pools
    holding = await call(limits, "acquire", owner="ann")
    assert await used(a, b) == [1, 1]
    with pytest.raises(PoolFullError) as caught:
        await call(limits, "acquire")
    assert (caught.value.key, caught.value.max_size, caught.value.holders) == ("b", 1, ("ann",))
    assert await used(a, b) == [1, 1]
    assert await call(limits, "release", holding) is True
    assert await call(limits, "release", holding) is False
    assert await used(a, b) == [0, 0]


async def test_a_holding_has_the_slot_of_each_pool(pools, limits, call):
    a, b = pools
    holding = await call(limits, "acquire", owner="ann")
    assert isinstance(holding, Holding)
    assert isinstance(holding, Slot)
    assert [slot.key for slot in holding.slots] == ["a", "b"]
    for pool in (a, b):
        (holder,) = (await pool.info()).holders
        slot = holding.slot_of(pool.key)
        assert (holder.token, holder.fence, holder.owner) == (slot.token, slot.fence, "ann")
    assert (holding.lost, holding.evicted, holding.expired, holding.forfeited) == (False, False, False, False)
    assert holding.expires_at is not None
    with pytest.raises(KeyError):
        holding.slot_of("c")


async def test_the_block_holds_all_and_gives_all_back_after_an_exception(pools, limits, call):
    async def fail() -> None:
        async with call.using(limits):
            assert await used(*pools) == [1, 1]
            async with call.using(pools[0]):
                assert await used(*pools) == [2, 1]
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail()
    async with call.using(limits.slot(timeout=5)) as holding:
        assert len(holding.slots) == 2
    assert await used(*pools) == [0, 0]


async def test_waiters_are_served_in_order_when_all_pools_have_room(pools, limits):
    held = await limits.acquire()
    served: list[int] = []

    async def wait(number: int) -> None:
        async with limits.slot(timeout=20):
            served.append(number)

    tasks = []
    for number in range(6):
        tasks.append(asyncio.create_task(wait(number)))
        await await_until(f"{number} waits", partial(waiting, pools[0], number + 1))
    assert (await pools[1].info()).waiting == 0
    await limits.release(held)
    await asyncio.gather(*tasks)
    assert served == list(range(6))
    assert await is_empty(*pools)


async def test_a_full_pool_keeps_nobody_from_the_others(pools, limits, call):
    a, b = pools
    await call(b, "acquire")
    held = [await call(a, "acquire") for _ in range(2)]
    waiters = [asyncio.create_task(limits.acquire(timeout=30)) for _ in range(3)]
    await await_until("they wait", partial(waiting, a, 3))
    behind = asyncio.create_task(a.acquire(timeout=30))
    await await_until("one waits behind them", partial(waiting, a, 4))
    await call(a, "release", held[0])
    await call(a, "release", await asyncio.wait_for(behind, 20))
    async with call.using(a):  # what is free of one pool is not kept for those who wait for another
        pass
    for waiter in waiters:
        waiter.cancel()
    await asyncio.gather(*waiters, return_exceptions=True)
    await await_until("they have left", partial(waiting, a, 0))


async def test_whoever_waits_for_several_is_not_overtaken_in_the_line_of_the_pool_that_is_full(pools, limits, call):
    a, b = pools
    held = await call(b, "acquire")
    order: list[str] = []

    async def wait(name: str, limit: Pool | Limits) -> None:
        async with limit.slot(timeout=30):
            order.append(name)

    tasks = [asyncio.create_task(wait("both", limits))]
    await await_until("the first waits", partial(waiting, a, 1))
    tasks.append(asyncio.create_task(wait("one", b)))
    await await_until("so does the second", partial(waiting, b, 1))
    with pytest.raises(PoolFullError):
        await call(b, "acquire")
    await call(b, "release", held)
    await asyncio.gather(*tasks)
    assert order == ["both", "one"]


async def test_nobody_starves_between_two_pools_that_are_never_free_together(store):
    a, b = Pool("a", 1, store=store, group="g"), Pool("b", 1, store=store, group="g")
    stop = asyncio.Event()

    async def keep_busy(pool: Pool) -> None:
        while not stop.is_set():
            async with pool.slot(timeout=30):
                await asyncio.sleep(0.02)

    busy = [asyncio.create_task(keep_busy(pool)) for pool in (a, b) for _ in range(3)]
    await await_until("both are full and waited for", lambda: _all(waiting(a, 2), waiting(b, 2)))
    for limits in (Limits(a, b), Limits(b, a)) * 2:
        async with limits.slot(timeout=60) as holding:
            assert await used(a, b) == [1, 1]
            assert holding.lost is False
    stop.set()
    await asyncio.gather(*busy)
    assert await is_empty(a, b)


async def _all(*conditions) -> bool:
    return all([await condition for condition in conditions])


async def test_two_that_want_the_same_pools_in_another_order_do_not_block_each_other(store):
    a, b, c = (Pool(key, 1, store=store, group="g") for key in "abc")
    inside, peak, served = 0, 0, 0

    async def use(limits: Limits) -> None:
        nonlocal inside, peak, served
        async with limits.slot(timeout=60):
            inside += 1
            peak = max(peak, inside)
            await asyncio.sleep(0.001)
            inside -= 1
            served += 1

    orders = [Limits(a, b, c), Limits(c, b, a), Limits(b, c), Limits(c, a), Limits(a, b)]
    await asyncio.wait_for(asyncio.gather(*(use(limits) for limits in orders * 8)), 60)
    assert (served, peak) == (40, 1)
    assert await is_empty(a, b, c)


async def test_many_tasks_and_threads_never_exceed_any_limit(store):
    pools = {key: Pool(key, size, store=store, group="g") for key, size in (("a", 3), ("b", 2), ("c", 4))}
    lock, inside, peak = threading.Lock(), dict.fromkeys("abc", 0), dict.fromkeys("abc", 0)

    def step(keys: str, by: int) -> None:
        with lock:
            for key in keys:
                inside[key] += by
                peak[key] = max(peak[key], inside[key])

    def limit_of(keys: str) -> Pool | Limits:
        return pools[keys] if len(keys) == 1 else Limits(*(pools[key] for key in keys))

    async def task(keys: str) -> None:
        async with limit_of(keys).slot(timeout=60):
            step(keys, 1)
            await asyncio.sleep(0.002)
            step(keys, -1)

    def thread(keys: str) -> None:
        with limit_of(keys).slot(timeout=60):
            step(keys, 1)
            threading.Event().wait(0.002)
            step(keys, -1)

    kinds = ["ab", "bc", "abc", "cb", "a", "b", "c"]
    await asyncio.gather(*(task(keys) for keys in kinds * 8), *(asyncio.to_thread(thread, keys) for keys in kinds * 2))
    assert all(0 < peak[key] <= pool.max_size for key, pool in pools.items())
    assert await is_empty(*pools.values())


async def test_waiting_ends_with_an_error_after_the_timeout_and_leaves_no_place_behind(pools, limits, call):
    await call(pools[1], "acquire")
    with pytest.raises(PoolTimeoutError) as caught:
        await call(limits, "acquire", timeout=0.1)
    assert (caught.value.key, caught.value.timeout) == ("b", 0.1)
    assert await used(*pools) == [0, 1]
    assert await waiting(pools[0], 0)


@pytest.mark.parametrize("rounds", range(0, 60, 4))
async def test_cancelling_at_any_moment_leaks_nothing(pools, limits, rounds):
    async def use(limit: Pool | Limits) -> None:
        async with limit.slot(timeout=5):
            await asyncio.sleep(0)

    tasks = [asyncio.create_task(use(limit)) for limit in (limits, pools[1], limits, pools[0], limits)]
    for _ in range(rounds):
        await asyncio.sleep(0)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await await_until("the pools are empty", lambda: is_empty(*pools))


async def test_weights_and_partitions_are_asked_of_all_pools_or_by_key(store, call):
    a, b = Pool("a", 4, store=store, group="g"), Pool("b", 3, max_per_partition=2, store=store, group="g")
    limits = Limits(a, b)
    holding = await call(limits, "acquire", weight=2, partition="t")
    assert await used(a, b) == [2, 2]
    with pytest.raises(PoolFullError) as caught:
        await call(limits, "acquire", partition={"b": "t"})
    assert caught.value.key == "b"
    async with call.using(limits.slot(weight={"a": 2}, partition={"b": "u"})):
        assert await used(a, b) == [4, 3]
    await call(limits, "release", holding)
    assert await used(a, b) == [0, 0]


async def test_tenants_take_turns_in_the_pool_that_they_share(store):
    shared = Pool("shared", 1, store=store, group="g")
    tenants = {name: Pool(f"tenant:{name}", 1, store=store, group="g") for name in "xy"}
    served: list[str] = []

    async def wait(name: str) -> None:
        async with Limits(shared, tenants[name]).slot(timeout=30, partition=name):
            served.append(name)

    held = await shared.acquire()
    tasks = []
    for count, name in enumerate("xxxxyy", 1):
        tasks.append(asyncio.create_task(wait(name)))
        await await_until(f"{count} wait", partial(waiting, shared, count))
    await shared.release(held)
    await asyncio.gather(*tasks)
    assert served[:4] in (list("xyxy"), list("yxyx"))
    assert await is_empty(shared, *tenants.values())


async def test_a_paused_pool_keeps_those_who_need_it_and_nobody_else(pools, limits, call):
    a, b = pools
    await b.pause()
    with pytest.raises(PoolFullError):
        await call(limits, "acquire")
    waiter = asyncio.create_task(limits.acquire(timeout=30))
    await await_until("it waits", partial(waiting, a, 1))
    async with call.using(a):
        pass
    await call(b, "resume")
    await limits.release(await waiter)
    assert await is_empty(a, b)


async def test_a_larger_pool_serves_those_who_wait_for_it(pools, limits):
    held = await limits.acquire()
    waiter = asyncio.create_task(limits.acquire(timeout=30))
    await await_until("it waits", partial(waiting, pools[0], 1))
    await pools[1].resize(2)
    await limits.release(await waiter)
    await limits.release(held)
    assert await is_empty(*pools)


async def test_a_holding_is_lost_with_the_first_of_its_slots_that_ends(store, call):
    a, b = Pool("a", 1, store=store, group="g"), Pool("b", 1, slot_exp=0.2, store=store, group="g")
    limits = Limits(a, b)
    holding = await call(limits, "acquire")
    assert holding.remaining <= 0.2
    await await_until("it is lost", lambda: holding.lost and holding.expired)
    assert holding.forfeited is False
    assert [slot.lost for slot in holding.slots] == [False, True]
    assert await call(limits, "release", holding) is False
    assert await used(a, b) == [0, 0]


async def test_an_evicted_slot_tells_the_holder_once_and_whose_holding_it_is(pools, store):
    told: list[Slot] = []
    limits = Limits(*pools, on_lost=told.append)
    holding = await limits.acquire()
    waiter = asyncio.create_task(limits.acquire(timeout=30))
    await await_until("one waits", partial(waiting, pools[0], 1))
    assert await limits.evict() == holding.slot_of("b").token
    assert await limits.evict() is None
    assert await limits.evict(holding.token) == holding.slot_of("a").token
    await await_until("the holder is told", lambda: told)
    assert told == [holding]
    assert (holding.evicted, holding.forfeited, holding.lost) == (True, True, False)
    await limits.release(holding)
    await limits.release(await waiter)
    assert len(told) == 1


async def test_a_place_grants_a_waiting_caller_its_holding_by_callback(pools, limits):
    granted: list[Slot] = []
    held = await limits.acquire()
    place = Place(limits, on_grant=granted.append)
    assert await place.enter() is None
    assert place.position == 0
    await limits.release(held)
    await await_until("it is served", lambda: granted)
    assert isinstance(granted[0], Holding)
    await place.leave()
    assert await is_empty(*pools)


async def test_pools_that_cannot_be_held_together_are_refused(pools, store, call):
    a, b = pools
    for wrong in ((), (a,), (a, a), (a, "b"), tuple(Pool(str(number), 1, store=store) for number in range(9))):
        with pytest.raises(InvalidOptionError, match=r"^pools="):
            Limits(*wrong)
    with pytest.raises(InvalidOptionError, match=r"^on_lost="):
        Limits(a, b, on_lost="cancel")
    for group in ("", "a{b}", 5, "x" * 49):
        with pytest.raises(InvalidOptionError, match=r"^group="):
            Pool("a", 1, group=group)
    for options in ({"weight": 2}, {"weight": {"b": 2}}, {"weight": {"c": 1}}, {"partition": {"c": "t"}}):
        with pytest.raises(InvalidOptionError, match=rf"^{next(iter(options))}="):
            await call(Limits(a, b), "acquire", **options)
    with pytest.raises(InvalidOptionError, match=r"^slot="):
        await call(Limits(a, b), "release", await call(a, "acquire"))


async def test_a_pool_of_a_group_is_another_pool(store, call):
    grouped, plain = Pool("a", 1, store=store, group="g"), Pool("a", 1, store=store)
    await call(grouped, "acquire")
    await call(plain, "acquire")
    with pytest.raises(PoolFullError):
        await call(grouped, "acquire")
