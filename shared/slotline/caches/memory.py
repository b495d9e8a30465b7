"""The cache in this process's memory: bounded, least recently used first out, on a monotonic clock."""

from __future__ import annotations

import math
import random
from collections import OrderedDict
from functools import cached_property
from heapq import heapify, heappop, heappush
from time import monotonic
from typing import TYPE_CHECKING, Any

from slotline._checks import refuse, whole_number
from slotline.caches._creating import create
from slotline.caches._engine import CacheAdapter, Overrides, SyncCacheAdapter, check_key, logger
from slotline.caches._flights import Flight, Outcome, failed
from slotline.caches._options import DEFAULT_TTL, EntryOptions
from slotline.caches.base import Creator, Hit

if TYPE_CHECKING:
    from typing import Unpack

    from slotline.steps import Steps

REFRESH_PAUSE = 1.0
"""Seconds between two tries to refresh an entry that keeps failing."""
_LEAST_CHANCE = 37.0
"""No random number of 53 bits makes XFetch look further ahead than this many creator runs."""
_SLACK = 64
_AT_ONCE = 1000
"""How many ended entries one call removes on its way."""


class _Entry:
    __slots__ = (
        "delta", "error", "fresh_until", "kept_until", "key", "retry_at", "stale_until", "sure_until", "tags", "value",
    )  # fmt: skip

    def __init__(self, key: str, value: Any, options: EntryOptions, delta: float, *, error: bool) -> None:
        now = monotonic()
        life = options.errors_ttl if error else options.life()
        self.key = key
        self.value = value
        self.error = error
        self.delta = delta
        self.tags = options.tags
        self.retry_at = 0.0
        self.fresh_until = now + life
        self.stale_until = self.fresh_until + (0.0 if error else options.grace)
        self.kept_until = self.stale_until + (0.0 if error else options.keep)
        # Until then a hit needs no second look: neither an early refresh nor an exception is possible.
        self.sure_until = -math.inf if error else self.fresh_until - options.beta * delta * _LEAST_CHANCE


class InMemoryCacheAdapter(CacheAdapter):
    """A cache in this process's memory, shared by its threads and event loops.

    Every caller gets the same object, not a copy: do not change a value that came from the cache. Expired entries are
    removed as the cache is used, without a thread.

    Args:
        default_ttl: Seconds that a value is kept (default 3600); 0 and ``None`` mean no expiry.
        max_size: How many entries are kept (default 100,000), the least recently used leaves first; ``None`` sets no
            limit.
        grace_seconds: See :class:`CacheAdapter`.
        beta: See :class:`CacheAdapter`.
        cache_errors: See :class:`CacheAdapter`.
        jitter: See :class:`CacheAdapter`.
    """

    def __init__(
        self,
        default_ttl: float | None = 3600,
        *,
        max_size: int | None = 100_000,
        grace_seconds: float | None = None,
        beta: float | None = None,
        cache_errors: bool | float | None = False,
        jitter: float = 0.0,
    ) -> None:
        super().__init__(default_ttl, grace_seconds=grace_seconds, beta=beta, cache_errors=cache_errors, jitter=jitter)
        self.max_size = math.inf if max_size is None else whole_number("max_size", max_size)
        self._entries: OrderedDict[str, _Entry] = OrderedDict()
        self._touch = self._entries.move_to_end
        self._ends: list[tuple[float, int, _Entry]] = []
        self._stored = 0
        self._tagged: dict[str, set[str]] = {}

    @cached_property
    def sync(self) -> SyncInMemoryCacheAdapter:
        """The same methods, blocking, on the same entries and the same single flight."""
        return SyncInMemoryCacheAdapter(self)

    async def get_or_create(
        self,
        key: str,
        creator: Creator,
        ttl_seconds: float | None = DEFAULT_TTL,
        *,
        options: EntryOptions | None = None,
        **overrides: Unpack[Overrides],
    ) -> Any:
        """Return the value under ``key``; where there is none, one caller's creator makes it for all.

        A plain function runs in the event loop, as any other code of the caller's. Cancelling a caller, the first
        too, disturbs nobody: the creator runs on and its value is stored, even when nobody waits any more.

        Args:
            key: The entry's name.
            creator: Called without arguments; an awaitable that it returns is awaited once.
            ttl_seconds: Seconds (default: the cache's ``default_ttl``, 3600); 0 and ``None`` mean no expiry.
            options: Prepared options (:meth:`entry_options`) in place of the others.
            **overrides: ``grace_seconds``, ``beta``, ``cache_errors``, ``tags``, ``returns``, ``own_errors`` and
                ``keep_seconds``.

        Raises:
            Exception: Whatever the creator raised, to everyone who waited for it.
            CacheRecursionError: The creator asks for the value that it makes.
        """
        entry = self._entries.get(key)
        if entry is not None:
            if entry.sure_until > monotonic():
                self.count.fresh += 1
                self._used(key)
                return entry.value
            options = options or self.entry_options(ttl_seconds, **overrides)
            hit, refresh = self._aged(entry, options)
            if hit is not None:
                if refresh:
                    self._refresh(key, creator, options, entry)
                return hit.unwrap()
        check_key(key)
        return await self._bring(key, creator, options or self.entry_options(ttl_seconds, **overrides))

    def _get_or_create_blocking(
        self,
        key: str,
        creator: Creator,
        ttl_seconds: float | None,
        options: EntryOptions | None,
        overrides: Overrides,
    ) -> Any:
        entry = self._entries.get(key)
        if entry is not None:
            if entry.sure_until > monotonic():
                self.count.fresh += 1
                self._used(key)
                return entry.value
            options = options or self.entry_options(ttl_seconds, **overrides)
            hit, refresh = self._aged(entry, options)
            if hit is not None:
                outcome = self._refresh_blocking(key, creator, options, entry) if refresh else None
                return hit.unwrap() if outcome is None or outcome.error is not None else outcome.unwrap()
        check_key(key)
        return self._bring_blocking(key, creator, options or self.entry_options(ttl_seconds, **overrides))

    def _used(self, key: str) -> None:
        try:
            self._touch(key)
        except KeyError:  # another thread has just removed it
            return

    def _aged(self, entry: _Entry, options: EntryOptions) -> tuple[Hit | None, bool]:
        """Return what an entry that needs a second look still gives, and whether it should be refreshed."""
        now = monotonic()
        if now < entry.fresh_until:
            self.count.fresh += 1
            self._used(entry.key)
            if entry.error:
                return Hit(None, error=entry.value), False
            chance = random.random()  # noqa: S311 - spreads refreshes, no secret
            early = -entry.delta * options.beta * math.log(1.0 - chance)
            return Hit(entry.value), now + early >= entry.fresh_until and now >= entry.retry_at
        if now < entry.stale_until:
            self.count.stale += 1
            self._used(entry.key)
            return Hit(entry.value, stale=True), now >= entry.retry_at
        return None, False

    def _fly(self, flight: Flight, creator: Creator, options: EntryOptions, seen: Any) -> Steps[Outcome]:
        entry = self._entries.get(flight.key)
        if entry is not None and entry is not seen and monotonic() < entry.fresh_until:
            self.count.fresh += 1
            return failed(entry.value) if entry.error else Outcome(entry.value)
        if seen is None:
            self.count.misses += 1
        started = monotonic()
        outcome = yield from create(flight, creator, options)
        delta = monotonic() - started
        if outcome.error is None:
            if not outcome.abandoned:
                self._store(_Entry(flight.key, outcome.value, options, delta, error=False), flight)
            return outcome
        self.count.errors += 1
        if seen is not None and monotonic() < seen.stale_until:
            seen.retry_at = monotonic() + REFRESH_PAUSE
            logger.warning("refreshing %r failed, its old value serves on: %r", flight.key, outcome.error)
        elif options.errors_ttl:
            self._store(_Entry(flight.key, outcome.error, options, delta, error=True), flight)
        return outcome

    def _store(self, entry: _Entry, flight: Flight | None) -> None:
        with self._flights.lock():
            if flight is None:
                self._flights.void(entry.key)
            elif flight.void:
                return
            self._remove(entry.key)
            self._sweep()
            self._entries[entry.key] = entry
            for tag in entry.tags:
                self._tagged.setdefault(tag, set()).add(entry.key)
            if entry.kept_until < math.inf:
                self._stored += 1
                heappush(self._ends, (entry.kept_until, self._stored, entry))
            while len(self._entries) > self.max_size:
                self._remove(next(iter(self._entries)))

    def _remove(self, key: str) -> bool:
        entry = self._entries.pop(key, None)
        if entry is None:
            return False
        for tag in entry.tags:
            keys = self._tagged.get(tag)
            if keys is not None:
                keys.discard(key)
                if not keys:
                    del self._tagged[tag]
        return True

    def _sweep(self, at_most: float = _AT_ONCE) -> None:
        """Remove what has ended, and what the list of ends still holds of entries that are long gone."""
        ends, now = self._ends, monotonic()
        while ends and ends[0][0] <= now and at_most > 0:
            entry = heappop(ends)[2]
            if self._entries.get(entry.key) is entry:
                self._remove(entry.key)
                at_most -= 1
        if not self._entries:
            self._entries.clear()  # an emptied dictionary keeps the memory that it had
        if len(ends) > 2 * len(self._entries) + _SLACK:
            ends[:] = [end for end in ends if self._entries.get(end[2].key) is end[2]]
            heapify(ends)

    def _lookup(self, key: str, returns: Any, *, stale: bool) -> Steps[Hit | None]:
        del returns  # values stay what they are
        yield from ()  # a procedure without a step: memory takes no time
        entry, now = self._entries.get(key), monotonic()
        if entry is not None and now < (entry.stale_until if stale else entry.fresh_until):
            self._used(key)
            aged = now >= entry.fresh_until
            if aged:
                self.count.stale += 1
            else:
                self.count.fresh += 1
            if entry.error:
                return Hit(None, error=entry.value)
            return Hit(entry.value, stale=aged)
        check_key(key)
        self.count.misses += 1
        with self._flights.lock():
            self._sweep()
        return None

    def _kept(self, key: str, returns: Any) -> Steps[Hit | None]:
        del returns  # see _lookup
        yield from ()  # see _lookup
        check_key(key)
        entry = self._entries.get(key)
        if entry is None or entry.error or monotonic() >= entry.kept_until or entry.kept_until == entry.stale_until:
            return None
        return Hit(entry.value, stale=monotonic() >= entry.fresh_until)

    async def get(self, key: str, *, returns: Any = None) -> Any | None:
        """See :meth:`CacheAdapter.get`."""
        entry = self._entries.get(key)
        if entry is not None and entry.sure_until > monotonic():
            self.count.fresh += 1
            self._used(key)
            return entry.value
        return await super().get(key, returns=returns)

    def _set(self, key: str, value: Any, options: EntryOptions) -> Steps[None]:
        yield from ()  # see _lookup
        check_key(key)
        if hasattr(type(value), "__await__"):
            raise refuse("value", value, "a value: await it first")
        self._store(_Entry(key, value, options, 0.0, error=False), None)

    def _invalidate(self, key: str) -> Steps[bool]:
        yield from ()  # see _lookup
        check_key(key)
        with self._flights.lock():
            self._flights.void(key)
            entry = self._entries.get(key)
            self._remove(key)
            self._sweep()
        return entry is not None and monotonic() < entry.stale_until

    def _invalidate_tag(self, tag: str) -> Steps[int]:
        yield from ()  # see _lookup
        with self._flights.lock():
            self._flights.void(tag=tag)
            return sum(self._remove(key) for key in list(self._tagged.get(tag, ())))

    def _clear(self) -> Steps[None]:
        yield from ()  # see _lookup
        with self._flights.lock():
            self._flights.void()
            self._entries.clear()
            self._ends.clear()
            self._tagged.clear()

    def _keys(self) -> list[str]:
        with self._flights.lock():
            self._sweep(math.inf)
            return list(self._entries)


class SyncInMemoryCacheAdapter(SyncCacheAdapter):
    """The blocking face of an :class:`InMemoryCacheAdapter`."""

    _cache: InMemoryCacheAdapter

    def get_or_create(
        self,
        key: str,
        creator: Creator,
        ttl_seconds: float | None = DEFAULT_TTL,
        *,
        options: EntryOptions | None = None,
        **overrides: Unpack[Overrides],
    ) -> Any:
        """See :meth:`InMemoryCacheAdapter.get_or_create`; a creator that has to be awaited is refused."""
        return self._cache._get_or_create_blocking(key, creator, ttl_seconds, options, overrides)  # noqa: SLF001 - its other face
