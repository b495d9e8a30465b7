"""Results served from the cache inside the worker."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from billiard.exceptions import SoftTimeLimitExceeded
from celery.exceptions import Ignore, Reject, Retry
from celery.utils.log import get_logger

from celery_ext.config import runtime
from celery_ext.foreign_cache import get_or_create_here
from celery_ext.options import TaskOptions, fill
from slotline.caches import BaseCacheAdapter, CacheAdapter, Hit
from slotline.caches._options import KEPT_FOR_FULL_POOLS
from slotline.errors import SerializationError
from slotline.keys import KeyTemplate, call_key

if TYPE_CHECKING:
    from celery_ext.task import Task

logger = get_logger(__name__)

CONTROL_FLOW = (Ignore, Reject, Retry, SoftTimeLimitExceeded)
"""What a body raises about its own run; nobody else may get it, and it is never stored."""


class _OwnError(Exception):
    """An error that is only for the call whose body raised it."""

    def __init__(self, error: Exception) -> None:
        super().__init__(error)
        self.error = error


def entry_key(task: Task, options: TaskOptions, args: Any, kwargs: Any) -> str | None:
    """Return the name of a call's entry; ``None`` if the call has none and must simply run.

    A call whose arguments do not fit has none: its body says so best. One with an argument that no key can be made
    of has none either, and a warning says that it is not cached.
    """
    template = options.get("cache_key")
    try:
        if template is not None:
            return fill(KeyTemplate(template, option="cache_key"), options.signature, args, kwargs)
        return call_key(task.name, options.signature or task.run, tuple(args or ()), dict(kwargs or {}))
    except TypeError as error:
        if isinstance(error, SerializationError):
            logger.warning("a call of %s is not cached: %s", task.name, error)
        return None


def _told(task: Task, options: TaskOptions, cache: BaseCacheAdapter, args: Any, kwargs: Any) -> dict[str, Any]:
    """Return what the cache is told about an entry, as far as this cache understands it."""
    ttl = {"ttl_seconds": options.values["cache_ttl"]} if "cache_ttl" in options.values else {}
    if not isinstance(cache, CacheAdapter):
        return ttl
    errors = options.get("cache_errors", False)
    templates = [KeyTemplate(tag, option="cache_tags") for tag in options.get("cache_tags") or ()]
    tags = [fill(template, options.signature, args, kwargs) for template in templates]
    entry = cache.entry_options(
        **ttl,
        cache_errors=True if isinstance(errors, tuple) else errors,
        grace_seconds=options.get("cache_grace"),
        tags=tags,
        returns=returned_type(task),
        own_errors=(_OwnError,),
        keep_seconds=KEPT_FOR_FULL_POOLS if options.serves_old else None,
    )
    return {"options": entry}


def look_up(task: Task, cache: BaseCacheAdapter, key: str) -> Hit | None:
    """Return what is stored under ``key``, ``None`` for nothing that is fresh."""
    wanted = {"returns": returned_type(task)} if isinstance(cache, CacheAdapter) else {}
    found: Hit | None = cache.sync.lookup(key, **wanted)
    return found


def returned_type(task: Task) -> Any:
    """Return the declared type of a task's results, ``None`` where there is none."""
    if getattr(task, "_dump_pydantic_arguments", None) is not None:
        return None  # the wrapper that Celery puts around such a task has made plain data of its result
    try:
        return typing.get_type_hints(inspect.unwrap(task.run)).get("return")
    except Exception:  # noqa: BLE001 - a hint that cannot be read only leaves the value's own type
        return None


def serve(task: Task, options: TaskOptions, args: Any, kwargs: Any, body: Callable[[], Any]) -> Any:
    """Return the cached result of a call, or run its body once for all who want it now.

    Raises:
        Exception: What the body raised, in this call or in the one that ran for it.
    """
    key = entry_key(task, options, args, kwargs)
    if key is None:
        return body()
    cache = runtime(task.app).cache
    errors = options.get("cache_errors", False)
    mine: _OwnError | None = None

    def create() -> Any:
        nonlocal mine
        try:
            return body()
        except CONTROL_FLOW as error:
            mine = _OwnError(error)
        except Exception as error:
            if not isinstance(errors, tuple) or isinstance(error, errors):
                raise
            mine = _OwnError(error)
        raise mine

    told = _told(task, options, cache, args, kwargs)
    while True:
        try:
            if isinstance(cache, CacheAdapter):
                return cache.sync.get_or_create(key, create, **told)
            return get_or_create_here(cache, key, create, **told)
        except _OwnError as raised:
            # Another call's retry or time limit says nothing about this one, which then runs its own body.
            if mine is None or raised is not mine:
                continue
            raise raised.error from raised.error.__cause__
