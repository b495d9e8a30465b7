"""What a pool promises, on every store and through both faces."""

from __future__ import annotations

import asyncio
import contextvars
import threading

import pytest

from slotline import Limits, MemoryStore, Pool, PoolFullError, PoolTimeoutError, configure
from slotline.pools import Place
from tests.harness.waiting import await_until


async def test_takes_as_many_slots_as_it_has_and_then_says_who_holds_them(store, call):
    pool = Pool("p", 2, store=store)
    await call(pool, "acquire", owner="ann")
    await call(pool, "acquire", owner="bob")
    with pytest.raises(PoolFullError) as caught:
        await call(pool, "acquire")
    assert (caught.value.key, caught.value.max_size, sorted(caught.value.holders)) == ("p", 2, ["ann", "bob"])
    assert await call(pool, "size") == 2


@pytest.mark.parametrize("several", [False, True], ids=["one", "several"])
async def test_a_slot_is_given_back_to_the_store_it_was_taken_from(store, call, several):
    configure(store=store)
    pools = Pool("p", 1), Pool("q", 1)
    limit = Limits(*pools) if several else pools[0]
    async with call.using(limit):
        assert await call(pools[0], "size") == 1
        configure(store=MemoryStore())
    assert await call(limit, "release", await call(limit, "acquire")) is True
    assert [await call(Pool(pool.key, 1, store=store), "size") for pool in pools] == [0, 0]
    assert store.keeper is None or not store.keeper._kept


def test_blocks_that_are_left_in_other_threads_are_kept_nowhere(store):
    pool, here = Pool("p", 1, store=store), contextvars.Context()
    for _ in range(3):
        here.run(pool.__enter__)
        thread = threading.Thread(target=pool.__exit__, args=(None, None, None))
        thread.start()
        thread.join()
    assert [len(value) for value in here.values()] == [1], "the newest only"
    assert pool.sync.size() == 0


async def test_a_released_slot_can_be_taken_again(store, call):
    pool = Pool("p", 1, store=store)
    slot = await call(pool, "acquire")
    assert await call(pool, "release", slot) is True
    assert await call(pool, "size") == 0
    await call(pool, "acquire")


async def test_releasing_twice_is_harmless(store, call):
    pool = Pool("p", 1, store=store)
    slot = await call(pool, "acquire")
    await call(pool, "release", slot)
    other = await call(pool, "acquire")
    assert await call(pool, "release", slot) is False
    assert await call(pool, "size") == 1
    assert other.lost is False


async def test_the_block_holds_a_slot_and_gives_it_back_after_an_exception(store, call):
    pool = Pool("p", 1, store=store)

    async def fail() -> None:
        async with call.using(pool) as slot:
            assert slot.lost is False
            assert await pool.size() == 1
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail()
    assert await pool.size() == 0


async def test_the_block_takes_a_slot_at_once_or_raises(store, call):
    pool = Pool("p", 1, store=store)
    await pool.acquire()
    with pytest.raises(PoolFullError):
        async with call.using(pool):
            pytest.fail("entered a full pool")


async def test_a_holder_may_enter_again_and_takes_another_slot(store):
    pool = Pool("p", 2, store=store)
    async with pool as first:
        async with pool as second:
            assert first.token != second.token
            with pytest.raises(PoolFullError):
                await pool.acquire()
        assert await pool.size() == 1
    assert await pool.size() == 0


async def test_fences_grow_within_a_pool_even_after_it_was_empty(store, call):
    pool = Pool("p", 3, store=store)
    fences = []
    for _ in range(5):
        slot = await call(pool, "acquire")
        fences.append(slot.fence)
        await call(pool, "release", slot)
    assert fences == sorted(set(fences))


async def test_a_slot_stops_counting_after_slot_exp_and_running_code_goes_on(store, call):
    pool = Pool("p", 1, slot_exp=0.2, store=store)
    slot = await call(pool, "acquire")
    assert slot.lost is False
    await await_until("the slot no longer counts", lambda: slot.lost)
    again = await call(pool, "acquire", timeout=5)  # a holder never believes longer than the store does
    assert again.fence > slot.fence
    assert await call(pool, "release", slot) is False
    assert await call(pool, "size") == 1


async def test_a_pool_with_slot_exp_none_has_no_such_end(store):
    slot = await Pool("p", 1, slot_exp=None, store=store).acquire()
    assert slot.expired is False
    assert slot.lost is False


async def test_waiters_are_served_in_the_order_in_which_they_came(store):
    pool = Pool("p", 1, store=store)
    held = await pool.acquire()
    served: list[int] = []

    async def wait(number: int) -> None:
        async with pool.slot(timeout=20):
            served.append(number)

    tasks = []
    for number in range(8):
        tasks.append(asyncio.create_task(wait(number)))
        await await_until(f"waiter {number} stands in line", lambda: _waiting(pool, len(tasks)))
    await pool.release(held)
    await asyncio.gather(*tasks)
    assert served == list(range(8))
    assert await pool.size() == 0


async def _waiting(pool: Pool, count: int) -> bool:
    return (await pool.info()).waiting == count


async def test_waiting_ends_with_an_error_after_the_timeout_and_leaves_no_place_behind(store, call):
    pool = Pool("p", 1, store=store)
    await pool.acquire()
    with pytest.raises(PoolTimeoutError) as caught:
        await call(pool, "acquire", timeout=0.1)
    assert caught.value.timeout == 0.1
    assert isinstance(caught.value, TimeoutError)
    info = await pool.info()
    assert (info.used, info.waiting) == (1, 0)


async def test_a_waiter_gets_the_slot_that_expires(store, call):
    pool = Pool("p", 1, slot_exp=0.3, store=store)
    first = await pool.acquire()
    second = await call(pool, "acquire", timeout=10)
    assert second.fence > first.fence


async def test_a_cancelled_waiter_leaves_the_line_and_a_cancelled_holder_its_slot(store):
    pool = Pool("p", 1, store=store)

    async def hold() -> None:
        async with pool.slot():
            await asyncio.sleep(60)

    tasks = [asyncio.create_task(hold()) for _ in range(6)]
    await await_until("one holds and five wait", lambda: _waiting(pool, 5))
    for task in tasks[1:4]:
        task.cancel()
    await await_until("two wait", lambda: _waiting(pool, 2))
    tasks[0].cancel()
    await await_until("one waits", lambda: _waiting(pool, 1))
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await await_until("nobody holds a slot", lambda: _empty(pool))


async def _empty(pool: Pool) -> bool:
    info = await pool.info()
    return info.used == 0 and info.waiting == 0


@pytest.mark.parametrize("rounds", range(0, 60, 3))
async def test_cancelling_at_any_moment_leaks_neither_slot_nor_place(store, rounds):
    pool = Pool("p", 1, store=store)

    async def use() -> None:
        async with pool.slot(timeout=5):
            await asyncio.sleep(0)

    tasks = [asyncio.create_task(use()) for _ in range(4)]
    for _ in range(rounds):
        await asyncio.sleep(0)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await await_until("the pool is empty", lambda: _empty(pool))


async def test_many_tasks_and_threads_never_exceed_the_limit(store):
    pool = Pool("p", 3, store=store)
    lock, inside, peak = threading.Lock(), 0, 0

    def step(by: int) -> None:
        nonlocal inside, peak
        with lock:
            inside += by
            peak = max(peak, inside)

    async def task() -> None:
        async with pool.slot(timeout=30):
            step(1)
            await asyncio.sleep(0.002)
            step(-1)

    def thread() -> None:
        with pool.slot(timeout=30):
            step(1)
            threading.Event().wait(0.002)
            step(-1)

    await asyncio.gather(*(task() for _ in range(60)), *(asyncio.to_thread(thread) for _ in range(20)))
    assert peak == 3
    assert await pool.size() == 0


async def test_resizing_serves_waiters_at_once_and_takes_nothing_from_holders(store, call):
    pool = Pool("p", 1, store=store)
    await pool.acquire()
    waiter = asyncio.create_task(pool.acquire(timeout=20))
    await await_until("it waits", lambda: _waiting(pool, 1))
    assert await call(pool, "resize", 2) == 1
    await waiter
    assert await call(pool, "resize", 1) == 2
    info = await call(pool, "info")
    assert (info.max_size, info.used) == (1, 2)


async def test_the_newest_declaration_of_a_size_wins_and_both_are_logged(store, caplog):
    old, new = Pool("p", 1, store=store), Pool("p", 2, store=store)
    await old.acquire()
    await new.acquire()
    assert (await old.info()).max_size == 2
    assert "declared as 2 here and was as 1 before" in caplog.text


async def test_declarations_are_logged_in_words(store, caplog):
    await Pool("p", 9, rate="100/m", burst=3, max_per_partition=2, store=store).acquire()
    await Pool("p", None, rate="2/s", store=store).acquire(timeout=20)
    assert "declared as a start every 0.5 s (burst 1) here and was as 9, a start every 0.6 s (burst 3)" in caplog.text
    assert "2 of a partition before" in caplog.text


async def test_a_repeated_declaration_leaves_a_live_resize_alone(store):
    await (first := Pool("p", 1, store=store)).acquire()
    await first.resize(3)
    again = Pool("p", 1, store=store)
    await again.acquire()
    assert (await again.info()).max_size == 3


async def test_info_names_holders_with_their_fences(store, call):
    pool = Pool("p", 2, store=store)
    slot = await call(pool, "acquire", owner="a|b with ünïcode")
    (holder,) = (await call(pool, "info")).holders
    assert (holder.token, holder.owner, holder.fence) == (slot.token, "a|b with ünïcode", slot.fence)


@pytest.mark.parametrize("key", ["plain", "with {braces} and }", "ünïcode", "x" * 10_000, "a b\nc\x00d"])
async def test_any_text_is_a_key_and_keys_do_not_mix(store, key):
    pool, other = Pool(key, 1, store=store), Pool(key + "!", 1, store=store)
    async with pool, other:
        with pytest.raises(PoolFullError):
            await pool.acquire()


async def test_a_place_grants_a_waiting_caller_its_slot_by_callback(store, call):
    pool = Pool("p", 1, store=store)
    held = await pool.acquire()
    granted: list = []
    place = Place(pool, owner="gate", on_grant=granted.append)
    assert await call(place, "enter") is None
    assert place.position == 0
    await pool.release(held)
    await await_until("the grant has come", lambda: granted)
    assert await call(place, "enter") is None
    assert len(granted) == 1
    assert await call(pool, "release", granted[0]) is True


async def test_a_place_that_leaves_is_out_of_the_line(store, call):
    pool = Pool("p", 1, store=store)
    await pool.acquire()
    place = Place(pool, on_grant=lambda slot: None)
    assert await call(place, "enter") is None
    await call(place, "leave")
    assert (await pool.info()).waiting == 0


async def test_a_slot_of_another_pool_is_refused(store, call):
    slot = await Pool("p", 1, store=store).acquire()
    with pytest.raises(ValueError, match="slot of pool 'q'"):
        await call(Pool("q", 1, store=store), "release", slot)
