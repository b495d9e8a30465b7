"""``cached``: a function whose results are kept, and the cache that is used where none is named."""

from __future__ import annotations

import functools
import inspect
import threading
from typing import TYPE_CHECKING, Any, ParamSpec, Protocol, TypeVar, cast, get_type_hints

from slotline._checks import refuse, text
from slotline.caches._engine import CacheAdapter, Overrides
from slotline.caches._options import DEFAULT_TTL, EntryOptions, checked_ttl
from slotline.caches.base import BaseCacheAdapter
from slotline.caches.memory import InMemoryCacheAdapter
from slotline.keys import KeyTemplate, call_key, call_signature
from slotline.settings import default_store

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Unpack

    from slotline.stores.base import Store

P = ParamSpec("P")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)


class BoundCachedFunction(Protocol[R_co]):
    """A cached method of one object."""

    def __call__(self, *args: Any, **kwargs: Any) -> R_co:
        """Return the kept result, or run the method."""

    def invalidate(self, *args: Any, **kwargs: Any) -> Any:
        """Remove the result of this call; a coroutine where the method is one."""

    def key_for(self, *args: Any, **kwargs: Any) -> str:
        """Return the key of this call's result."""


class CachedFunction(Protocol[P, R_co]):
    """A function whose results are kept."""

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R_co:
        """Return the kept result, or run the function."""

    def __get__(self, instance: Any, owner: Any = None) -> BoundCachedFunction[R_co]: ...

    def invalidate(self, *args: Any, **kwargs: Any) -> Any:
        """Remove the result of the call with these arguments; a coroutine where the function is one."""

    def key_for(self, *args: Any, **kwargs: Any) -> str:
        """Return the key of the result of the call with these arguments."""


def cached(
    ttl: float | None = DEFAULT_TTL,
    *,
    key: str | None = None,
    cache: BaseCacheAdapter | None = None,
    version: str | int | None = None,
    **overrides: Unpack[Overrides],
) -> Callable[[Callable[P, R]], CachedFunction[P, R]]:
    """Keep what a function returns: one run for each set of arguments, however many call at once.

    The decorated function is called as before, and has ``invalidate(*args, **kwargs)`` and ``key_for(*args,
    **kwargs)``. Models and dataclasses come back by the function's return annotation. Of a method, the object is one
    of the arguments: it needs a ``__cache_key__()``, or a key template that names what tells objects apart. It
    belongs above ``@classmethod``: below it, ``invalidate`` and ``key_for`` do not know the class from Python 3.13 on.

    Args:
        ttl: Seconds (default: the cache's ``default_ttl``, 3600); 0 and ``None`` mean no expiry.
        key: A template such as ``"user:{user_id}"``; by default the function's name and a hash of its arguments.
        cache: Where results are kept; by default on the configured store, or in memory where none is shared.
        version: Part of the key; change it when old results must not be found any more.
        **overrides: ``grace_seconds``, ``beta``, ``cache_errors``, ``tags``, ``returns``, ``own_errors`` and
            ``keep_seconds``, see :class:`EntryOptions`.

    Raises:
        InvalidOptionError: An option is impossible, or the template names what is no argument.
    """

    def decorate(function: Callable[P, R]) -> CachedFunction[P, R]:
        of_class = isinstance(function, classmethod)
        plain: Callable[..., Any] = getattr(function, "__func__", function) if of_class else function
        spec = _Spec(plain, ttl, key, cache, version, overrides)
        wrapper = _awaiting(spec) if inspect.iscoroutinefunction(plain) else _blocking(spec)
        scope = plain.__qualname__.rpartition(".")[0]
        in_class = bool(scope) and not scope.endswith("<locals>")
        made: Any = CachedMethod(wrapper, of_class=of_class) if in_class or of_class else wrapper
        return cast("CachedFunction[P, R]", made)

    return decorate


class _Spec:
    """What is known about a cached function before it is called."""

    def __init__(
        self,
        function: Callable[..., Any],
        ttl: Any,
        key: str | None,
        cache: BaseCacheAdapter | None,
        version: str | int | None,
        overrides: Overrides,
    ) -> None:
        if not callable(function) or not hasattr(function, "__qualname__"):
            raise refuse("cached", function, "a function; write @cached() with parentheses")
        if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
            raise refuse("cached", function, "a function that returns its result; a generator can be run only once")
        if cache is not None and not isinstance(cache, BaseCacheAdapter):
            raise refuse("cache", cache, "a BaseCacheAdapter, or None")
        self.function = function
        self.name = f"{function.__module__}.{function.__qualname__}"
        self.version = version
        self.signature = call_signature(function)
        self.template = None if key is None else KeyTemplate(text("key", key))
        if self.template is not None:
            self.template.validate(self.signature)
        if ttl is not DEFAULT_TTL:
            checked_ttl("ttl", ttl)
        self.ttl = ttl
        self.overrides: Overrides = {**overrides}
        if "returns" not in overrides:
            self.overrides["returns"] = _declared(function)
        EntryOptions().changed(DEFAULT_TTL, **self.overrides)
        self._given = cache
        self._more = bool(overrides)
        self._prepared: tuple[CacheAdapter, EntryOptions] | None = None
        if cache is not None:
            self.arguments(cache)

    @property
    def cache(self) -> BaseCacheAdapter:
        return self._given or default_cache()

    def arguments(self, cache: BaseCacheAdapter) -> dict[str, Any]:
        """Return the arguments of ``get_or_create`` beside key and creator."""
        if isinstance(cache, CacheAdapter):
            prepared = self._prepared
            if prepared is None or prepared[0] is not cache:
                prepared = self._prepared = (cache, cache.entry_options(self.ttl, **self.overrides))
            return {"options": prepared[1]}
        if self._more:
            raise refuse("cache", cache, f"a CacheAdapter, for {', '.join(self.overrides)} to work")
        return {"ttl_seconds": self.ttl}

    def key(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str:
        if self.template is None:
            return call_key(self.name, self.signature, args, kwargs, version=self.version)
        key = self.template.for_call(self.signature, args, kwargs)
        return key if self.version is None else f"{key}@{self.version}"


def _declared(function: Callable[..., Any]) -> Any:
    try:
        return get_type_hints(function).get("return")
    except Exception:  # noqa: BLE001 - hints that name what is not there declare nothing
        return None


def _awaiting(spec: _Spec) -> Any:
    function = spec.function

    @functools.wraps(function)
    async def wrapper(*args: Any, **kwargs: Any) -> Any:
        cache = spec.cache
        key = spec.key(args, kwargs)
        return await cache.get_or_create(key, lambda: function(*args, **kwargs), **spec.arguments(cache))

    async def invalidate(*args: Any, **kwargs: Any) -> bool:
        return await spec.cache.invalidate(spec.key(args, kwargs))

    return _with(wrapper, spec, invalidate)


def _blocking(spec: _Spec) -> Any:
    function = spec.function

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        cache = spec.cache
        key = spec.key(args, kwargs)
        return cache.sync.get_or_create(key, lambda: function(*args, **kwargs), **spec.arguments(cache))

    def invalidate(*args: Any, **kwargs: Any) -> bool:
        removed: bool = spec.cache.sync.invalidate(spec.key(args, kwargs))
        return removed

    return _with(wrapper, spec, invalidate)


def _with(wrapper: Any, spec: _Spec, invalidate: Callable[..., Any]) -> Any:
    wrapper.invalidate = invalidate
    wrapper.key_for = lambda *args, **kwargs: spec.key(args, kwargs)
    return wrapper


class CachedMethod:
    """A cached function inside a class: called on an object, its ``invalidate`` takes the object along.

    Args:
        function: The cached function.
        of_class: Whether it takes the class in the object's place.
    """

    def __init__(self, function: Any, *, of_class: bool) -> None:
        self._function = function
        self._of_class = of_class
        functools.update_wrapper(self, function)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function with the object as its first argument."""
        return self._function(*args, **kwargs)

    def __get__(self, instance: Any, owner: Any = None) -> Any:
        if self._of_class:
            return _BoundMethod(self._function, type(instance) if owner is None else owner)
        return self if instance is None else _BoundMethod(self._function, instance)


class _BoundMethod(functools.partial[Any]):
    """A partial, since frameworks see through it whether the method is a coroutine function."""

    def invalidate(self, *args: Any, **kwargs: Any) -> Any:
        function: Any = self.func
        return function.invalidate(*self.args, *args, **kwargs)

    def key_for(self, *args: Any, **kwargs: Any) -> str:
        function: Any = self.func
        key: str = function.key_for(*self.args, *args, **kwargs)
        return key


_lock = threading.Lock()
_default: tuple[Store, CacheAdapter] | None = None


def default_cache() -> CacheAdapter:
    """Return the cache of this process on the default store: on Redis where that is shared, else in memory."""
    global _default  # noqa: PLW0603 - the one process-wide place
    store = default_store()
    known = _default
    if known is not None and known[0] is store:
        return known[1]
    with _lock:
        if _default is None or _default[0] is not store:
            _default = (store, _made_on(store))
        return _default[1]


def _made_on(store: Store) -> CacheAdapter:
    if not store.shared:
        return InMemoryCacheAdapter()
    from slotline.caches.redis import RedisCacheAdapter  # noqa: PLC0415 - redis is an extra

    return RedisCacheAdapter(store=store)
