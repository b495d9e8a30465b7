"""The cache on Redis: shared by processes and machines, one run per key across all of them."""

from __future__ import annotations

import math
import random
import time
from collections import OrderedDict
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, cast

from slotline._checks import any_text, one_of, refuse, seconds, text
from slotline.caches import _commands as commands
from slotline.caches._codec import Codec
from slotline.caches._engine import CacheAdapter, Overrides, SyncCacheAdapter, check_key
from slotline.caches._keyspace import clear_matching, invalidate_tagged, stored_keys
from slotline.caches._leading import Leading
from slotline.caches._options import DEFAULT_TTL, EntryOptions
from slotline.caches._outage import Outage
from slotline.caches._reads import SharedReads
from slotline.caches._where import store_for
from slotline.caches.base import Creator, Hit
from slotline.caches.serializer import Entry, Serializer
from slotline.errors import StoreError, StoreUnavailableError
from slotline.steps import Call, Steps, all_or_error, run_awaiting, run_blocking

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Unpack

    from slotline.caches._flights import Flight, Outcome
    from slotline.stores.base import Store
    from slotline.stores.keeper import Keeper

_REMEMBERED = 10_000
_LONGEST_RESTS = 1_000


class RedisCacheAdapter(CacheAdapter):
    """A cache on Redis that many processes and machines share.

    A hit is one ``GET``. On a miss one process takes a claim on the key for ``lock_timeout`` seconds and renews it
    as long as the creator runs, however long that is; the others are woken when the value is there. When the
    process dies its claim ends within ``lock_timeout``, and a waiter takes over. A creator that lost its claim cannot
    overwrite what came after it.

    Args:
        redis_url: Where the server is; by default the configured store's.
        default_ttl: Seconds that a value is kept (default 3600); 0 and ``None`` mean no expiry.
        lock_timeout: Seconds after which the claim of a process that died is free (default 10).
        store: A ``RedisStore`` in place of ``redis_url``.
        namespace: Tells several caches on one store apart (default ``"cache"``).
        grace_seconds: See :class:`CacheAdapter`.
        beta: See :class:`CacheAdapter`.
        cache_errors: See :class:`CacheAdapter`.
        jitter: See :class:`CacheAdapter`.
        serializer: How values become bytes (default: :class:`Serializer` with its defaults).
        on_store_error: What happens while the server cannot be reached: ``"open"`` (default) makes values without
            it, once a process and key, and says so in one log line; ``"fail"`` raises ``StoreUnavailableError``.

    Raises:
        InvalidOptionError: An option is impossible.
    """

    def __init__(
        self,
        redis_url: str | None = None,
        default_ttl: float | None = 3600,
        lock_timeout: float = 10,
        *,
        store: Store | None = None,
        namespace: str = "cache",
        grace_seconds: float | None = None,
        beta: float | None = None,
        cache_errors: bool | float | None = False,
        jitter: float = 0.0,
        serializer: Serializer | None = None,
        on_store_error: Literal["open", "fail"] = "open",
    ) -> None:
        super().__init__(default_ttl, grace_seconds=grace_seconds, beta=beta, cache_errors=cache_errors, jitter=jitter)
        self.lock_timeout = seconds("lock_timeout", lock_timeout)
        self.on_store_error = one_of("on_store_error", on_store_error, ("open", "fail"))
        if any(character in text("namespace", namespace) for character in "{}:"):
            raise refuse("namespace", namespace, "text without braces and colons")
        if redis_url is not None and store is not None:
            raise refuse("redis_url", "...", "None where store is given")
        self.store, self._owns_store = store_for(redis_url, store)
        self.codec = Codec(serializer or Serializer())
        self.names = commands.Names(self.store.prefix, namespace)
        self.on_value: Callable[[str, Any, float, float], None] | None = None
        """Called with key, value, the seconds it is fresh, and when it was asked for, at each value read or made."""
        self._outage = Outage(self.store.name)
        self._reads = SharedReads()
        self._resting: dict[str, float] = {}
        self._remembered: OrderedDict[str, float] = OrderedDict()

    @cached_property
    def sync(self) -> SyncRedisCacheAdapter:
        """The same methods, blocking, on the same entries and the same single flight."""
        return SyncRedisCacheAdapter(self)

    async def get_or_create(
        self,
        key: str,
        creator: Creator,
        ttl_seconds: float | None = DEFAULT_TTL,
        *,
        options: EntryOptions | None = None,
        **overrides: Unpack[Overrides],
    ) -> Any:
        """Return the value under ``key``; where there is none, one process runs one creator for all.

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
            Exception: Whatever the creator raised, to everyone who waited for it, in other processes too.
            CacheRecursionError: The creator asks for the value that it makes.
            StoreUnavailableError: The server cannot be reached, and ``on_store_error`` is ``"fail"``.
        """
        options = options or self.entry_options(ttl_seconds, **overrides)
        check_key(key)
        if not self._flights.flying(key) or options.grace or options.beta:
            hit, aged_ms = await self._reads.read(key, options, self._read)
            if hit is not None:
                if aged_ms:
                    self._refresh(key, creator, options, aged_ms)
                return hit.unwrap()
        return await self._bring(key, creator, options)

    async def _read(self, key: str, options: EntryOptions) -> tuple[Hit | None, int]:
        """Do as :meth:`_fresh_or_aged`: the usual case of a plain entry and a store that answers, by a short way."""
        if not (options.grace or options.beta or self.on_value is not None or self._outage.going):
            try:
                raw = await self.store.execute(commands.read(self.names.base(key)))
            except StoreError as error:
                return self._unread(error)
            entry = None if raw is None else self.codec.read(key, raw, options.returns)
            if entry is None or not entry.grace_ms:
                return (None, 0) if entry is None else self._judged(key, entry, -1, options)
        return await run_awaiting(self._fresh_or_aged(key, options))

    def _unread(self, error: StoreError) -> tuple[None, int]:
        self.store_failed(error)
        if self.on_store_error == "fail":
            raise error
        return None, 0

    def _get_or_create_blocking(self, key: str, creator: Creator, options: EntryOptions) -> Any:
        check_key(key)
        hit, aged_ms = run_blocking(self._fresh_or_aged(key, options))
        if hit is not None:
            outcome = self._refresh_blocking(key, creator, options, aged_ms) if aged_ms else None
            if outcome is None or outcome.abandoned or outcome.error is not None:
                return hit.unwrap()
            return outcome.unwrap()
        return self._bring_blocking(key, creator, options)

    def _fresh_or_aged(
        self, key: str, options: EntryOptions, *, wants_stale: bool = True
    ) -> Steps[tuple[Hit | None, int]]:
        """Return what is stored, and below which remaining life (ms) it should be refreshed; 0 for not now."""
        base = self.names.base(key)
        timed = bool(options.grace or options.beta or self.on_value)
        since = time.monotonic()
        try:
            self.try_store()
            reply = yield Call(self.store, commands.read_timed(base) if timed else commands.read(base))
            if reply is None:
                self.store_answered()
                return None, 0
            raw, left_ms = reply if timed else (reply, -1)
            entry = self.codec.read(key, raw, options.returns)
            if entry is not None and entry.grace_ms and not timed:
                reply = yield Call(self.store, commands.read_timed(base))
                if reply is None:
                    return None, 0
                raw, left_ms = reply
                entry = self.codec.read(key, raw, options.returns)
            self.store_answered()
        except StoreError as error:
            return self._unread(error)
        if entry is None:
            return None, 0
        self.value_seen(key, entry, left_ms, since)
        return self._judged(key, entry, left_ms, options, wants_stale=wants_stale)

    def _judged(
        self, key: str, entry: Entry, left_ms: int, options: EntryOptions, *, wants_stale: bool = True
    ) -> tuple[Hit, int]:
        if entry.error:
            self.count.fresh += 1
            return Hit(None, error=entry.value), 0
        fresh_ms = math.inf if left_ms < 0 else left_ms - entry.grace_ms
        stale = fresh_ms <= 0
        if not stale:
            self.count.fresh += 1
        elif wants_stale:
            self.count.stale += 1
        early_ms = 0.0
        if options.beta:
            chance = random.random()  # noqa: S311 - spreads refreshes, no secret
            early_ms = -entry.delta_ms * options.beta * math.log(1.0 - chance)
        if fresh_ms > early_ms or self._rests(key):
            return Hit(entry.value, stale=stale), 0
        return Hit(entry.value, stale=stale), max(1, left_ms, entry.grace_ms)

    def _lookup(self, key: str, returns: Any, *, stale: bool) -> Steps[Hit | None]:
        check_key(key)
        options = EntryOptions(grace=self.defaults.grace, returns=returns)
        hit, _ = yield from self._fresh_or_aged(key, options, wants_stale=stale)
        if hit is not None and hit.stale and not stale:
            hit = None
        if hit is None:
            self.count.misses += 1
        return hit

    def _kept(self, key: str, returns: Any) -> Steps[Hit | None]:
        check_key(key)
        raw = yield Call(self.store, commands.read_kept(self.names.base(key)))
        entry = None if raw is None else self.codec.read(key, raw, returns)
        return None if entry is None else Hit(entry.value, stale=True)

    def _set(self, key: str, value: Any, options: EntryOptions) -> Steps[None]:
        check_key(key)
        entry = Entry(value, grace_ms=round(options.grace * 1000))
        raw = self.codec.serializer.dump(key, entry, options.returns)
        base = self.names.base(key)
        self._forget(key)
        life = options.life() + options.grace
        noted_ms = commands.milliseconds(life + options.keep)
        tags = [commands.tag(self.names.tag(tag), base, noted_ms) for tag in options.tags]
        try:
            self.try_store()
            if tags:
                yield from all_or_error(self.store, tags)
            keep_ms = commands.milliseconds(options.keep) if options.keep else 0
            yield Call(self.store, commands.put(base, raw, commands.milliseconds(life), keep_ms, self.names.channel))
            self.store_took()
        except StoreError as error:
            self.store_failed(error)
            if self.on_store_error == "fail":
                raise
        else:
            self.remember(key, life)
        self._forget(key)

    def _invalidate(self, key: str) -> Steps[bool]:
        check_key(key)
        self._forget(key)
        try:
            had = yield Call(self.store, commands.invalidate(self.names.base(key), self.names.channel))
        finally:
            self._forget(key)
        self.store_answered()
        self._remembered.pop(key, None)
        return bool(had)

    def _invalidate_tag(self, tag: str) -> Steps[int]:
        name = self.names.tag(any_text("tag", tag))
        self._forget(tag=tag)
        removed = yield from invalidate_tagged(self.store, name, self.names.channel)
        self._forget(tag=tag)
        return removed

    def _clear(self) -> Steps[None]:
        self._forget()
        for pattern in self.names.patterns:
            yield from clear_matching(self.store, pattern, self.names.channel)
        self._forget()
        self._remembered.clear()

    async def stored_keys(self, limit: int = 1000) -> list[str]:
        """Return keys of entries that are on the server, whichever process stored them, ``limit`` at the most.

        The server is scanned in steps and never blocked. A very long key is shown as it is stored: cut, with a digest.
        """
        return await run_awaiting(stored_keys(self.store, self.names, limit))

    def _fly(self, flight: Flight, creator: Creator, options: EntryOptions, seen: Any) -> Steps[Outcome]:
        return Leading(self, flight, options, seen or 0).fly(creator)

    def _forget(self, key: str | None = None, tag: str | None = None) -> None:
        """Let whoever comes from now on see what the server has now."""
        with self._flights.lock():
            self._flights.void(key, tag)
        self._reads.forget(key)

    async def close(self) -> None:
        """Close the store if this cache made it from a URL."""
        if self._owns_store:
            await self.store.close()

    # -- what the runs of this cache use ------------------------------------------------------------------------

    @property
    def keeper(self) -> Keeper:
        """What renews the claims of this process."""
        keeper: Keeper = cast("Any", self.store).keeper
        return keeper

    def value_seen(self, key: str, entry: Entry, left_ms: int, since: float) -> None:
        """Tell whoever wants to know of a value that was read."""
        if self.on_value is not None and not entry.error:
            fresh = math.inf if left_ms < 0 else (left_ms - entry.grace_ms) / 1000
            self.on_value(key, entry.value, fresh, since)

    def try_store(self) -> None:
        """Return where the store may be asked.

        Raises:
            StoreUnavailableError: It did not answer a moment ago, and somebody else tries it.
        """
        error = self._outage.held_back()
        if error is not None:
            raise error

    def store_failed(self, error: Exception) -> None:
        """Note that a call failed: an outage is logged when it begins, a refused command once."""
        self.count.errors += 1
        if not isinstance(error, StoreUnavailableError):
            self.codec.tell_once(str(error), "a cache command was refused, and the value is made without it: %s", error)
        elif error is not self._outage.current():
            self._outage.began(error)

    def store_answered(self) -> None:
        """Note that the store answered."""
        self._outage.answered()

    def store_took(self) -> None:
        """Note that the store took a value."""
        self._outage.took()

    def rest(self, key: str, pause: float) -> None:
        """Do not try to refresh ``key`` for ``pause`` seconds."""
        now = time.monotonic()
        if len(self._resting) >= _LONGEST_RESTS:
            self._resting = {name: until for name, until in self._resting.items() if until > now}
        self._resting[key] = now + pause

    def _rests(self, key: str) -> bool:
        return bool(self._resting) and self._resting.get(key, 0.0) > time.monotonic()

    def remember(self, key: str, life: float) -> None:
        """Note that this process stored ``key``, for its statistics."""
        self._remembered[key] = time.monotonic() + life
        while len(self._remembered) > _REMEMBERED:
            self._remembered.popitem(last=False)

    def _keys(self) -> list[str]:
        now = time.monotonic()
        return [key for key, until in list(self._remembered.items()) if until > now]


class SyncRedisCacheAdapter(SyncCacheAdapter):
    """The blocking face of a :class:`RedisCacheAdapter`."""

    _cache: RedisCacheAdapter

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
        return run_blocking(stored_keys(self._cache.store, self._cache.names, limit))

    def close(self) -> None:
        """See :meth:`RedisCacheAdapter.close`."""
        if self._cache._owns_store:  # noqa: SLF001 - its other face
            self._cache.store.sync.close()
