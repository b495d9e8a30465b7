"""Calls that need no slot of their pool: their value is there, or an old one will do (``pool_on_full="stale"``).

The main process finds the value and hands it over with the request, so that the child cannot find it gone and run the
body without a slot.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from celery.utils.log import get_logger

from celery_ext.cache import entry_key, returned_type
from celery_ext.config import runtime
from celery_ext.options import HEADER
from slotline.caches import CacheAdapter
from slotline.caches import _commands as commands
from slotline.caches.line import shared_part
from slotline.errors import InvalidOptionError, StoreError

if TYPE_CHECKING:
    from celery_ext.options import TaskOptions
    from celery_ext.store_watch import StoreWatch

logger = get_logger(__name__)

_KEY: Final = "slotline_answer"
"""Where a request's ``delivery_info`` has the value: it is about one delivery alone."""


def tell_answer(request: Any, watch: StoreWatch, *, old: bool) -> bool:
    """Have the process that will run ``request`` end it with the value of its call, if there is one.

    Args:
        request: The request.
        watch: The way to the gate's store, which must be the one that the cache is on if processes share that.
        old: Whether the last value will do, however old.
    """
    task = request.task
    options: TaskOptions | None = getattr(task, "slotline_options", None)
    if options is None:
        return False
    try:
        changes = request.request_dict.get(HEADER)
        options = options if changes is None else options.with_call(changes)
        key = entry_key(task, options, request.args, request.kwargs) if options.cached else None
        found = None if key is None else _found(task, key, watch, old=old)
    except (InvalidOptionError, StoreError) as error:  # the task itself knows how to go on
        logger.debug("%s gets no value: %s", request, error)
        return False
    if found is not None:
        request.delivery_info[_KEY] = found
    return found is not None


def _found(task: Any, key: str, watch: StoreWatch, *, old: bool) -> dict[str, Any] | None:
    using = runtime(task.app)
    cache, shared = using.cache, shared_part(using.cache)
    if shared is None and isinstance(cache, CacheAdapter):
        hit = cache.sync.kept(key) if old else None
        return None if hit is None else {"value": hit.value}
    if shared is None or shared.store is not using.store:
        return None
    base = shared.names.base(key)
    command = commands.read_kept(base) if old else commands.read(base)
    raw = watch.ask(lambda: watch.store.sync.execute(command))
    entry = None if raw is None else shared.codec.read(key, raw, returned_type(task))
    # What has a grace may be stale by now, and kept errors are for the task to raise.
    usable = entry is not None and not entry.error and (old or not entry.grace_ms)
    if usable and not old:
        shared.count.fresh += 1
    return {"key": key, "raw": raw} if usable else None


def has_answer(request: Any) -> bool:
    """Return whether a running request is to end with a value that was found for it."""
    return _KEY in (request.delivery_info or {})


def answer_of(task: Any) -> Any:
    """Return the value with which the running request of ``task`` is to end."""
    found = task.request.delivery_info[_KEY]
    if "value" in found:
        return found["value"]
    shared: Any = shared_part(runtime(task.app).cache)
    return shared.codec.read(found["key"], found["raw"], returned_type(task)).value
