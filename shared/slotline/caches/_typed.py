"""Values that come back by their declared type: models, dataclasses, named tuples, enums."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

from slotline.caches._plain import decode, encode
from slotline.caches._sameness import came_back
from slotline.errors import SerializationError

if TYPE_CHECKING:
    from pydantic import TypeAdapter

_UNDECLARED = (None, Any, object)


def adapter_for(returns: Any) -> TypeAdapter[Any] | None:
    """Return the pydantic adapter for a declared type; ``None`` where none is declared that pydantic knows."""
    if any(returns is undeclared for undeclared in _UNDECLARED):
        return None
    if hasattr(returns, "validate_python") and not isinstance(returns, type):
        adapter: TypeAdapter[Any] = returns
        return adapter
    try:
        return _made(returns)
    except TypeError:  # not hashable
        return _make(returns)


def _make(returns: Any) -> TypeAdapter[Any] | None:
    from pydantic import TypeAdapter  # noqa: PLC0415 - its import is dear

    try:
        return TypeAdapter(returns)
    except Exception:  # noqa: BLE001 - a name that is nowhere, half a type, a metaclass of the user's own
        return None


_made = lru_cache(maxsize=512)(_make)


def typed_dump(adapter: TypeAdapter[Any], value: Any) -> bytes:
    """Return plain bytes for ``value``.

    Raises:
        SerializationError: The declared type does not bring it back equal.
    """
    reason: object = "its declared type does not fit it"
    for mode in ("python", "json"):
        try:
            payload = encode(adapter.dump_python(value, mode=mode, by_alias=True, round_trip=True, warnings=False))
            back = typed_load(adapter, decode(payload))
            if came_back(back, value):
                return payload
            reason = "its declared type does not bring it back equal"
        except SerializationError as error:
            reason = error
        except Exception as error:  # noqa: BLE001 - validators and serializers of models are a user's code
            reason = f"its declared type does not bring it back ({type(error).__name__}: {error})"
    if isinstance(reason, SerializationError):
        raise reason
    raise SerializationError(
        f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins."), str(reason)
    )


def typed_load(adapter: TypeAdapter[Any], plain: Any) -> Any:
    """Return the value of the declared type for the data that :func:`typed_dump` wrote."""
    return adapter.validate_python(plain)
