"""How a call's arguments are bound to names, with defaults filled in."""

from __future__ import annotations

import inspect
import threading
import types
import weakref
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any, TypeAlias, Union, get_args, get_origin, get_type_hints
from uuid import UUID

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

SignatureLike: TypeAlias = "inspect.Signature | Callable[..., Any] | CallSignature"

_EXACT = (datetime, date, time, timedelta, Decimal, UUID, bytes, set, frozenset)
_LOOSE = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


class CallSignature:
    """A function's parameters, read once and bound many times.

    Args:
        source: The function, or its signature where the function itself takes more than callers pass.
        hints: The parameters' types where ``source`` is a signature without usable annotations.
    """

    __slots__ = ("_signature", "_simple", "names", "parsers", "takes_any_name")

    def __init__(self, source: inspect.Signature | Callable[..., Any], hints: Mapping[str, Any] | None = None) -> None:
        signature = source if isinstance(source, inspect.Signature) else inspect.signature(source)
        self._signature = signature
        parameters = signature.parameters
        self.names = tuple(parameters)
        self.takes_any_name = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values())
        plain = all(parameter.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD for parameter in parameters.values())
        self._simple = [(name, parameter.default) for name, parameter in parameters.items()] if plain else None
        self.parsers = {
            name: parse for name, hint in _hints(source, signature, hints).items() if (parse := _parser(hint))
        }

    def bind(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Return the arguments by name, in the order of the parameters, defaults filled in.

        Raises:
            TypeError: The call does not fit the signature, as Python itself would say.
        """
        if self._simple is not None and len(args) <= len(self._simple):
            bound: dict[str, Any] = {}
            given = len(args)
            taken = 0
            for at, (name, default) in enumerate(self._simple):
                if at < given:
                    if name in kwargs:
                        break
                    bound[name] = args[at]
                elif name in kwargs:
                    bound[name] = kwargs[name]
                    taken += 1
                elif default is inspect.Parameter.empty:
                    break
                else:
                    bound[name] = default
            else:
                if taken == len(kwargs):
                    return bound
        full = self._signature.bind(*args, **kwargs)
        full.apply_defaults()
        return dict(full.arguments)


def call_signature(source: SignatureLike) -> CallSignature:
    """Return the :class:`CallSignature` of ``source``; that of a function is remembered as long as it lives."""
    if isinstance(source, CallSignature):
        return source
    if not isinstance(source, types.FunctionType):
        return CallSignature(source)
    known = _known.get(source)
    if known is None:
        known = CallSignature(source)
        with _lock:
            _known[source] = known
    return known


_known: weakref.WeakKeyDictionary[types.FunctionType, CallSignature] = weakref.WeakKeyDictionary()
_lock = threading.Lock()


def _hints(source: Any, signature: inspect.Signature, hints: Mapping[str, Any] | None) -> Mapping[str, Any]:
    if hints is None and not isinstance(source, inspect.Signature):
        try:
            hints = get_type_hints(source)
        except Exception:  # noqa: BLE001 - hints that name what is not there only cost an agreement, never a call
            hints = None
    found = {
        name: parameter.annotation for name, parameter in signature.parameters.items() if parameter.kind not in _LOOSE
    }
    return {name: (hints or {}).get(name, annotation) for name, annotation in found.items()}


def _parser(hint: Any) -> Callable[[Any], Any] | None:
    """Return what turns a wire's form of a value back into the declared exact type; ``None`` for all other types."""
    inner = (
        [arg for arg in get_args(hint) if arg is not type(None)]
        if get_origin(hint) in (Union, types.UnionType)
        else [hint]
    )
    if len(inner) != 1:
        return None
    exact = get_origin(inner[0]) or inner[0]
    if exact not in _EXACT:
        return None
    from pydantic import TypeAdapter  # noqa: PLC0415 - its import is dear, and few functions need it

    adapter = TypeAdapter(exact)
    expected = list if exact in (set, frozenset) else str

    def parse(value: Any) -> Any:
        if not isinstance(value, expected):
            return value
        try:
            return adapter.validate_python(value)
        except ValueError:
            return value

    return parse
