"""Checks for caches of your own: subclass, say how one is made, and let pytest run it.

    class TestMyCache(CacheAdapterConformance):
        async def make_cache(self):
            return MyCacheAdapter()

The methods are coroutines: run them with pytest-asyncio (``asyncio_mode = "auto"``) or anyio. ``make_cache`` returns a
new, empty cache every time; it is closed afterwards.
"""

# ruff: noqa: S101 - pytest reads the assertions

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from slotline.caches.base import BaseCacheAdapter

_CALLERS = 50


class _Failure(Exception):  # noqa: N818 - it stands for any exception of a user's
    pass


class CacheAdapterConformance(ABC):
    """What every cache must do, whatever it keeps its entries in.

    Attributes:
        short: Seconds of the shortest TTL that the cache keeps to (default 0.2).
    """

    short = 0.2

    @abstractmethod
    async def make_cache(self) -> BaseCacheAdapter:
        """Return a new, empty cache."""

    @asynccontextmanager
    async def _cache(self) -> AsyncIterator[Any]:
        cache = await self.make_cache()
        try:
            yield cache
        finally:
            await cache.clear()
            await cache.close()

    async def test_a_value_that_was_set_is_found_until_it_is_invalidated(self) -> None:
        """``set``, ``get`` and ``invalidate``; ``invalidate`` says whether there was an entry."""
        async with self._cache() as cache:
            assert await cache.get("k") is None
            await cache.set("k", {"a": [1, "2"]})
            assert await cache.get("k") == {"a": [1, "2"]}
            assert await cache.invalidate("k") is True
            assert await cache.get("k") is None
            assert await cache.invalidate("k") is False

    async def test_keys_are_kept_apart(self) -> None:
        """Any text is a key, long and strange ones too."""
        keys = ["a", "A", "a ", "a:b", "{a}", "}", "é", "a\nb", "*", "[a]", "x" * 2000, "x" * 2001]
        async with self._cache() as cache:
            for number, key in enumerate(keys):
                await cache.set(key, number)
            assert [await cache.get(key) for key in keys] == list(range(len(keys)))
            assert await cache.invalidate("*") is True
            assert await cache.get("a") == 0

    async def test_the_creator_runs_once_and_its_value_is_kept(self) -> None:
        """Plain creators and those that return a coroutine."""
        async with self._cache() as cache:
            runs = []

            async def create() -> str:
                runs.append(1)
                return "made"

            assert await cache.get_or_create("plain", lambda: "made", 60) == "made"
            assert await cache.get_or_create("k", create, 60) == "made"
            assert await cache.get_or_create("k", create, ttl_seconds=60) == "made"
            assert await cache.get_or_create("k", create) == await cache.get("k") == "made"
            assert len(runs) == 1

    async def test_none_is_a_value(self) -> None:
        """A creator that returns ``None`` runs once."""
        async with self._cache() as cache:
            runs: list[int] = []
            for _ in range(3):
                assert await cache.get_or_create("k", lambda: runs.append(1)) is None
            assert len(runs) == 1

    async def test_many_callers_share_one_run(self) -> None:
        """No stampede: everyone gets the one run's value."""
        async with self._cache() as cache:
            runs = []

            async def create() -> list[int]:
                runs.append(1)
                await asyncio.sleep(self.short)
                return runs[:]

            values = await asyncio.gather(*(cache.get_or_create("k", create) for _ in range(_CALLERS)))
            assert values == [[1]] * _CALLERS

    async def test_different_keys_do_not_wait_for_each_other(self) -> None:
        """A slow creator holds up its own key alone."""
        async with self._cache() as cache:
            go = asyncio.Event()

            async def slow() -> int:
                await go.wait()
                return 1

            waiting = asyncio.create_task(cache.get_or_create("slow", slow))
            assert await asyncio.wait_for(cache.get_or_create("quick", lambda: 2), 10) == 2  # noqa: PLR2004 - the value above
            go.set()
            assert await waiting == 1

    async def test_a_failure_reaches_everyone_who_waits_and_is_not_kept(self) -> None:
        """The next caller tries again."""
        async with self._cache() as cache:
            runs = []

            async def fail() -> None:
                runs.append(1)
                await asyncio.sleep(self.short / 4)
                raise _Failure("no")

            outcomes = await asyncio.gather(*(cache.get_or_create("k", fail) for _ in range(5)), return_exceptions=True)
            assert [type(outcome) for outcome in outcomes] == [_Failure] * 5
            assert len(runs) == 1
            assert await cache.get("k") is None
            assert await cache.get_or_create("k", lambda: "better") == "better"

    async def test_a_cancelled_caller_disturbs_nobody(self) -> None:
        """Not even when it is the first one, whose creator runs."""
        async with self._cache() as cache:
            started, go = asyncio.Event(), asyncio.Event()
            runs = []

            async def create() -> str:
                runs.append(1)
                started.set()
                await go.wait()
                return "made"

            callers = [asyncio.create_task(cache.get_or_create("k", create)) for _ in range(4)]
            await started.wait()
            callers[0].cancel()
            callers[2].cancel()
            await asyncio.sleep(0)
            go.set()
            outcomes = await asyncio.gather(*callers, return_exceptions=True)
            assert outcomes[1] == outcomes[3] == "made"
            assert isinstance(outcomes[0], asyncio.CancelledError)
            assert isinstance(outcomes[2], asyncio.CancelledError)
            assert len(runs) == 1

    async def test_entries_end_with_their_ttl(self) -> None:
        """Set and created ones; 0 and ``None`` mean no expiry."""
        async with self._cache() as cache:
            await cache.set("set", 1, self.short)
            await cache.get_or_create("made", lambda: 1, self.short)
            await cache.set("zero", 1, 0)
            await cache.set("none", 1, ttl_seconds=None)
            for key in ("set", "made"):
                assert await _becomes_none(cache, key), f"{key} outlived its TTL"
            assert await cache.get_or_create("made", lambda: 2) == 2  # noqa: PLR2004 - the value before it
            assert [await cache.get("zero"), await cache.get("none")] == [1, 1]

    async def test_clear_removes_everything(self) -> None:
        """And the cache goes on working."""
        async with self._cache() as cache:
            for number in range(20):
                await cache.set(f"k{number}", number)
            await cache.clear()
            assert [await cache.get(f"k{number}") for number in range(20)] == [None] * 20
            assert await cache.get_or_create("k1", lambda: "new") == "new"

    async def test_statistics_count_hits_and_misses(self) -> None:
        """``hits``, ``misses``, ``hit_rate``, ``size`` and ``keys`` are there."""
        async with self._cache() as cache:
            await cache.get_or_create("k", lambda: 1)
            for _ in range(3):
                await cache.get_or_create("k", lambda: 1)
            stats = cache.get_stats()
            assert {"hits", "misses", "hit_rate", "size", "keys"} <= set(stats)
            assert (stats["hits"], stats["misses"]) == (3, 1)
            assert abs(stats["hit_rate"] - 0.75) < 0.01  # noqa: PLR2004 - three of four, rounded or not

    async def test_the_blocking_face_sees_the_same_entries(self) -> None:
        """``.sync`` has the same methods."""
        async with self._cache() as cache:
            await cache.set("k", "value")
            sync = cache.sync
            assert await asyncio.to_thread(sync.get, "k") == "value"
            assert await asyncio.to_thread(sync.get_or_create, "new", lambda: "made", 60) == "made"
            await asyncio.to_thread(sync.set, "k", "other")
            assert await asyncio.to_thread(sync.invalidate, "new") is True
            assert [await cache.get("k"), await cache.get("new")] == ["other", None]


async def _becomes_none(cache: Any, key: str) -> bool:
    for _ in range(500):
        if await cache.get(key) is None:
            return True
        await asyncio.sleep(0.02)
    return False
