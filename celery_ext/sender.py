"""What happens when a task is sent: its arguments are checked, and a cached result answers at once."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from celery import states
from celery.app.task import Context
from celery.utils.log import get_logger
from kombu.exceptions import EncodeError
from kombu.serialization import dumps
from kombu.utils.uuid import uuid

from celery_ext.cache import entry_key, look_up
from celery_ext.config import runtime
from celery_ext.options import TaskOptions
from slotline.errors import StoreError
from slotline.pools.sizes import check_size

if TYPE_CHECKING:
    from celery.result import AsyncResult

    from celery_ext.task import Task

logger = get_logger(__name__)

_NOT_PLAIN = (
    "link", "link_error", "chain", "chord", "retries", "eta", "countdown", "stamped_headers", "replaced_task_nesting",
)  # fmt: skip
"""Options of a call that is part of something larger: it goes through the broker and hits in the worker."""


def check_limited(task: Task, options: TaskOptions, args: Any, kwargs: Any, call: dict[str, Any]) -> None:
    """Check that a call's arguments name its pool, and are small enough to be parked.

    Raises:
        InvalidOptionError: A template names something that the arguments do not have.
        MessageTooLargeError: The call could not be parked.
    """
    with contextlib.suppress(TypeError):  # arguments that do not fit at all are Celery's to refuse
        limit = options.limit(args, kwargs)
        if len(limit.asked) > 1:
            limit.made()  # two of them may be one, for these arguments
        if limit.parks and not task.app.conf.task_always_eager and runtime(task.app).store.shared:
            serializer = call.get("serializer") or task.serializer
            with contextlib.suppress(EncodeError):  # Celery says so itself
                _, _, body = dumps((args or (), kwargs or {}, {}), serializer)  # type: ignore[no-untyped-call] # kombu ships no types
                check_size(len(body), limit.key)


def answer(task: Task, options: TaskOptions, args: Any, kwargs: Any, call: dict[str, Any]) -> AsyncResult | None:
    """Return the result of a call that is in the cache, or ``None`` if it has to be sent.

    The result is a real one under a new id: whoever looks for that id in the result backend finds it, unless the call
    ignores its result or ``slotline_cache_store_hits`` is off.

    Args:
        task: The task.
        options: The options of the call.
        args: Its positional arguments.
        kwargs: Its named arguments.
        call: Celery's own options of the call.
    """
    using = runtime(task.app)
    if not using.config.cache_on_send or task.app.conf.task_always_eager or any(call.get(name) for name in _NOT_PLAIN):
        return None
    key = entry_key(task, options, args, kwargs)
    if key is None:
        return None
    try:
        hit = look_up(task, using.cache, key)
    except StoreError as error:
        logger.warning("the cache was not asked for a call of %s: %s", task.name, error)
        return None
    if hit is None or hit.stale or hit.error is not None:  # errors are the worker's to raise, for the errbacks
        return None
    ignored = call.get("ignore_result")
    if ignored is None:
        ignored = task.ignore_result
    task_id = call.get("task_id") or uuid()
    backend = task.backend
    try:
        # As it would come back from the backend: a tuple that was cached is a list for whoever fetches it.
        value = backend.decode(backend.encode({"result": hit.value}))["result"]
        if using.config.cache_store_hits and not ignored and not _answers_only_its_caller(backend):
            backend.store_result(
                task_id, hit.value, states.SUCCESS, request=_context(task, task_id, args, kwargs, call)
            )
    except Exception as error:  # noqa: BLE001 - backends have errors of their own; a call that is sent needs none of this
        logger.warning("a cached result of %s could not be stored, so the call is sent: %s", task.name, error)
        return None
    result = task.AsyncResult(task_id)
    result.ignored = ignored
    meta = {"task_id": task_id, "status": states.SUCCESS, "result": value, "traceback": None, "children": []}
    result._maybe_set_cache(meta)  # noqa: SLF001 - as its backend does when the result arrives
    parent = task.app.current_worker_task
    if parent and call.get("add_to_parent", True):
        parent.add_trail(result)
    logger.debug("a call of %s is answered from the cache as %s", task.name, task_id)
    return result


def _context(task: Task, task_id: str, args: Any, kwargs: Any, call: dict[str, Any]) -> Context:
    parent = task.app.current_worker_task
    request = parent.request if parent else None
    return Context(
        id=task_id,
        task=task.name,
        args=tuple(args or ()),
        kwargs=dict(kwargs or {}),
        root_id=call.get("root_id") or (request and (request.root_id or request.id)) or task_id,
        parent_id=call.get("parent_id") or (request and request.id),
        group=call.get("group_id"),
        group_index=call.get("group_index"),
        delivery_info={},
        called_directly=False,
    )


def _answers_only_its_caller(backend: Any) -> bool:
    return type(backend).__module__.endswith(".rpc")
