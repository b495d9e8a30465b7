"""Whether a value has come back as it was, in value and in type, all the way down.

``==`` does not tell: ``1 == True``, a named tuple equals its tuple, an enum of texts equals its text, and a nan differs
from itself. Nor does what a value dumps to: a model dumps to its dictionary, and without its private attributes.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from decimal import Decimal
from functools import lru_cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

_LEAVES = frozenset({str, int, bool, bytes, type(None)})


def came_back(back: Any, value: Any) -> bool:  # noqa: PLR0911 - one return for each kind of value
    """Return whether ``back`` is what ``value`` was.

    One thing may change: an int where a float is declared, which type checkers accept, comes back as that float.
    """
    if back is value:
        return True
    kind = type(value)
    if type(back) is not kind:
        return kind is int and type(back) is float and back == value
    if kind in _LEAVES:
        return bool(back == value)
    if isinstance(value, list | tuple | deque):
        return len(back) == len(value) and all(map(came_back, back, value))
    if isinstance(value, dict):
        return came_back([*back], [*value]) and came_back([*back.values()], [*value.values()])
    if isinstance(value, set | frozenset):
        return len(back) == len(value) and _members_came_back(back, value)
    if isinstance(value, float | Decimal):
        return repr(back) == repr(value)  # -0.0 equals 0.0, and 1.10 equals 1.1
    parts = _parts_of(kind)  # type: ignore[arg-type] # a type is hashable
    return bool(back == value) if parts is None else came_back(parts(back), parts(value))


def _members_came_back(back: Collection[Any], value: Collection[Any]) -> bool:
    known = {member: member for member in back}
    # What differs from itself, or is known by its identity, is not found by being equal.
    return all(
        came_back(known[member], member) if member in known else any(came_back(other, member) for other in back)
        for member in value
    )


@lru_cache(maxsize=512)
def _parts_of(kind: Any) -> Callable[[Any], Any] | None:
    """Return what lists the parts of a model, a dataclass, or what is known by its identity; ``None`` for others."""
    from pydantic import BaseModel  # noqa: PLC0415 - its import is dear

    if issubclass(kind, BaseModel):
        names = [*kind.model_fields, "__pydantic_extra__", "__pydantic_private__"]
    elif dataclasses.is_dataclass(kind):
        names = [field.name for field in dataclasses.fields(kind) if field.compare]
    else:
        return kind.__getstate__ if kind.__eq__ is object.__eq__ else None
    return lambda value: [getattr(value, name) for name in names]
