"""Pools and decorated functions refuse what they cannot mean, when they are made."""

from __future__ import annotations

import asyncio
import math

import pytest

from slotline import InvalidOptionError, MemoryStore, Pool, PoolFullError, pooled


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"key": ""}, "key"),
        ({"key": 5}, "key"),
        ({"key": None}, "key"),
        *[({"max_size": value}, "max_size") for value in (0, -1, 1.5, True, "3", None, math.nan, math.inf)],
        *[({"slot_exp": value}, "slot_exp") for value in (0, -1, True, "60", math.nan, math.inf)],
        ({"store": "redis://localhost"}, "store"),
        ({"on_lost": "cancel"}, "on_lost"),
    ],
)
def test_impossible_options_are_refused_by_name(options, named):
    with pytest.raises(InvalidOptionError, match=f"^{named}=") as caught:
        Pool(**{"key": "p", "max_size": 1, **options})
    assert "must be" in str(caught.value)


@pytest.mark.parametrize("timeout", [-1, math.nan, math.inf, True, "5"])
def test_impossible_timeouts_are_refused_by_name(timeout):
    pool = Pool("p", 1, store=MemoryStore())
    with pytest.raises(InvalidOptionError, match=r"^timeout="):
        pool.sync.acquire(timeout=timeout)
    with pytest.raises(InvalidOptionError, match=r"^timeout="):
        pool.slot(timeout=timeout)


def a_generator():
    yield 1


async def an_async_generator():
    yield 1


@pytest.mark.parametrize("function", [a_generator, an_async_generator])
def test_a_generator_is_refused_which_would_run_without_its_slot(function):
    with pytest.raises(InvalidOptionError, match="a function that returns its result"):
        pooled("p", 1)(function)


def test_a_decorated_function_runs_in_a_slot_of_the_pool_that_its_arguments_name():
    store = MemoryStore()

    @pooled("api:{tenant}", 1, raise_on_full=True, store=store)
    def call(tenant, depth=0):
        used = Pool(f"api:{tenant}", 1, store=store).sync.size()
        return [used, *(call("other") if depth else [])]

    assert call("a") == [1]
    assert call(tenant="a", depth=1) == [1, 1]
    with Pool("api:a", 1, store=store), pytest.raises(PoolFullError):
        call("a")


async def test_a_decorated_coroutine_function_runs_in_a_slot():
    store = MemoryStore()

    @pooled("api", 2, store=store)
    async def call(number):
        await asyncio.sleep(0.01)
        return number

    assert sorted(await asyncio.gather(call(1), call(2), call(3)), key=str) == [1, 2, None]
    assert await Pool("api", 2, store=store).size() == 0


async def test_what_happens_when_the_pool_is_full_is_the_users_choice():
    store = MemoryStore()
    full = Pool("api", 1, store=store)

    async def elsewhere(number):
        return f"elsewhere {number}"

    quiet = pooled("api", 1, store=store)(lambda number: number)
    loud = pooled("api", 1, None, True, store=store)(lambda number: number)
    sync = pooled("api", 1, lambda number: -number, store=store)(lambda number: number)

    @pooled("api", 1, elsewhere, store=store)
    async def coroutine(number):
        return number

    async with full:
        assert quiet(1) is None
        with pytest.raises(PoolFullError):
            loud(1)
        assert sync(number=2) == -2
        assert await coroutine(3) == "elsewhere 3"
    assert (quiet(1), loud(1), sync(2), await coroutine(3)) == (1, 1, 2, 3)


def test_a_full_pool_inside_the_function_is_the_functions_own_error():
    store = MemoryStore()
    inner = Pool("inner", 1, store=store)

    @pooled("outer", 1, lambda: "on_full", store=store)
    def call():
        with inner:
            return "ran"

    with inner, pytest.raises(PoolFullError, match="inner"):
        call()
    assert call() == "ran"


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"key": "api:{tenant}"}, "key"),
        ({"key": "api:{number!r}"}, "key"),
        ({"key": "api:{"}, "key"),
        ({"max_size": 0}, "max_size"),
        ({"on_full": "no"}, "on_full"),
        ({"raise_on_full": 1}, "raise_on_full"),
        ({"slot_exp": 0}, "slot_exp"),
    ],
)
def test_impossible_options_of_the_decorator_are_refused_when_it_is_applied(options, named):
    with pytest.raises(InvalidOptionError, match=f"^{named}="):
        pooled(**{"key": "api", "max_size": 1, **options})(lambda number: number)


def test_blocks_may_be_left_in_another_thread_than_they_were_entered_in():
    pool = Pool("p", 2, store=MemoryStore())

    async def elsewhere():
        await asyncio.to_thread(pool.__enter__)
        await asyncio.to_thread(pool.__exit__, None, None, None)

    asyncio.run(elsewhere())
    assert pool.sync.size() == 0
    with pytest.raises(RuntimeError, match="more often"):
        pool.__exit__(None, None, None)


def test_a_block_of_slot_is_good_for_one_use():
    pool = Pool("p", 1, store=MemoryStore())
    block = pool.slot()
    with block:
        pass
    with pytest.raises(RuntimeError, match="call it again"), block:
        pass
    with pytest.raises(RuntimeError, match="never entered"):
        pool.slot().__exit__(None, None, None)


def test_a_decorated_function_runs_in_a_slot_of_each_of_several_pools():
    store = MemoryStore()

    @pooled(["db", "api:{tenant}"], [3, 1], raise_on_full=True, store=store)
    def call(tenant, then=""):
        return call(then) if then else [Pool(key, 1, store=store).sync.size() for key in ("db", f"api:{tenant}")]

    assert call("a") == [1, 1]
    assert call("a", then="b") == [2, 1]
    with pytest.raises(PoolFullError, match=r"Pool 'api:a' is full"):
        call("a", then="a")
    assert Pool("db", 1, store=store).sync.size() == 0


async def test_two_templates_that_give_one_key_are_one_pool():
    store = MemoryStore()

    @pooled(("account:{source}", "account:{target}"), 1, raise_on_full=True, store=store)
    async def move(source, target):
        return await Pool(f"account:{source}", 1, store=store).size()

    assert await move(1, 2) == 1
    assert await move(1, 1) == 1


@pytest.mark.parametrize(
    ("key", "max_size", "named"),
    [([], 1, "key"), (["a", ""], 1, "key"), (["a", "b"], [1], "max_size"), (["a", "b"], [1, 0], "max_size")],
)
def test_impossible_lists_of_pools_are_refused_by_name(key, max_size, named):
    with pytest.raises(InvalidOptionError, match=f"^{named}="):
        pooled(key, max_size)
