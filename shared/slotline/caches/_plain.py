"""Python's own values as JSON, exactly: what JSON cannot tell apart carries a tag.

A tagged value is an object with the one member ``"$"``: ``{"$": ["t", [1, 2]]}`` is the tuple ``(1, 2)``. Values that
JSON returns unchanged, the usual case, are found by type at C speed and are written as they are.
"""

from __future__ import annotations

import base64
import json
import math
from datetime import UTC, date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from typing import TYPE_CHECKING, Any
from uuid import UUID
from zoneinfo import ZoneInfo

from slotline.errors import SerializationError

if TYPE_CHECKING:
    from collections.abc import Callable

_MARK = "$"
_SAFE = frozenset({str, int, float, bool, type(None)})
_STR_ONLY = frozenset({str})
_LONGEST_INT = 10**4000  # Python refuses to read longer numbers as text

_write = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode


def encode(value: Any) -> bytes:
    """Return ``value`` as JSON.

    Raises:
        SerializationError: It holds something that would not come back equal, or itself.
    """
    try:
        if _is_plain(value):
            try:
                return _write(value).encode("utf-8", "surrogatepass")
            except ValueError:
                pass  # nan, infinity or a very long number: they need a tag
        return _write(_tagged(value)).encode("utf-8", "surrogatepass")
    except RecursionError:
        raise SerializationError(_name(value), "it contains itself, or is nested too deeply") from None


def decode(payload: bytes) -> Any:
    """Return the value that :func:`encode` wrote; raise whatever malformed bytes lead to."""
    text = payload.decode("utf-8", "surrogatepass")
    value, end = (_read_tagged if '{"$":' in text else _read)(text, 0)
    if end != len(text):
        raise ValueError("there is more than one value")
    return value


def _is_plain(value: Any) -> bool:
    kind = type(value)
    if kind in _SAFE:
        return True
    if kind is list:
        kinds = set(map(type, value))
        return kinds <= _SAFE or (
            kinds <= _CONTAINED and all(_is_plain(item) for item in value if type(item) not in _SAFE)
        )
    if kind is dict:
        if not set(map(type, value)) <= _STR_ONLY or _MARK in value:
            return False
        kinds = set(map(type, value.values()))
        return kinds <= _SAFE or (
            kinds <= _CONTAINED and all(_is_plain(item) for item in value.values() if type(item) not in _SAFE)
        )
    return False


_CONTAINED = _SAFE | {list, dict}


def _tagged(value: Any) -> Any:
    kind = type(value)
    if kind is str or kind is bool or value is None:
        return value
    writer = _WRITERS.get(kind)
    if writer is None:
        raise SerializationError(_name(value), _advice(value))
    return writer(value)


def _write_int(value: int) -> Any:
    return value if -_LONGEST_INT < value < _LONGEST_INT else {_MARK: ["i", hex(value)]}


def _write_float(value: float) -> Any:
    return value if math.isfinite(value) else {_MARK: ["n", repr(value)]}


def _write_dict(value: dict[Any, Any]) -> Any:
    if set(map(type, value)) <= _STR_ONLY and _MARK not in value:
        return {key: _tagged(item) for key, item in value.items()}
    return {_MARK: ["d", [[_tagged(key), _tagged(item)] for key, item in value.items()]]}


def _write_datetime(value: datetime) -> Any:
    return {_MARK: ["dt", value.replace(tzinfo=None).isoformat(), _zone(value.tzinfo), value.fold]}


def _write_time(value: time) -> Any:
    return {_MARK: ["tm", value.replace(tzinfo=None).isoformat(), _zone(value.tzinfo), value.fold]}


def _zone(zone: tzinfo | None) -> Any:
    if zone is None:
        return None
    if type(zone) is ZoneInfo and zone.key is not None:
        return zone.key
    if type(zone) is timezone:
        offset = zone.utcoffset(None)
        parts, name = [offset.days, offset.seconds, offset.microseconds], zone.tzname(None)
        return parts if name == timezone(offset).tzname(None) else [*parts, name]
    raise SerializationError(_name(zone), "only datetime.timezone and zoneinfo.ZoneInfo come back as they were")


def _read_zone(zone: Any) -> tzinfo | None:
    if zone is None:
        return None
    if isinstance(zone, str):
        return ZoneInfo(zone)
    days, seconds, microseconds, *name = zone
    offset = timedelta(days, seconds, microseconds)
    return timezone(offset, *name) if offset or name else UTC


def _sequence(tag: str) -> Callable[[Any], Any]:
    return lambda value: {_MARK: [tag, [_tagged(item) for item in value]]}


_WRITERS: dict[type, Callable[[Any], Any]] = {
    int: _write_int,
    float: _write_float,
    list: lambda value: [_tagged(item) for item in value],
    dict: _write_dict,
    tuple: _sequence("t"),
    set: _sequence("s"),
    frozenset: _sequence("f"),
    bytes: lambda value: {_MARK: ["b", base64.b64encode(value).decode()]},
    datetime: _write_datetime,
    date: lambda value: {_MARK: ["da", value.isoformat()]},
    time: _write_time,
    timedelta: lambda value: {_MARK: ["td", [value.days, value.seconds, value.microseconds]]},
    Decimal: lambda value: {_MARK: ["de", str(value)]},
    UUID: lambda value: {_MARK: ["u", value.hex]},
}

_READERS: dict[str, Callable[..., Any]] = {
    "i": lambda text: int(text, 16),
    "n": float,
    "d": lambda pairs: {key: item for key, item in pairs},  # noqa: C416 - a malformed pair raises here
    "t": tuple,
    "s": set,
    "f": frozenset,
    "b": lambda text: base64.b64decode(text, validate=True),
    "dt": lambda text, zone, fold: datetime.fromisoformat(text).replace(tzinfo=_read_zone(zone), fold=fold),
    "da": date.fromisoformat,
    "tm": lambda text, zone, fold: time.fromisoformat(text).replace(tzinfo=_read_zone(zone), fold=fold),
    "td": lambda parts: timedelta(*parts),
    "de": Decimal,
    "u": UUID,
}


def _untagged(found: dict[str, Any]) -> Any:
    if _MARK not in found:
        return found
    tag, *parts = found[_MARK]
    return _READERS[tag](*parts)


def _advice(value: object) -> str:
    if hasattr(type(value), "__await__"):
        return "it has to be awaited first; a creator may return one awaitable, not an awaitable of another"
    return "declare it as the function's return type (or pass returns=), if pydantic knows it, or return plain data"


def _name(value: object) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")


# The scanners themselves: half of what json.loads costs goes into white space, and there is none.
_plain_decoder: Any = json.JSONDecoder()
_tagged_decoder: Any = json.JSONDecoder(object_hook=_untagged)
_read, _read_tagged = _plain_decoder.scan_once, _tagged_decoder.scan_once
