"""A task's function on its way into another process."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

from taskiq.decor import AsyncTaskiqDecoratedTask

if TYPE_CHECKING:
    from collections.abc import Callable

_TASKIQ_SUFFIX = "__taskiq_original"


class Shipped:
    """A function that is pickled by its name in the source.

    Taskiq renames a task's function and puts it back into its module under the new name. A process that imports the
    module without registering the task there, because the registration stands elsewhere or behind a condition, knows
    only the old one.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self.__qualname__ = _plain(getattr(function, "__qualname__", type(function).__qualname__))  # for errors

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function."""
        return self.function(*args, **kwargs)

    def __reduce__(self) -> tuple[Any, ...]:
        name = getattr(self.function, "__qualname__", "<locals>")
        if "<locals>" in name or "<lambda>" in name:
            return _itself, (self.function,)  # pickle says best what is wrong with it
        return _Named, (self.function.__module__, name)


class _Named:
    """The function in the other process; it is looked for in the call, so that only the call can fail."""

    def __init__(self, module: str, name: str) -> None:
        self.module, self.name = module, name

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return _resolved(self.module, self.name)(*args, **kwargs)

    def slotline_prepare(self) -> None:
        """Look for it before the call's time begins."""
        _resolved(self.module, self.name)


def _itself(function: Callable[..., Any]) -> Callable[..., Any]:
    return function


def _resolved(module_name: str, name: str) -> Callable[..., Any]:
    module = sys.modules.get(module_name) or import_module(module_name)
    try:
        found = _found(module, name)
    except AttributeError:
        found = _found(module, _plain(name))
    function: Callable[..., Any] = found.original_func if isinstance(found, AsyncTaskiqDecoratedTask) else found
    return function


def _plain(name: str) -> str:
    return name.partition(_TASKIQ_SUFFIX)[0]


def _found(module: Any, name: str) -> Any:
    found = module
    for part in name.split("."):
        found = getattr(found, part)
    return found
