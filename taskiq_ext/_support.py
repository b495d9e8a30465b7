"""What is used of Taskiq beyond its documented interface, asserted once before anything relies on it."""

from __future__ import annotations

import functools
import inspect
from importlib.metadata import version

from taskiq.abc.broker import AsyncBroker
from taskiq.abc.middleware import TaskiqMiddleware
from taskiq.decor import AsyncTaskiqDecoratedTask
from taskiq.receiver import Receiver

from slotline.errors import UnsupportedFrameworkError


@functools.cache
def assert_supported() -> None:
    """Check the installed Taskiq.

    Raises:
        UnsupportedFrameworkError: A part that the middlewares rely on is missing.
    """
    framework = f"taskiq {version('taskiq')}"
    callback = getattr(Receiver, "callback", None)
    names = callback.__code__.co_names if inspect.iscoroutinefunction(callback) else ()
    if "original_func" not in names or "pre_execute" not in names:
        raise UnsupportedFrameworkError(
            framework, "Receiver.callback that awaits pre_execute and runs task.original_func"
        )
    if names.index("pre_execute") > names.index("original_func"):
        raise UnsupportedFrameworkError(framework, "Receiver.callback that reads task.original_func after pre_execute")
    if "original_func" not in inspect.signature(AsyncTaskiqDecoratedTask).parameters:
        raise UnsupportedFrameworkError(framework, "AsyncTaskiqDecoratedTask(original_func=...)")
    if "decorator_class" not in AsyncBroker.__init__.__code__.co_names:
        raise UnsupportedFrameworkError(framework, "AsyncBroker.decorator_class")
    for hook in ("pre_send", "pre_execute", "post_execute", "shutdown", "set_broker"):
        if not hasattr(TaskiqMiddleware, hook):
            raise UnsupportedFrameworkError(framework, f"TaskiqMiddleware.{hook}")
