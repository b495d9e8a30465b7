"""``pooled``: a function that runs in a slot, or does not run."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar, cast

from slotline import _checks
from slotline._default import DEFAULT, Default
from slotline.errors import PoolFullError
from slotline.keys import KeyTemplate, call_signature
from slotline.pools.pool import Pool
from slotline.stores.base import Store

P = ParamSpec("P")
R = TypeVar("R")

_MOST_POOLS = 1024


def pooled(  # noqa: C901 - two functions, one plain and one async
    key: str,
    max_size: int,
    on_full: Callable[..., Any] | None = None,
    raise_on_full: bool = False,  # noqa: FBT001, FBT002 - the interface that users of pools know
    slot_exp: float | Default | None = DEFAULT,
    *,
    weight: int = 1,
    partition: str | None = None,
    max_per_partition: int | None = None,
    store: Store | None = None,
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Decorate a function, plain or async, to run in a slot of a pool.

    When the pool is full the function does not run: ``on_full`` is called with the same arguments and its result
    returned; without it ``PoolFullError`` is raised if ``raise_on_full`` is true, and ``None`` is returned if not. A
    ``PoolFullError`` out of the function itself is none of these: it passes through.

    Args:
        key: The pool's key; fields such as ``{tenant_id}`` are filled from the call's arguments, defaults included.
        max_size: How many slots each pool has.
        on_full: Called instead of the function; awaited if it returns an awaitable to an async function's caller.
        raise_on_full: Raise when the pool is full.
        slot_exp: Seconds after which a slot no longer counts; see :class:`~slotline.pools.Pool`.
        weight: How many of the pool's slots a call counts as.
        partition: On whose account a call runs, a template as ``key`` is.
        max_per_partition: How many slots one partition may have at the most.
        store: Where the slots are kept; default: the configured store.

    Raises:
        InvalidOptionError: An option has an impossible value, or a field of ``key`` or ``partition`` names no argument;
            when the function is decorated.
    """
    template = KeyTemplate(_checks.text("key", key))
    if on_full is not None and not callable(on_full):
        raise _checks.refuse("on_full", on_full, "a callable that takes the function's arguments, or None")
    _checks.flag("raise_on_full", raise_on_full)
    accounts = None if partition is None else KeyTemplate(partition, option="partition")
    first = Pool(key, max_size, slot_exp, max_per_partition=max_per_partition, store=store)
    first.share_of(weight, partition)  # checks the options now, not at the first call

    @functools.lru_cache(maxsize=_MOST_POOLS)
    def pool_of(name: str) -> Pool:
        return Pool(name, first.max_size, slot_exp, max_per_partition=max_per_partition, store=store)

    def refused(error: PoolFullError, args: Any, kwargs: Any) -> Any:
        if on_full is not None:
            return on_full(*args, **kwargs)
        if raise_on_full:
            raise error
        return None

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        signature = call_signature(function)
        template.validate(signature)
        if accounts is not None:
            accounts.validate(signature)

        def asked(args: Any, kwargs: Any) -> dict[str, Any]:
            return {"weight": weight, "partition": accounts and accounts.for_call(signature, args, kwargs)}

        if inspect.iscoroutinefunction(function):

            @functools.wraps(function)
            async def run_async(*args: P.args, **kwargs: P.kwargs) -> Any:
                pool = pool_of(template.for_call(signature, args, kwargs))
                try:
                    slot = await pool.acquire(**asked(args, kwargs))
                except PoolFullError as error:
                    result = refused(error, args, kwargs)
                    return await result if inspect.isawaitable(result) else result
                async with pool.holding(slot):
                    return await function(*args, **kwargs)

            return cast("Callable[P, R]", run_async)

        @functools.wraps(function)
        def run(*args: P.args, **kwargs: P.kwargs) -> Any:
            pool = pool_of(template.for_call(signature, args, kwargs))
            try:
                slot = pool.sync.acquire(**asked(args, kwargs))
            except PoolFullError as error:
                return refused(error, args, kwargs)
            with pool.holding(slot):
                return function(*args, **kwargs)

        return cast("Callable[P, R]", run)

    return decorate
