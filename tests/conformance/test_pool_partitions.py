"""Partitions: tenants that take turns, and have at most their share, on every store and through both faces."""

from __future__ import annotations

import asyncio
from functools import partial

import pytest

from slotline import InvalidOptionError, MemoryStore, Pool, PoolFullError, Slot, pooled
from slotline.pools import Place
from tests.harness.waiting import await_until


async def waiting(pool: Pool, count: int) -> bool:
    return (await pool.info()).waiting == count


class Crowd:
    """Places in a pool's line, each of a partition, and the order in which they are served."""

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        self.served: list[str] = []
        self.slots: list[Slot] = []
        self.places: list[Place] = []

    async def add(self, partition: str | None, count: int = 1, weight: int = 1) -> None:
        for _ in range(count):
            place = Place(
                self.pool, on_grant=partial(self._granted, str(partition)), weight=weight, partition=partition
            )
            self.places.append(place)
            assert await place.enter() is None

    async def leave(self) -> None:
        """Give up what is left."""
        for place in self.places:
            await place.leave()

    def _granted(self, partition: str, slot: Slot) -> None:
        self.served.append(partition)
        self.slots.append(slot)

    async def serve(self, slot: Slot) -> list[str]:
        """Give one slot after the other back until everybody was served."""
        count = (await self.pool.info()).waiting
        await self.pool.release(slot)
        for number in range(count):
            await await_until(f"waiter {number} is served", lambda number=number: len(self.slots) > number)
            await self.pool.release(self.slots[number])
        return self.served


async def test_partitions_that_wait_are_served_one_after_the_other(store):
    pool = Pool("p", 1, store=store)
    crowd, held = Crowd(pool), await pool.acquire(partition="a")
    await crowd.add("a", 4)
    await crowd.add("b", 2)
    await crowd.add(None, 1)
    await crowd.add("c", 2)
    assert await crowd.serve(held) == ["a", "b", "None", "c", "a", "b", "c", "a", "a"]
    assert await pool.size() == 0


async def test_a_crowd_of_one_tenant_does_not_delay_the_first_of_another(store):
    pool = Pool("p", 1, store=store)
    crowd, held = Crowd(pool), await pool.acquire(partition="a")
    await crowd.add("a", 300)
    await crowd.add("b", 1)
    await pool.release(held)
    for number in range(2):
        await await_until(f"waiter {number} is served", lambda number=number: len(crowd.slots) > number)
        await pool.release(crowd.slots[number])
    assert crowd.served[:2] == ["a", "b"]
    await crowd.leave()


async def test_who_is_let_in_at_once_past_those_who_want_too_much_has_had_the_turn_of_its_partition(store):
    pool = Pool("p", 3, store=store)
    crowd, held = Crowd(pool), await pool.acquire(weight=2)
    await crowd.add("a", weight=3)
    await crowd.add("b", weight=3)
    await pool.resize(2)
    await pool.release(held)
    await pool.release(await pool.acquire(partition="a"))
    await pool.resize(3)
    await await_until("one of them is served", lambda: crowd.served)
    assert crowd.served == ["b"]
    await crowd.leave()


async def test_a_partition_has_at_most_its_share_and_the_others_the_rest(store, call):
    pool = Pool("p", 4, max_per_partition=2, store=store)
    mine = [await call(pool, "acquire", partition="a") for _ in range(2)]
    with pytest.raises(PoolFullError, match="left to the partition"):
        await call(pool, "acquire", partition="a")
    crowd = Crowd(pool)
    await crowd.add("a", 2)
    await call(pool, "acquire", partition="b")
    await call(pool, "acquire")
    assert (await pool.info()).used == 4
    assert {holder.partition for holder in (await pool.info()).holders} == {"a", "b", None}
    assert crowd.served == []
    await call(pool, "release", mine[0])
    await await_until("the first of the partition is served", lambda: crowd.slots)
    assert await waiting(pool, 1)
    await call(pool, "release", mine[1])
    await await_until("so is the second", lambda: len(crowd.slots) == 2)


async def test_within_a_partition_a_heavy_waiter_is_not_overtaken(store):
    pool = Pool("p", 5, max_per_partition=2, store=store)
    held = await pool.acquire(partition="a")
    crowd = Crowd(pool)
    await crowd.add("a", weight=2)
    with pytest.raises(PoolFullError):
        await pool.acquire(partition="a")
    await crowd.add("a")
    await pool.release(await pool.acquire(partition="b", weight=2))
    assert crowd.served == []
    await pool.release(held)
    await await_until("the heavy one is served", lambda: crowd.slots)
    assert await waiting(pool, 1)
    await pool.release(crowd.slots[0])
    await await_until("so is the one behind it", lambda: len(crowd.slots) == 2)
    assert await pool.size() == 1


async def test_whoever_gives_up_a_heavy_place_lets_those_behind_it_through(store):
    pool = Pool("p", 5, max_per_partition=2, store=store)
    await pool.acquire(partition="a")
    heavy = asyncio.create_task(pool.acquire(partition="a", weight=2, timeout=30))
    await await_until("the heavy one waits", partial(waiting, pool, 1))
    light = asyncio.create_task(pool.acquire(partition="a", timeout=30))
    await await_until("both wait", partial(waiting, pool, 2))
    heavy.cancel()
    await asyncio.wait_for(light, 20)


async def test_a_larger_share_declared_anew_serves_those_who_wait_for_it(store):
    pool = Pool("p", 5, max_per_partition=1, store=store)
    await pool.acquire(partition="a")
    crowd = Crowd(pool)
    await crowd.add("a", 2)
    await Pool("p", 5, max_per_partition=2, store=store).acquire(partition="b", timeout=5)
    await pool.release(await pool.acquire(partition="c"))
    await await_until("one more has its share", lambda: len(crowd.slots) == 1)
    assert await waiting(pool, 1)


async def test_a_share_that_expires_is_free_for_the_next_of_its_partition(store, call):
    pool = Pool("p", 4, slot_exp=0.2, max_per_partition=1, store=store)
    await call(pool, "acquire", partition="a")
    slot = await call(pool, "acquire", partition="a", timeout=20)
    await call(pool, "release", slot)
    assert await call(pool, "size") == 0


@pytest.mark.parametrize(
    "partition", ["", "plain", "a|b", "x" * 10_240, "ünï\x00code\udcff", b"\x00\xff|", b"bytes", "~x", "{a}"]
)
async def test_any_text_and_any_bytes_are_a_partition_and_do_not_mix(store, call, partition):
    pool = Pool("p", 9, max_per_partition=1, store=store)
    slot = await call(pool, "acquire", partition=partition)
    with pytest.raises(PoolFullError):
        await call(pool, "acquire", partition=partition)
    other = await call(pool, "acquire", partition=partition + partition[:0] + type(partition)(*_more(partition)))
    await call(pool, "release", slot)
    await call(pool, "release", other)
    await call(pool, "acquire", partition=partition)


def _more(partition: str | bytes) -> tuple[object, ...]:
    return ("!",) if isinstance(partition, str) else ([33],)


async def test_an_impossible_share_or_partition_is_refused_by_name(store, call):
    for value in (0, -1, 1.5, True, "2"):
        with pytest.raises(InvalidOptionError, match=r"^max_per_partition="):
            Pool("p", 3, max_per_partition=value, store=store)
    pool = Pool("p", 3, max_per_partition=2, store=store)
    with pytest.raises(InvalidOptionError, match=r"^weight=3 .*max_per_partition"):
        await call(pool, "acquire", partition="a", weight=3)
    await call(pool, "release", await call(pool, "acquire", weight=3))
    with pytest.raises(InvalidOptionError, match=r"^partition="):
        await call(pool, "acquire", partition=5)
    with pytest.raises(InvalidOptionError, match=r"^partition="):
        pooled("p", 3, partition="{tenant}", store=store)(lambda other: other)


def test_a_decorated_function_runs_on_account_of_the_partition_that_its_arguments_name():
    store = MemoryStore()

    @pooled("p", 9, raise_on_full=True, max_per_partition=1, partition="{tenant}", store=store)
    def call(tenant: str, then: str = "") -> str | None:
        return call(then) if then else tenant

    assert call("a", then="b") == "b"
    with pytest.raises(PoolFullError):
        call("a", then="a")
