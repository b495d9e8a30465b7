"""``cached``: functions and methods of every kind, their keys, their invalidation, and what is refused."""

from __future__ import annotations

import asyncio
import inspect
import math
import threading
from dataclasses import dataclass

import pytest

from slotline.caches import BaseCacheAdapter, InMemoryCacheAdapter, cached, default_cache
from slotline.caches.testing import CacheAdapterConformance
from slotline.errors import AsyncCreatorError, InvalidOptionError, SerializationError


@dataclass
class Account:
    id: int


def test_a_plain_function_runs_once_for_equal_calls():
    runs = []

    @cached(60)
    def add(left: int, right: int = 2) -> int:
        """Add."""
        runs.append((left, right))
        return left + right

    assert add(1) == add(left=1) == add(1, 2) == add(1, right=2) == 3
    assert add(2) == 4
    assert runs == [(1, 2), (2, 2)]
    assert (add.__name__, add.__doc__) == ("add", "Add.")
    assert inspect.signature(add).parameters.keys() == {"left", "right"}
    assert add.invalidate(left=1) is True
    assert add.invalidate(1) is False
    assert add(1) == 3
    assert len(runs) == 3


async def test_a_coroutine_function_stays_one_and_shares_runs():
    runs = []

    @cached(60, cache=InMemoryCacheAdapter())
    async def slow(number: int) -> int:
        runs.append(number)
        await asyncio.sleep(0.01)
        return number * 2

    assert inspect.iscoroutinefunction(slow)
    assert await asyncio.gather(*(slow(3) for _ in range(20))) == [6] * 20
    assert runs == [3]
    assert await slow.invalidate(3) is True
    assert await slow(3) == 6
    assert len(runs) == 2


def test_threads_share_a_run_of_a_plain_function():
    runs, go = [], threading.Event()

    @cached(60, cache=InMemoryCacheAdapter())
    def slow():
        runs.append(1)
        assert go.wait(20)
        return "made"

    values = []
    threads = [threading.Thread(target=lambda: values.append(slow())) for _ in range(5)]
    for thread in threads:
        thread.start()
    go.set()
    for thread in threads:
        thread.join()
    assert values == ["made"] * 5
    assert runs == [1]


def test_a_template_names_the_key_and_other_arguments_do_not_count():
    cache = InMemoryCacheAdapter()

    @cached(60, key="account:{account.id}:{lang}", cache=cache)
    def greeting(account: Account, lang: str = "en", trace: object = None) -> str:
        return f"{lang}{account.id}"

    assert greeting(Account(1)) == greeting(Account(1), trace=object()) == "en1"
    assert greeting.key_for(Account(2), "de") == "account:2:de"
    assert cache.get_stats()["keys"] == ["account:1:en"]


def test_a_version_makes_other_keys():
    def function(number):
        return number

    keys = {
        cached(key=key, version=version)(function).key_for(1)
        for key in (None, "k:{number}")
        for version in (None, 1, 2)
    }
    assert len(keys) == 6
    assert "k:1@2" in keys


class Repository:
    def __init__(self, name):
        self.name = name
        self.runs = 0

    def __cache_key__(self):
        return self.name

    @cached(60)
    def plain(self, number: int) -> str:
        self.runs += 1
        return f"{self.name}{number}"

    @cached(60, key="repository:{self.name}:{number}")
    async def later(self, number: int) -> str:
        self.runs += 1
        return f"{self.name}{number}"

    @classmethod
    @cached(60)
    def on_class(cls, number: int) -> str:
        return f"{cls.__name__}{number}"

    @cached(60)
    @classmethod
    def above(cls, number: int) -> str:
        return f"{cls.__name__}{number}"

    @cached(60)
    @classmethod
    async def above_later(cls, number: int) -> str:
        return f"{cls.__name__}{number}"

    @staticmethod
    @cached(60)
    def static(number: int) -> int:
        return number


class Special(Repository):
    pass


async def test_methods_are_kept_for_each_object():
    one, again, two = Repository("one"), Repository("one"), Repository("two")
    assert one.plain(1) == again.plain(number=1) == "one1"
    assert two.plain(1) == "two1"
    assert (one.runs, again.runs, two.runs) == (1, 0, 1)
    assert inspect.iscoroutinefunction(one.later)
    assert await one.later(1) == await again.later(1) == "one1"
    assert one.later.key_for(1) == "repository:one:1"
    assert await one.later.invalidate(1) is True
    assert one.plain.invalidate(1) is True
    assert Repository.plain.invalidate(two, 1) is True
    assert one.plain(1) == "one1"
    assert one.runs == 3
    assert (Repository.on_class(1), Special.on_class(1), Repository.static(4)) == ("Repository1", "Special1", 4)


async def test_a_method_of_a_class_is_kept_for_each_class():
    assert (Repository.above(1), Special.above(1), Special("one").above(1)) == ("Repository1", "Special1", "Special1")
    assert Repository.above.key_for(1) != Special.above.key_for(1)
    assert [Special.above.invalidate(1), Special.above.invalidate(1), Repository.above.invalidate(1)] == [
        True,
        False,
        True,
    ]
    assert inspect.iscoroutinefunction(Special.above_later)
    assert await Special.above_later(1) == "Special1"
    assert await Special("one").above_later.invalidate(1) is True


def test_a_method_of_an_object_without_a_value_says_what_to_do():
    class Service:
        @cached(60)
        def method(self): ...

    with pytest.raises(SerializationError, match=r"argument 'self' .* __cache_key__\(\) .* template"):
        Service().method()


async def test_options_reach_the_cache():
    cache = InMemoryCacheAdapter()
    runs = []

    @cached(60, cache=cache, tags=["t"], cache_errors=True)
    async def failing(number):
        runs.append(number)
        raise ValueError("no")

    for _ in range(3):
        with pytest.raises(ValueError, match="no"):
            await failing(1)
    assert runs == [1]
    assert await cache.invalidate_tag("t") == 1


def test_a_coroutine_made_by_a_plain_function_is_refused():
    @cached(60)
    def lazy():
        return asyncio.sleep(0)

    with pytest.raises(AsyncCreatorError):
        lazy()


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"ttl": -1}, "ttl"),
        ({"ttl": "5"}, "ttl"),
        ({"ttl": math.nan}, "ttl"),
        ({"key": "k:{missing}"}, "key"),
        ({"key": ""}, "key"),
        ({"cache": object()}, "cache"),
        ({"beta": -1}, "beta"),
        ({"tags": "t"}, "tags"),
        ({"grace_seconds": True}, "grace_seconds"),
    ],
)
def test_impossible_options_are_refused_where_the_function_is_decorated(options, name):
    with pytest.raises(InvalidOptionError, match=name):
        cached(**options)(lambda number: number)


def test_what_cannot_be_kept_is_refused_where_it_is_decorated():
    def generator():
        yield 1

    for function in (generator, 5, "f"):
        with pytest.raises(InvalidOptionError, match="cached"):
            cached(60)(function)
    with pytest.raises(InvalidOptionError):
        cached(lambda: 1)(lambda: 1)


class Dictionary(BaseCacheAdapter):
    """A user's cache that awaits for real."""

    def __init__(self):
        self.entries = {}
        self.loops = set()
        self.closed = False

    async def get_or_create(self, key, creator, ttl_seconds=3600):
        self.loops.add(asyncio.get_running_loop())
        await asyncio.sleep(0)
        if key not in self.entries:
            value = creator()
            self.entries[key] = (await value) if inspect.isawaitable(value) else value
        return self.entries[key]

    async def get(self, key):
        return self.entries.get(key)

    async def set(self, key, value, ttl_seconds=3600):
        self.entries[key] = value

    async def invalidate(self, key):
        await asyncio.sleep(0)
        return self.entries.pop(key, None) is not None

    async def clear(self):
        self.entries.clear()

    def get_stats(self):
        return {"hits": 0, "misses": 0, "hit_rate": 0.0, "size": len(self.entries), "keys": list(self.entries)}

    async def close(self):
        self.closed = True
        await super().close()


def test_a_users_cache_has_a_blocking_face_in_one_loop_of_its_own():
    cache = Dictionary()
    seen = []

    def create():
        seen.append(threading.current_thread())
        return "made"

    assert cache.sync.get_or_create("k", create) == cache.sync.get_or_create("k", create) == "made"
    cache.sync.set("none", None)
    assert cache.sync.get("k") == cache.sync.lookup("k").value == "made"
    assert cache.sync.lookup("none") is None
    assert cache.sync.invalidate("k") is True
    assert cache.sync.get_stats()["keys"] == ["none"]
    cache.sync.clear()
    with pytest.raises(AsyncCreatorError):
        cache.sync.get_or_create("k", lambda: asyncio.sleep(0))
    assert len(cache.loops) == 1
    assert seen[0].name.startswith("asyncio_")  # never in the loop's own thread
    cache.sync.close()
    assert cache.closed


def test_a_users_cache_works_under_cached_and_refuses_what_it_cannot_do():
    cache = Dictionary()

    @cached(60, cache=cache)
    def double(number):
        return number * 2

    assert double(2) == double(2) == 4
    assert len(cache.entries) == 1
    assert double.invalidate(2) is True
    cache.sync.close()
    with pytest.raises(InvalidOptionError, match="tags"):
        cached(60, cache=cache, tags=["t"])(double)


def test_the_default_cache_is_one_a_process():
    assert default_cache() is default_cache()
    assert isinstance(default_cache(), InMemoryCacheAdapter)


def test_the_conformance_suite_needs_nothing_but_a_way_to_make_a_cache():
    assert CacheAdapterConformance.__abstractmethods__ == {"make_cache"}
