"""Memory in front of Redis: hits at the price of a dictionary, dropped when any process sets or removes the value."""

from __future__ import annotations

import time
from functools import cached_property
from time import monotonic
from typing import TYPE_CHECKING, Any

from slotline._checks import refuse, seconds
from slotline.caches import _commands as commands
from slotline.caches._counting import Counters
from slotline.caches._engine import CacheAdapter, Overrides, SyncCacheAdapter
from slotline.caches._listening import Announcements
from slotline.caches._options import DEFAULT_TTL, EntryOptions
from slotline.caches.memory import InMemoryCacheAdapter
from slotline.caches.redis import RedisCacheAdapter
from slotline.steps import Steps, run_blocking

if TYPE_CHECKING:
    from typing import Unpack

    from slotline.caches._flights import Flight, Outcome
    from slotline.caches.base import Creator, Hit

_RECENT = 10_000
_DIGEST_MARK = "~"


class TieredCacheAdapter(CacheAdapter):
    """A cache on Redis with copies in this process's memory.

    Everything is decided on Redis, single flight included; a value that was read or made here is kept in memory, too,
    for ``local_ttl`` seconds and never longer than it is fresh. When any process sets, invalidates or clears, every
    process is told and drops its copy. While that cannot be heard, no copies are used. A process that is told late
    serves an old copy for that moment, and for at most ``local_ttl``.

    Every caller in a process gets the same object, not a copy: do not change a value that came from the cache.

    Args:
        shared: The cache on Redis; by default one on the configured store.
        local_ttl: Seconds that a copy is used at the most (default 60).
        max_size: How many copies are kept (default 10,000), the least recently used leaves first.

    Raises:
        InvalidOptionError: An option is impossible.
    """

    def __init__(
        self, shared: RedisCacheAdapter | None = None, *, local_ttl: float = 60.0, max_size: int = 10_000
    ) -> None:
        if shared is not None and not isinstance(shared, RedisCacheAdapter):
            raise refuse("shared", shared, "a RedisCacheAdapter, or None")
        if shared is not None and shared.on_value is not None:
            raise refuse("shared", shared, "a RedisCacheAdapter of its own: copies of this one are kept already")
        super().__init__()
        self.shared = RedisCacheAdapter() if shared is None else shared
        self.local_ttl = seconds("local_ttl", local_ttl)
        self.defaults = self.shared.defaults
        self._copies = InMemoryCacheAdapter(max_size=max_size)
        self._copies.count = Counters()  # its callers are counted here, once
        self._gone: dict[str, float] = {}
        self._all_gone = 0.0
        store: Any = self.shared.store
        self._announcements = Announcements(store, self.shared.names.channel, self._announced, self._drop_all)
        self.shared.on_value = self._copy

    @cached_property
    def sync(self) -> SyncTieredCacheAdapter:
        """The same methods, blocking, on the same entries and the same single flight."""
        return SyncTieredCacheAdapter(self)

    async def get_or_create(
        self,
        key: str,
        creator: Creator,
        ttl_seconds: float | None = DEFAULT_TTL,
        *,
        options: EntryOptions | None = None,
        **overrides: Unpack[Overrides],
    ) -> Any:
        """See :meth:`RedisCacheAdapter.get_or_create`."""
        entry = self._copies._entries.get(key)  # noqa: SLF001 - one hit must not cost two calls
        if entry is not None and entry.sure_until > monotonic() and self._announcements.heard:
            self.count.fresh += 1
            self._copies._used(key)  # noqa: SLF001 - see above
            return entry.value
        self._announcements.start()
        return await self.shared.get_or_create(key, creator, ttl_seconds, options=options, **overrides)

    def _get_or_create_blocking(self, key: str, creator: Creator, options: EntryOptions) -> Any:
        hit = self._copied(key)
        if hit is not None:
            return hit.value
        return self.shared._get_or_create_blocking(key, creator, options)  # noqa: SLF001 - its other half

    def _copied(self, key: str) -> Hit | None:
        self._announcements.start()
        if not self._announcements.heard or key not in self._copies._entries:  # noqa: SLF001 - see get_or_create
            return None
        hit = run_blocking(self._copies._lookup(key, None, stale=False))  # noqa: SLF001 - see get_or_create
        if hit is not None:
            self.count.fresh += 1
        return hit

    def _copy(self, key: str, value: Any, fresh: float, since: float) -> None:
        """Keep a copy, unless the value was set or removed after it was asked for."""
        if not self._announcements.heard or fresh <= 0 or since <= max(self._gone.get(key, 0.0), self._all_gone):
            return
        life = EntryOptions(ttl=min(self.local_ttl, fresh))
        run_blocking(self._copies._set(key, value, life))  # noqa: SLF001 - see get_or_create
        if since <= max(self._gone.get(key, 0.0), self._all_gone) or not self._announcements.heard:
            self._drop(key)

    def _drop(self, key: str) -> None:
        if len(self._gone) >= _RECENT:
            self._all_gone = time.monotonic()
            self._gone.clear()
        self._gone[key] = time.monotonic()
        run_blocking(self._copies._invalidate(key))  # noqa: SLF001 - see get_or_create

    def _drop_all(self) -> None:
        self._all_gone = time.monotonic()
        self._gone.clear()
        run_blocking(self._copies._clear())  # noqa: SLF001 - see get_or_create

    def _announced(self, message: bytes) -> None:
        name = message.decode("utf-8", "surrogateescape")
        key = None if name == commands.EVERYTHING else self.shared.names.shown(name)
        # The name of a very long key holds a digest in its place, and does not say which key it was.
        if not key or _DIGEST_MARK in key[-41:]:
            self._drop_all()
        else:
            self._drop(key)

    # -- everything else is the shared cache's business -----------------------------------------------------------

    def _lookup(self, key: str, returns: Any, *, stale: bool) -> Steps[Hit | None]:
        hit = self._copied(key)
        if hit is None:
            hit = yield from self.shared._lookup(key, returns, stale=stale)  # noqa: SLF001 - its other half
        return hit

    def _kept(self, key: str, returns: Any) -> Steps[Hit | None]:
        return self.shared._kept(key, returns)  # noqa: SLF001 - its other half

    def _set(self, key: str, value: Any, options: EntryOptions) -> Steps[None]:
        try:
            yield from self.shared._set(key, value, options)  # noqa: SLF001 - its other half
        finally:
            self._drop(key)

    def _invalidate(self, key: str) -> Steps[bool]:
        try:
            return (yield from self.shared._invalidate(key))  # noqa: SLF001 - its other half
        finally:
            self._drop(key)

    def _invalidate_tag(self, tag: str) -> Steps[int]:
        try:
            return (yield from self.shared._invalidate_tag(tag))  # noqa: SLF001 - its other half
        finally:
            self._drop_all()

    def _clear(self) -> Steps[None]:
        try:
            yield from self.shared._clear()  # noqa: SLF001 - its other half
        finally:
            self._drop_all()

    def _fly(self, flight: Flight, creator: Creator, options: EntryOptions, seen: Any) -> Steps[Outcome]:
        return self.shared._fly(flight, creator, options, seen)  # noqa: SLF001 - its other half

    async def stored_keys(self, limit: int = 1000) -> list[str]:
        """See :meth:`RedisCacheAdapter.stored_keys`."""
        return await self.shared.stored_keys(limit)

    def get_stats(self) -> dict[str, Any]:
        """Return what both halves have counted; ``local_hits`` of the hits were served from memory."""
        stats = self.shared.get_stats()
        local = self.count.fresh
        stats["hits"] += local
        asked = stats["hits"] + stats["misses"]
        return {**stats, "hit_rate": stats["hits"] / asked if asked else 0.0, "local_hits": local}

    async def close(self) -> None:
        """Stop listening, drop the copies, and close the store if the shared cache made it."""
        self._announcements.close()
        await self.shared.close()


class SyncTieredCacheAdapter(SyncCacheAdapter):
    """The blocking face of a :class:`TieredCacheAdapter`."""

    _cache: TieredCacheAdapter

    def get_or_create(
        self,
        key: str,
        creator: Creator,
        ttl_seconds: float | None = DEFAULT_TTL,
        *,
        options: EntryOptions | None = None,
        **overrides: Unpack[Overrides],
    ) -> Any:
        """See :meth:`RedisCacheAdapter.get_or_create`; a creator that has to be awaited is refused."""
        chosen = options or self._cache.entry_options(ttl_seconds, **overrides)
        return self._cache._get_or_create_blocking(key, creator, chosen)  # noqa: SLF001 - its other face

    def stored_keys(self, limit: int = 1000) -> list[str]:
        """See :meth:`RedisCacheAdapter.stored_keys`."""
        return self._cache.shared.sync.stored_keys(limit)

    def close(self) -> None:
        """See :meth:`TieredCacheAdapter.close`."""
        self._cache._announcements.close()  # noqa: SLF001 - its other face
        self._cache.shared.sync.close()
