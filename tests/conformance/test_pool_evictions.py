"""Holders can be told to end, on every store and through both faces."""

from __future__ import annotations

import asyncio

import pytest

from slotline import InvalidOptionError, Pool
from slotline.steps import run_awaiting, run_blocking
from tests.harness.waiting import await_until


async def _waiting(pool: Pool, count: int) -> bool:
    return (await pool.info()).waiting == count


async def test_an_evicted_holder_is_told_once_and_its_slot_counts_until_it_is_released(store, call):
    told: list = []
    pool = Pool("p", 1, store=store, on_lost=told.append)
    slot = await pool.acquire()
    assert await call(pool, "evict", slot.token) == slot.token
    assert await call(pool, "evict", slot.token) == slot.token
    await await_until("its holder is told", lambda: told)
    assert (told, slot.evicted, slot.lost, await pool.size()) == ([slot], True, False, 1)
    assert await pool.release(slot) is True
    assert await pool.size() == 0
    assert await call(pool, "evict", slot.token) is None
    assert told == [slot]


async def test_those_who_wait_get_the_slots_of_the_longest_holders_one_for_each(store, call):
    told: list = []
    pool = Pool("p", 3, store=store, on_lost=told.append)
    slots = [await pool.acquire() for _ in range(3)]
    assert await call(pool, "evict") is None, "nobody waits"
    waiters = [asyncio.create_task(pool.acquire(timeout=None)) for _ in range(2)]
    await await_until("two wait", lambda: _waiting(pool, 2))
    assert [await call(pool, "evict") for _ in range(3)] == [slots[0].token, slots[1].token, None]
    await await_until("both are told", lambda: len(told) == 2)
    assert told == slots[:2]
    await pool.release(slots[2])  # it was not told, and ends all the same: one told too many, at most
    await waiters[0]
    assert await call(pool, "evict") is None, "one waits, for whom two are told"
    await pool.release(slots[0])
    await waiters[1]


async def test_nobody_is_told_to_end_where_that_helps_nobody(store, call):
    pool = Pool("p", 1, store=store)
    slot = await pool.acquire()
    await pool.pause()
    waiter = asyncio.create_task(pool.acquire(timeout=None))
    await await_until("it waits", lambda: _waiting(pool, 1))
    assert await call(pool, "evict") is None, "a slot that is free would not be given"
    await pool.resume()
    assert await call(pool, "evict") == slot.token
    await pool.release(slot)
    await waiter
    rated = Pool("rated", 5, rate="1/h", store=store)
    await rated.acquire()
    waiter = asyncio.create_task(rated.acquire(timeout=None))
    await await_until("it waits", lambda: _waiting(rated, 1))
    assert await call(rated, "evict") is None, "its rate is what it waits for"
    waiter.cancel()
    assert await call(Pool("unknown", 1, store=store), "evict") is None


async def test_a_holder_without_on_lost_goes_on(store):
    pool = Pool("p", 1, store=store)
    slot = await pool.acquire()
    assert await pool.evict(slot.token) == slot.token
    assert (await pool.size(), slot.lost) == (1, False)
    assert await pool.release(slot) is True


@pytest.mark.parametrize("token", ["", 7])
async def test_a_token_is_text(store, call, token):
    with pytest.raises(InvalidOptionError, match="token"):
        await call(Pool("p", 1, store=store), "evict", token)


class Waiters:
    """Callers that wait for slots, each with a weight and a partition."""

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        self.tasks: list[asyncio.Task] = []

    async def add(self, **share) -> None:
        self.tasks.append(asyncio.create_task(self.pool.acquire(timeout=None, **share)))
        await await_until("it waits", lambda: _waiting(self.pool, len(self.tasks)))

    async def leave(self) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.wait(self.tasks)


async def _marked(pool: Pool, told: list, *, count: int = 1, **share) -> list:
    """Return the slots whose holders are told for one who waits, in order: none, or ``count`` at least."""
    before = len(told)
    token = await pool.evict(**share)
    if token is None:
        return []
    await await_until("they are told", lambda: len(told) - before >= count)
    assert told[before].token == token
    return told[before:]


async def test_as_many_holders_end_as_a_heavy_one_needs_and_no_more(store):
    told: list = []
    pool = Pool("p", 4, store=store, on_lost=told.append)
    slots = [await pool.acquire(weight=weight) for weight in (1, 1, 1)]
    waiters = Waiters(pool)
    await waiters.add(weight=3)
    assert await _marked(pool, told, count=2, weight=3) == slots[:2], "one slot is free"
    assert await _marked(pool, told, weight=3) == [], "asked again, as after a lost answer"
    await waiters.add()
    assert await _marked(pool, told) == slots[2:]
    await waiters.add()
    assert await _marked(pool, told) == [], "all of them are to end"
    for slot in slots:
        await pool.release(slot)
    heavy, light, late = [await task for task in waiters.tasks[:2]] + [waiters.tasks[2]]
    assert not late.done()
    await pool.release(light)
    await late
    await pool.release(heavy)


async def test_one_heavy_holder_is_enough_for_several_light_ones(store):
    told: list = []
    pool = Pool("p", 4, store=store, on_lost=told.append)
    heavy, light = await pool.acquire(weight=3), await pool.acquire()
    waiters = Waiters(pool)
    for expected in ([heavy], [], [], [light], []):
        await waiters.add()
        assert await _marked(pool, told) == expected
    await waiters.leave()


async def test_who_waits_for_its_partition_has_a_holder_of_that_end(store):
    told: list = []
    pool = Pool("p", 6, max_per_partition=2, store=store, on_lost=told.append)
    slots = [await pool.acquire(partition=name) for name in ("a", "b", "b", "a")]
    waiters = Waiters(pool)
    await waiters.add(partition="b", weight=2)
    assert await _marked(pool, told, count=2, partition="b", weight=2) == slots[1:3], "the free ones are not b's"
    await waiters.add(partition="b")
    assert await _marked(pool, told, partition="b") == []
    await waiters.leave()


async def test_what_other_partitions_may_not_have_is_nobodys_reason(store):
    told: list = []
    pool = Pool("p", 3, max_per_partition=1, store=store, on_lost=told.append)
    slots = [await pool.acquire(partition=name) for name in ("a", "b", "c")]
    waiters = Waiters(pool)
    for _ in range(5):
        await waiters.add(partition="b")
    await waiters.add(partition="d")
    assert await _marked(pool, told, partition="d") == slots[:1], "a is the longest of all"
    assert await _marked(pool, told, partition="d") == [], "the others of b wait for b"
    assert await _marked(pool, told, partition="b") == slots[1:2]
    assert await _marked(pool, told, partition="b") == []
    await waiters.add()
    assert await _marked(pool, told) == slots[2:]
    await waiters.leave()


@pytest.mark.parametrize("share", [{"weight": 0}, {"weight": 3}, {"partition": 5}])
async def test_what_can_never_be_had_is_refused(store, call, share):
    with pytest.raises(InvalidOptionError, match=next(iter(share))):
        await call(Pool("p", 2, store=store), "evict", **share)


async def test_a_holder_is_named_by_its_fence_too(store, call):
    told: list = []
    pool = Pool("p", 2, store=store, on_lost=told.append)
    before = await pool.acquire()
    await pool.release(before)
    slot = await pool.acquire()
    assert await call(pool, "evict", slot.token, fence=before.fence) is None
    assert await call(pool, "evict", slot.token, fence=slot.fence) == slot.token
    await await_until("its holder is told", lambda: told)
    assert told == [slot]
    for fence, token in ((7, None), (0, "t"), ("7", "t")):
        with pytest.raises(InvalidOptionError, match="fence"):
            await call(pool, "evict", token, fence=fence)
    await pool.release(slot)


@pytest.mark.parametrize("size", [1, 4])
async def test_a_slot_is_freed_for_the_holder_that_is_meant_alone_and_goes_to_the_longest_waiter(store, call, size):
    async def free(token, fence) -> bool:
        steps = pool.freeing(token, fence)
        return await (run_awaiting(steps) if call.face == "async" else asyncio.to_thread(run_blocking, steps))

    pool = Pool("p", size, store=store)
    before, *others = [await pool.acquire() for _ in range(size)]
    waiter = asyncio.create_task(pool.acquire(timeout=None))
    await await_until("it waits", lambda: _waiting(pool, 1))
    for fence in (before.fence - 1, before.fence + 1, *(slot.fence for slot in others)):
        assert await free(before.token, fence) is False
    assert (await pool.size(), waiter.done()) == (size, False)
    assert await free(before.token, before.fence) is True
    slot = await waiter
    assert await free(before.token, before.fence) is False, "again"
    assert await free("unknown", slot.fence) is False
    assert await pool.size() == size
    assert await free(slot.token, None) is True, "whoever has it"
    assert await pool.size() == size - 1
    for other in others:
        await pool.release(other)
