"""``pooled``: a function that runs in a slot, or does not run."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any, ParamSpec, TypeVar, cast

from slotline import _checks
from slotline._default import DEFAULT, Default
from slotline.errors import PoolFullError
from slotline.keys import KeyTemplate, call_signature
from slotline.metrics._names import name_pools
from slotline.pools.limit import Limit
from slotline.pools.limits import Limits
from slotline.pools.pool import Pool
from slotline.stores.base import Store

P = ParamSpec("P")
R = TypeVar("R")

_MOST_POOLS = 1024


def pooled(  # noqa: C901 - two functions, one plain and one async
    key: str | Sequence[str],
    max_size: int | Sequence[int],
    on_full: Callable[..., Any] | None = None,
    raise_on_full: bool = False,  # noqa: FBT001, FBT002 - the interface that users of pools know
    slot_exp: float | Default | None = DEFAULT,
    *,
    weight: int = 1,
    partition: str | None = None,
    max_per_partition: int | None = None,
    group: str | None = None,
    store: Store | None = None,
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Decorate a function, plain or async, to run in a slot of a pool.

    When the pool is full the function does not run: ``on_full`` is called with the same arguments and its result
    returned; without it ``PoolFullError`` is raised if ``raise_on_full`` is true, and ``None`` is returned if not. A
    ``PoolFullError`` out of the function itself is none of these: it passes through.

    Args:
        key: The pool's key; fields such as ``{tenant_id}`` are filled from the call's arguments, defaults included.
            With several keys, the function runs in a slot of each pool; see :class:`~slotline.pools.Limits`.
        max_size: How many slots each pool has; for several keys also as many sizes.
        on_full: Called instead of the function; awaited if it returns an awaitable to an async function's caller.
        raise_on_full: Raise when the pool is full.
        slot_exp: Seconds after which a slot no longer counts; see :class:`~slotline.pools.Pool`.
        weight: How many of the pool's slots a call counts as.
        partition: On whose account a call runs, a template as ``key`` is.
        max_per_partition: How many slots one partition may have at the most.
        group: The group of the pools, which several of them need on a Redis Cluster.
        store: Where the slots are kept; default: the configured store.

    Raises:
        InvalidOptionError: An option has an impossible value, or a field of ``key`` or ``partition`` names no argument;
            or the function is a generator; when the function is decorated.
    """
    keys = [key] if isinstance(key, str) or not isinstance(key, Sequence) else list(key)
    sizes = [max_size] * len(keys) if not isinstance(max_size, Sequence) else list(max_size)
    if not keys:
        raise _checks.refuse("key", key, "text, or several texts")
    if len(sizes) != len(keys):
        raise _checks.refuse("max_size", max_size, f"one size, or one for each of the {len(keys)} keys")
    templates = [KeyTemplate(_checks.text("key", one)) for one in keys]
    if on_full is not None and not callable(on_full):
        raise _checks.refuse("on_full", on_full, "a callable that takes the function's arguments, or None")
    _checks.flag("raise_on_full", raise_on_full)
    accounts = None if partition is None else KeyTemplate(partition, option="partition")

    @functools.lru_cache(maxsize=_MOST_POOLS)
    def limit_of(*names: str) -> Limit[Any]:
        pools = [
            Pool(name, size, slot_exp, max_per_partition=max_per_partition, group=group, store=store)
            for name, size in dict(zip(names, sizes, strict=True)).items()  # two templates may give one key
        ]
        return pools[0] if len(pools) == 1 else Limits(*pools)

    name_pools(templates)
    limit_of(*keys).shares_of(weight, partition)  # checks the options now, not at the first call

    def refused(error: PoolFullError, args: Any, kwargs: Any) -> Any:
        if on_full is not None:
            return on_full(*args, **kwargs)
        if raise_on_full:
            raise error
        return None

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        _refuse_generator(function)
        signature = call_signature(function)
        for template in templates:
            template.validate(signature)
        if accounts is not None:
            accounts.validate(signature)

        def limit_for(args: Any, kwargs: Any) -> Limit[Any]:
            return limit_of(*(template.for_call(signature, args, kwargs) for template in templates))

        def asked(args: Any, kwargs: Any) -> dict[str, Any]:
            return {"weight": weight, "partition": accounts and accounts.for_call(signature, args, kwargs)}

        if inspect.iscoroutinefunction(function):

            @functools.wraps(function)
            async def run_async(*args: P.args, **kwargs: P.kwargs) -> Any:
                limit = limit_for(args, kwargs)
                try:
                    slot = await limit.acquire(**asked(args, kwargs))
                except PoolFullError as error:
                    result = refused(error, args, kwargs)
                    return await result if inspect.isawaitable(result) else result
                async with limit.holding(slot):
                    return await function(*args, **kwargs)

            return cast("Callable[P, R]", run_async)

        @functools.wraps(function)
        def run(*args: P.args, **kwargs: P.kwargs) -> Any:
            limit = limit_for(args, kwargs)
            try:
                slot = limit.sync.acquire(**asked(args, kwargs))
            except PoolFullError as error:
                return refused(error, args, kwargs)
            with limit.holding(slot):
                return function(*args, **kwargs)

        return cast("Callable[P, R]", run)

    return decorate


def _refuse_generator(function: Callable[..., Any]) -> None:
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        allowed = "a function that returns its result; a generator runs after its slot has been given back"
        raise _checks.refuse("pooled", function, allowed)
