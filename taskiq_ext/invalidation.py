"""Removing what is cached for one call of a task."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from taskiq.message import TaskiqMessage

from slotline._checks import refuse
from taskiq_ext.cache import CacheMiddleware

if TYPE_CHECKING:
    from taskiq.decor import AsyncTaskiqDecoratedTask


async def invalidate(task: AsyncTaskiqDecoratedTask[Any, Any], /, *args: Any, **kwargs: Any) -> bool:
    """Remove the cached result of ``task(*args, **kwargs)``; a run that is under way is not kept either.

    Args:
        task: A task whose broker has a ``CacheMiddleware``.
        *args: The arguments, as for ``task.kiq()``.
        **kwargs: The named arguments.

    Returns:
        Whether there was one.

    Raises:
        InvalidOptionError: The task's broker has no ``CacheMiddleware``, or the task is not cached.
        TypeError: The arguments do not fit the task.
        StoreUnavailableError: The cache could not be asked; nothing is known.
    """
    broker = task.kicker().broker
    for middleware in broker.middlewares:
        if isinstance(middleware, CacheMiddleware):
            message = TaskiqMessage(task_id="", task_name=task.task_name, labels={}, args=list(args), kwargs=kwargs)
            return await middleware.invalidate(task, message)
    raise refuse("task", task, "a task of a broker with a CacheMiddleware")
