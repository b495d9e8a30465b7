"""What the caches of this package share: single flight, statistics, and both faces of every method."""

from __future__ import annotations

import asyncio
import logging
from abc import abstractmethod
from typing import TYPE_CHECKING, Any, NamedTuple, TypedDict

from slotline.caches._counting import new_counters
from slotline.caches._creating import broken
from slotline.caches._flights import ABANDONED, Flight, Flights, Outcome, awaiting, context_of, in_flight
from slotline.caches._options import (
    DEFAULT_TTL,
    EntryOptions,
    checked_beta,
    checked_errors_ttl,
    checked_grace,
    checked_jitter,
    checked_ttl,
)
from slotline.caches.base import BaseCacheAdapter, Creator, Hit
from slotline.errors import CreatorFailedError
from slotline.steps import Steps, run_awaiting, run_blocking

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Unpack

logger = logging.getLogger("slotline.caches")

_NUMBERS = frozenset({int, float})
_FEW = 256
_MOST_FLOWN = 5
"""Runs of one caller's creator that may be cancelled: one that cancels its own task would be run for ever."""


class Overrides(TypedDict, total=False):
    """What one call may say otherwise than its cache; see :class:`EntryOptions`."""

    grace_seconds: float | None
    beta: float | None
    cache_errors: bool | float | None
    tags: Iterable[str]
    returns: Any
    own_errors: tuple[type[BaseException], ...]
    keep_seconds: float | None


class _Known(NamedTuple):
    defaults: EntryOptions
    options: EntryOptions


class CacheAdapter(BaseCacheAdapter):
    """A cache with one run per key, grace, early refresh, cached errors and tags.

    Args:
        default_ttl: Seconds that a value is kept unless a call says otherwise (default 3600); 0 and ``None`` mean no
            expiry.
        grace_seconds: Seconds after the TTL for which the old value is still served while one caller refreshes it,
            and while refreshing fails (default 0).
        beta: How eagerly a value is refreshed before its end, growing with what its creator took (XFetch; default 0,
            never).
        cache_errors: Whether a creator's exception is kept, too: ``True`` as long as a value, or that many seconds
            (default ``False``).
        jitter: The share of the TTL that is taken off at random (default 0).

    Raises:
        InvalidOptionError: An option is impossible.
    """

    def __init__(
        self,
        default_ttl: float | None = 3600,
        *,
        grace_seconds: float | None = None,
        beta: float | None = None,
        cache_errors: bool | float | None = False,
        jitter: float = 0.0,
    ) -> None:
        ttl = checked_ttl("default_ttl", default_ttl)
        self.defaults = EntryOptions(
            ttl=ttl,
            grace=checked_grace("grace_seconds", grace_seconds),
            beta=checked_beta("beta", beta),
            errors_ttl=checked_errors_ttl("cache_errors", cache_errors, ttl),
            jitter=checked_jitter("jitter", jitter),
        )
        self._by_ttl: dict[float, _Known] = {}
        self.count = new_counters()
        self._flights = Flights()
        self._tasks: set[asyncio.Task[None]] = set()

    def entry_options(self, ttl_seconds: float | None = DEFAULT_TTL, **overrides: Unpack[Overrides]) -> EntryOptions:
        """Return checked options to pass as ``options=`` to many calls.

        Raises:
            InvalidOptionError: A value is impossible; the error names the option.
        """
        if overrides:
            return self.defaults.changed(ttl_seconds, **overrides)
        if ttl_seconds is DEFAULT_TTL:
            return self.defaults
        if type(ttl_seconds) not in _NUMBERS:  # True is no 1 here
            return self.defaults.changed(ttl_seconds)
        known = self._by_ttl.get(ttl_seconds)  # type: ignore[arg-type] # it is a number by now
        if known is None or known.defaults is not self.defaults:
            known = _Known(self.defaults, self.defaults.changed(ttl_seconds))
            if len(self._by_ttl) < _FEW:
                self._by_ttl[ttl_seconds] = known  # type: ignore[index] # see above
        return known.options

    # -- what a cache brings ------------------------------------------------------------------------------------

    @abstractmethod
    def _lookup(self, key: str, returns: Any, *, stale: bool) -> Steps[Hit | None]: ...

    @abstractmethod
    def _kept(self, key: str, returns: Any) -> Steps[Hit | None]: ...

    @abstractmethod
    def _set(self, key: str, value: Any, options: EntryOptions) -> Steps[None]: ...

    @abstractmethod
    def _invalidate(self, key: str) -> Steps[bool]: ...

    @abstractmethod
    def _invalidate_tag(self, tag: str) -> Steps[int]: ...

    @abstractmethod
    def _clear(self) -> Steps[None]: ...

    @abstractmethod
    def _fly(self, flight: Flight, creator: Creator, options: EntryOptions, seen: Any) -> Steps[Outcome]:
        """Bring a value and store it; ``seen`` is the aged entry that is refreshed, ``None`` on a miss."""

    # -- the coroutines -----------------------------------------------------------------------------------------

    async def get(self, key: str, *, returns: Any = None) -> Any | None:
        """Return the fresh value under ``key``, ``None`` where there is none.

        Args:
            key: The entry's name.
            returns: The declared type, for models and dataclasses.
        """
        return _value(await run_awaiting(self._lookup(key, returns, stale=False)))

    async def lookup(self, key: str, *, returns: Any = None, stale: bool = False) -> Hit | None:
        """Return what is stored under ``key``, ``None`` for nothing.

        Args:
            key: The entry's name.
            returns: The declared type, for models and dataclasses.
            stale: Whether an entry counts that only its grace keeps.
        """
        return await run_awaiting(self._lookup(key, returns, stale=stale))

    async def kept(self, key: str, *, returns: Any = None) -> Hit | None:
        """Return the last value under ``key``, however old, where it was stored with ``keep_seconds``.

        Args:
            key: The entry's name.
            returns: The declared type, for models and dataclasses.
        """
        return await run_awaiting(self._kept(key, returns))

    async def set(
        self,
        key: str,
        value: Any,
        ttl_seconds: float | None = DEFAULT_TTL,
        *,
        options: EntryOptions | None = None,
        **overrides: Unpack[Overrides],
    ) -> None:
        """Store ``value``; a run that is under way for ``key`` does not overwrite it.

        Args:
            key: The entry's name.
            value: Anything that comes back equal.
            ttl_seconds: Seconds (default: the cache's ``default_ttl``, 3600); 0 and ``None`` mean no expiry.
            options: Prepared options in place of the others.
            **overrides: ``grace_seconds``, ``keep_seconds``, ``tags`` and ``returns`` matter here.

        Raises:
            SerializationError: The value would not come back equal.
        """
        await run_awaiting(self._set(key, value, options or self.entry_options(ttl_seconds, **overrides)))

    async def invalidate(self, key: str) -> bool:
        """Remove the entry at once; return whether there was one.

        A run that is under way serves those who wait for it already and is not stored; later callers start anew.
        """
        return await run_awaiting(self._invalidate(key))

    async def invalidate_tag(self, tag: str) -> int:
        """Remove every entry with this tag; return how many there were."""
        return await run_awaiting(self._invalidate_tag(tag))

    async def clear(self) -> None:
        """Remove every entry of this cache, and nothing else."""
        await run_awaiting(self._clear())

    async def _bring(self, key: str, creator: Creator, options: EntryOptions) -> Any:
        """Return the value after a miss: fly for it, or wait for who does."""
        flown = 0
        while True:
            flight, leading = self._flights.join(key, options.tags)
            flown += leading
            with awaiting(flight):
                if leading:
                    self._take_off(flight, creator, options, None)
                else:
                    self.count.coalesced += 1
                outcome = await flight.wait()
            if leading and flight.own_error is not None:
                raise flight.own_error
            if not outcome.abandoned:
                return outcome.unwrap()
            if leading and flown == _MOST_FLOWN:
                raise CreatorFailedError("asyncio.CancelledError", f"each of {flown} runs was cancelled")

    def _take_off(self, flight: Flight, creator: Creator, options: EntryOptions, seen: Any) -> None:
        """Fly in a task of its own, which no caller's cancellation reaches."""
        loop = flight.loop = asyncio.get_running_loop()
        task = loop.create_task(self._flown(flight, creator, options, seen), context=context_of(flight))
        self._tasks.add(task)
        task.add_done_callback(lambda done: self._landed(done, flight))

    async def _flown(self, flight: Flight, creator: Creator, options: EntryOptions, seen: Any) -> None:
        try:
            outcome = await run_awaiting(self._fly(flight, creator, options, seen))
        except Exception as error:  # noqa: BLE001 - whatever it was, nobody is to wait for more
            outcome = broken(flight, error)
        self._flights.end(flight, outcome)

    def _landed(self, task: asyncio.Task[None], flight: Flight) -> None:
        self._tasks.discard(task)
        self._flights.end(flight, ABANDONED)  # only counts where it did not end in order

    def _refresh(self, key: str, creator: Creator, options: EntryOptions, seen: Any) -> None:
        """Refresh an aged entry in the background, unless somebody does."""
        if not self._flights.flying(key):
            flight, leading = self._flights.join(key, options.tags)
            if leading:
                self._take_off(flight, creator, options, seen)

    # -- the blocking forms -------------------------------------------------------------------------------------

    def _bring_blocking(self, key: str, creator: Creator, options: EntryOptions) -> Any:
        while True:
            flight, leading = self._flights.join(key, options.tags)
            with awaiting(flight):
                if leading:
                    outcome = self._fly_blocking(flight, creator, options, None)
                else:
                    self.count.coalesced += 1
                    outcome = flight.wait_blocking()
            if leading and flight.own_error is not None:
                raise flight.own_error
            if not outcome.abandoned:
                return outcome.unwrap()

    def _fly_blocking(self, flight: Flight, creator: Creator, options: EntryOptions, seen: Any) -> Outcome:
        outcome = ABANDONED
        try:
            with in_flight(flight):
                outcome = run_blocking(self._fly(flight, creator, options, seen))
        except Exception as error:  # noqa: BLE001 - see _flown
            outcome = broken(flight, error)
        finally:
            self._flights.end(flight, outcome)
        return outcome

    def _refresh_blocking(self, key: str, creator: Creator, options: EntryOptions, seen: Any) -> Outcome | None:
        """Refresh an aged entry in this thread; ``None`` where somebody else does."""
        if self._flights.flying(key):
            return None
        flight, leading = self._flights.join(key, options.tags)
        if not leading:
            return None
        outcome = self._fly_blocking(flight, creator, options, seen)
        if flight.own_error is not None:
            raise flight.own_error
        return outcome

    # -- statistics ---------------------------------------------------------------------------------------------

    def _keys(self) -> list[str]:
        return []

    def get_stats(self) -> dict[str, Any]:
        """Return what this cache has counted in this process since it was made.

        Returns:
            ``hits`` and ``misses`` (a caller who waited for another's run is neither), ``hit_rate`` (hits by both,
            0.0 before the first), ``size`` and ``keys`` of the entries, ``stale`` (hits that only the grace made
            possible), ``coalesced`` (callers who waited for another's run), and ``errors`` (creators and store calls
            that failed).
        """
        count, keys = self.count, self._keys()
        hits, misses = count.fresh + count.stale, count.misses + count.bypassed
        return {
            "hits": hits,
            "misses": misses,
            "hit_rate": hits / (hits + misses) if hits or misses else 0.0,
            "size": len(keys),
            "keys": keys,
            "stale": count.stale,
            "coalesced": count.coalesced,
            "errors": count.errors,
        }


class SyncCacheAdapter:
    """The blocking face of a :class:`CacheAdapter`; any number of threads may use it."""

    def __init__(self, cache: CacheAdapter) -> None:
        self._cache = cache

    def get(self, key: str, *, returns: Any = None) -> Any | None:
        """See :meth:`CacheAdapter.get`."""
        return _value(self.lookup(key, returns=returns))

    def lookup(self, key: str, *, returns: Any = None, stale: bool = False) -> Hit | None:
        """See :meth:`CacheAdapter.lookup`."""
        return run_blocking(self._cache._lookup(key, returns, stale=stale))  # noqa: SLF001 - its other face

    def kept(self, key: str, *, returns: Any = None) -> Hit | None:
        """See :meth:`CacheAdapter.kept`."""
        return run_blocking(self._cache._kept(key, returns))  # noqa: SLF001 - its other face

    def set(
        self,
        key: str,
        value: Any,
        ttl_seconds: float | None = DEFAULT_TTL,
        *,
        options: EntryOptions | None = None,
        **overrides: Unpack[Overrides],
    ) -> None:
        """See :meth:`CacheAdapter.set`."""
        chosen = options or self._cache.entry_options(ttl_seconds, **overrides)
        run_blocking(self._cache._set(key, value, chosen))  # noqa: SLF001 - its other face

    def invalidate(self, key: str) -> bool:
        """See :meth:`CacheAdapter.invalidate`."""
        return run_blocking(self._cache._invalidate(key))  # noqa: SLF001 - its other face

    def invalidate_tag(self, tag: str) -> int:
        """See :meth:`CacheAdapter.invalidate_tag`."""
        return run_blocking(self._cache._invalidate_tag(tag))  # noqa: SLF001 - its other face

    def clear(self) -> None:
        """See :meth:`CacheAdapter.clear`."""
        run_blocking(self._cache._clear())  # noqa: SLF001 - its other face

    def entry_options(self, ttl_seconds: float | None = DEFAULT_TTL, **overrides: Unpack[Overrides]) -> EntryOptions:
        """See :meth:`CacheAdapter.entry_options`."""
        return self._cache.entry_options(ttl_seconds, **overrides)

    def get_stats(self) -> dict[str, Any]:
        """See :meth:`CacheAdapter.get_stats`."""
        return self._cache.get_stats()

    def close(self) -> None:
        """See :meth:`CacheAdapter.close`."""


def _value(hit: Hit | None) -> Any | None:
    return None if hit is None or hit.error is not None else hit.value


def check_key(key: object) -> None:
    """Refuse what is no key.

    Raises:
        InvalidOptionError: It is not a string, or an empty one.
    """
    if type(key) is not str or not key:
        from slotline._checks import text  # noqa: PLC0415 - off the hot path

        text("key", key)


__all__ = ["CacheAdapter", "Overrides", "SyncCacheAdapter", "check_key"]
