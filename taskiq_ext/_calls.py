"""The call that a message stands for: which arguments reach the function, as the function will see them.

The receiver turns what arrives into the annotated types only after ``pre_execute``. A key has to be made before, and
on the sending side as well, so the same is done here to a copy: ``1`` on the wire is ``1`` and ``"1"`` alike for an
``int``, and two different calls of a function without annotations.
"""

from __future__ import annotations

import functools
import inspect
from typing import TYPE_CHECKING, Any, get_type_hints

from pydantic import TypeAdapter
from taskiq_dependencies.dependency import Dependency

from slotline.errors import SerializationError
from slotline.keys import CallSignature, call_key

if TYPE_CHECKING:
    from collections.abc import Callable

    from taskiq.message import TaskiqMessage

    from slotline.keys import KeyTemplate


class TaskCalls:
    """The calls of one function that arrive as messages.

    Attributes:
        signature: The parameters that a caller passes: those of the function without its dependencies.
        returns: The annotated type of what it returns, or ``None``.
    """

    __slots__ = ("_adapters", "_function", "_injected", "returns", "signature")

    def __init__(self, function: Callable[..., Any]) -> None:
        hints = _hints(function)
        self.returns = hints.pop("return", None)
        parameters = inspect.signature(function).parameters
        self._function = function
        self._injected = frozenset(
            name for name, parameter in parameters.items() if _is_injected(parameter, hints.get(name))
        )
        self._adapters = {name: adapter for name, hint in hints.items() if (adapter := _adapter(hint)) is not None}
        self.signature = self._signature_without(self._injected, hints)

    def key(self, task_name: str, message: TaskiqMessage) -> str | None:
        """Return the name of the call, or ``None`` where the arguments do not fit the function.

        Raises:
            SerializationError: An argument cannot be part of a key.
        """
        signature, args, kwargs = self._arrived(message)
        try:
            return call_key(task_name, signature, args, kwargs)
        except SerializationError:
            raise
        except TypeError:
            return None

    def fill(self, template: KeyTemplate, message: TaskiqMessage) -> str | None:
        """Return ``template`` with the call's arguments in it, or ``None`` where they do not fit the function.

        Raises:
            InvalidOptionError: An argument lacks what the template asks of it.
        """
        if template.constant:
            return template.fill({})
        signature, args, kwargs = self._arrived(message)
        try:
            return template.for_call(signature, args, kwargs)
        except TypeError:
            return None

    def _arrived(self, message: TaskiqMessage) -> tuple[CallSignature, list[Any], dict[str, Any]]:
        names, adapters = self.signature.names, self._adapters
        args = [
            _parsed(adapters[names[at]], value) if at < len(names) and names[at] in adapters else value
            for at, value in enumerate(message.args)
        ]
        kwargs = {
            name: _parsed(adapters[name], value) if name in adapters else value
            for name, value in message.kwargs.items()
        }
        sent_along = self._injected & kwargs.keys()
        if sent_along:  # then it is an argument like any other
            return self._signature_without(self._injected - sent_along, {}), args, kwargs
        return self.signature, args, kwargs

    def _signature_without(self, names: frozenset[str], hints: dict[str, Any]) -> CallSignature:
        signature = inspect.signature(self._function)
        kept = [parameter for name, parameter in signature.parameters.items() if name not in names]
        return CallSignature(signature.replace(parameters=kept), hints)


@functools.lru_cache(maxsize=4096)
def calls_of(function: Callable[..., Any]) -> TaskCalls:
    """Return what is known of a function's calls."""
    return TaskCalls(function)


def _is_injected(parameter: inspect.Parameter, hint: Any) -> bool:
    return isinstance(parameter.default, Dependency) or any(
        isinstance(extra, Dependency) for extra in getattr(hint, "__metadata__", ())
    )


def _parsed(adapter: TypeAdapter[Any], value: Any) -> Any:
    if value is None:
        return None
    try:
        return adapter.validate_python(value)
    except (ValueError, RuntimeError):
        return value  # the receiver hands it on unparsed as well, and says so in its log


def _adapter(hint: Any) -> TypeAdapter[Any] | None:
    if hint is Any:
        return None
    try:
        return TypeAdapter(hint)
    except Exception:  # noqa: BLE001 - what pydantic cannot read stays as it arrived
        return None


def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    try:
        return get_type_hints(function, include_extras=True)
    except (NameError, TypeError):
        return {}
