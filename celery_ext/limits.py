"""Which limit a request comes under."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from celery_ext.options import HEADER, LIMIT_NAMES, CallLimit, TaskOptions, options_of
from slotline._checks import refuse

if TYPE_CHECKING:
    from celery import Celery

    from celery_ext.config import Config
    from slotline.stores import Store

_CACHE_ONLY = ("cache_ttl", "cache_errors", "cache_key", "cache_grace", "cache_tags")


class LimitReader:
    """Reads the limits of an app's tasks: those with our base class, and those that only carry the attributes.

    Args:
        app: The app; its tasks are checked at once.
        config: Its settings.
        store: Where the pools are.
        follows: Whether cached tasks wait for one another in the room, so that the gate has to do with them.

    Raises:
        InvalidOptionError: An option of a task cannot be used.
    """

    def __init__(self, app: Celery, config: Config, store: Store | None = None, *, follows: bool = False) -> None:
        self._config, self._store, self._follows = config, store, follows
        self._known: dict[str, TaskOptions] = {}
        self._free: set[str] = set()
        for task in app.tasks.values():
            self._read(task)

    def is_free(self, request: Any) -> bool:
        """Return whether a request is surely none of the gate's business: asked for each task, it asks nothing."""
        return request.task.name in self._free and HEADER not in request.request_dict

    @property
    def policies(self) -> set[str]:
        """What the app's tasks ask for when their pools are full."""
        return {options.values["pool_on_full"] for options in self._known.values() if "pool_on_full" in options.values}

    def limit_of(self, request: Any) -> CallLimit | None:
        """Return the limit of a request.

        Raises:
            InvalidOptionError: The task's options, or those in the message, cannot be used.
            TypeError: The arguments do not fit the task, whose pool is named after them.
        """
        task = request.task
        options = self._known.get(task.name) or self._read(task)
        changes = request.request_dict.get(HEADER)
        if changes is not None:
            options = options.with_call(changes)
        return options.limit(request.args, request.kwargs) if options.limited else None

    def on_lost_of(self, request: Any) -> str:
        """Return what becomes of a request whose slot is lost; its limit was read before."""
        options = self._known.get(request.task.name) or self._read(request.task)
        changes = request.request_dict.get(HEADER)
        return (options.with_call(changes) if changes is not None else options).on_lost

    def _read(self, task: Any) -> TaskOptions:
        from celery_ext.task import Task  # noqa: PLC0415 - the task installs what uses this module

        options = options_of(task if isinstance(task, Task) else _Foreign(task), self._config)
        if len(options.pools) > 1:
            options.unfilled.made(self._store)  # on a Cluster they need a group
        self._known[task.name] = options
        if not options.limited and not (self._follows and options.cached):
            self._free.add(task.name)
        return options


class _Foreign:
    """A task without our base class: it may carry a limit, and nothing that needs the base class to work."""

    def __init__(self, task: Any) -> None:
        self.run, self.name = task.run, task.name
        for name in _CACHE_ONLY:
            if hasattr(task, name):
                raise refuse(
                    name, getattr(task, name), f"used on a task whose base is celery_ext.Task, unlike {task.name}"
                )
        pool = getattr(task, "pool", None)
        keys = pool if isinstance(pool, list | tuple) else (pool,)
        if keys and all(isinstance(key, str) for key in keys):  # anything else under that name is the user's own
            for name in LIMIT_NAMES:
                if hasattr(task, name):
                    setattr(self, name, getattr(task, name))
