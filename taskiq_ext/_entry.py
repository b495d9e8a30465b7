"""One entry of a cache as a task's labels want it, whatever the cache can do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from slotline.caches import CacheAdapter
from slotline.caches._options import KEPT_FOR_FULL_POOLS
from slotline.caches.line import peek

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from taskiq.message import TaskiqMessage

    from slotline.caches import BaseCacheAdapter, EntryOptions, Hit
    from taskiq_ext._calls import TaskCalls
    from taskiq_ext._labels import CacheOptions


class NobodyRanError(Exception):
    """The message that was to run did not: it was dropped, retried or cancelled, and those who wait start over."""


@dataclass(frozen=True, slots=True)
class CacheEntry:
    """Where the result of one call is kept.

    Attributes:
        cache: The cache.
        key: The entry's name there.
        ttl: Seconds that a value is fresh; 0 and ``None``: without end.
        keep_errors: Whether errors are kept; ``None``: as the cache is set up.
        grace: Seconds after the TTL for which the old value serves while one message refreshes it.
        overrides: What the caches of this package are told beside that.
    """

    cache: BaseCacheAdapter
    key: str
    ttl: float | None
    keep_errors: bool | None
    grace: float
    overrides: Mapping[str, Any]

    @property
    def capable(self) -> bool:
        """Whether the cache is one of this package, which knows types, tags, grace and kept errors."""
        return isinstance(self.cache, CacheAdapter)

    def ask(self, creator: Callable[[], Awaitable[Any]]) -> Awaitable[Any]:
        """Return the value, or let one of all who ask make it."""
        if not self.capable:
            return self.cache.get_or_create(self.key, creator, ttl_seconds=self.ttl)
        ours: Any = self.cache
        awaitable: Awaitable[Any] = ours.get_or_create(self.key, creator, options=self._options())
        return awaitable

    async def peek(self) -> Hit | None:
        """Return what :meth:`ask` would find at once."""
        return await peek(self.cache, self.key, self._options())

    def _options(self) -> EntryOptions:
        ours: Any = self.cache
        errors = {} if self.keep_errors is None else {"cache_errors": self.keep_errors}
        options: EntryOptions = ours.entry_options(
            self.ttl, own_errors=(NobodyRanError,), beta=0, **errors, **self.overrides
        )
        return options

    async def look(self, *, stale: bool = False) -> Hit | None:
        """Return what is there, without waiting for anybody."""
        if isinstance(self.cache, CacheAdapter):
            return await self.cache.lookup(self.key, returns=self.overrides.get("returns"), stale=stale)
        return await self.cache.lookup(self.key)

    async def old(self) -> Hit | None:
        """Return the last value, however old."""
        if isinstance(self.cache, CacheAdapter):
            return await self.cache.kept(self.key, returns=self.overrides.get("returns"))
        return None

    async def keep(self, value: Any) -> None:
        """Store a value."""
        if isinstance(self.cache, CacheAdapter):
            await self.cache.set(self.key, value, self.ttl, **self.overrides)
        else:
            await self.cache.set(self.key, value, self.ttl)


def entry_for(
    cache: BaseCacheAdapter,
    task_name: str,
    calls: TaskCalls,
    options: CacheOptions,
    message: TaskiqMessage,
    *,
    serves_old: bool = False,
) -> CacheEntry | None:
    """Return where the result of a message's call is kept; ``None`` where its arguments do not fit the function.

    Args:
        cache: The cache.
        task_name: The task's name.
        calls: What is known of its calls.
        options: What its labels ask for.
        message: The message.
        serves_old: Whether the last value is to be had after its end.

    Raises:
        SerializationError: An argument cannot be part of a key.
        InvalidOptionError: An argument lacks what a template asks of it.
    """
    key = calls.key(task_name, message) if options.key is None else calls.fill(options.key, message)
    if key is None:
        return None
    if not isinstance(cache, CacheAdapter):
        return CacheEntry(cache, key, options.ttl, options.errors, 0.0, {})
    overrides: dict[str, Any] = {"returns": calls.returns}
    if serves_old:
        overrides["keep_seconds"] = KEPT_FOR_FULL_POOLS
    if options.grace is not None:
        overrides["grace_seconds"] = options.grace
    if options.tags:
        overrides["tags"] = [tag for template in options.tags if (tag := calls.fill(template, message))]
    grace = cache.defaults.grace if options.grace is None else options.grace
    return CacheEntry(cache, key, options.ttl, options.errors, grace, overrides)
