"""Names of entries and pools, made from calls: ``call_key`` hashes the arguments, ``KeyTemplate`` shows them.

Both work on bound arguments with defaults filled in, so that ``f(1)`` and ``f(x=1)`` are one call, and both give the
same name before and after a message queue's JSON: a tuple is its list, a model its dump, an int key its text.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import re
import string
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from typing import Any
from uuid import UUID

from slotline._checks import refuse
from slotline._signatures import CallSignature, SignatureLike, call_signature
from slotline.errors import InvalidOptionError, SerializationError

__all__ = ["CallSignature", "KeyTemplate", "call_key", "call_signature"]

_DIGEST_BYTES = 16
_TAG = "!"
_ENDLESS = "contains itself, is nested too deeply, or is too long a number"
_HOW_TO_KEY = "give it a __cache_key__() method that returns plain data, or name the key by a template"


def call_key(
    name: str,
    signature_or_function: SignatureLike,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    *,
    version: str | int | None = None,
) -> str:
    """Return the name of one call: the function's name and a digest of everything it is called with.

    Args:
        name: What is called, e.g. the task's name.
        signature_or_function: Its parameters; a :class:`CallSignature` kept by the caller is the fastest.
        args: The positional arguments.
        kwargs: The named arguments.
        version: Part of the name; raise it when old entries must not be found any more.

    Raises:
        SerializationError: An argument has no form that says when two of them are equal; the error names it.
        TypeError: The arguments do not fit the signature.
    """
    signature = call_signature(signature_or_function)
    bound = signature.bind(args, kwargs)
    for parameter, parse in signature.parsers.items():
        if parameter in bound:
            bound[parameter] = parse(bound[parameter])
    digest = hashlib.blake2b(_canonical(bound).encode("utf-8", "surrogatepass"), digest_size=_DIGEST_BYTES).hexdigest()
    return f"{name}:{digest}" if version is None else f"{name}@{version}:{digest}"


class _NotPlainError(Exception):
    """Something among the arguments needs a tag, so that it cannot be taken for its text."""


def _canonical(bound: dict[str, Any]) -> str:
    try:
        if all(type(value) in _ATOMS for value in bound.values()):
            return _encode(bound)
        # JSON first makes text of all keys, and only then can they be put in order.
        return _encode(json.loads(_encode_unsorted(bound)))
    except (_NotPlainError, TypeError):
        pass  # TypeError: keys of mappings that JSON has no text for
    except (ValueError, RecursionError):
        raise _unkeyable(bound) from None
    # The leading "!" keeps tagged text apart from any plain text.
    return _TAG + json.dumps({name: _tagged_argument(name, value) for name, value in bound.items()}, **_STYLE)


def _plain_or_refuse(value: Any) -> Any:
    plain = _dumped(value)
    if plain is value:
        raise _NotPlainError
    return plain


_ATOMS = frozenset({str, int, float, bool, type(None)})
_STYLE: dict[str, Any] = {"sort_keys": True, "separators": (",", ":"), "ensure_ascii": False}
_encode = json.JSONEncoder(default=_plain_or_refuse, **_STYLE).encode
_encode_unsorted = json.JSONEncoder(default=_plain_or_refuse, separators=(",", ":"), ensure_ascii=False).encode


def _dumped(value: Any) -> Any:
    """Return the data that stands for ``value`` on a wire, or ``value`` itself where there is none."""
    own = getattr(type(value), "__cache_key__", None)
    if own is not None:
        return own(value)
    dump = getattr(type(value), "model_dump", None)
    if dump is not None:
        return dump(value, mode="json")
    if isinstance(value, Enum):
        return value.value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        from pydantic_core import to_jsonable_python  # noqa: PLC0415 - its import is dear

        return to_jsonable_python(value)
    return value


def _tagged_argument(name: str, value: Any) -> Any:
    try:
        return _tagged(value)
    except RecursionError:
        raise SerializationError(
            _type_name(value), f"argument {name!r} contains itself, or is nested too deeply"
        ) from None
    except SerializationError as error:
        raise SerializationError(
            error.type_name, f"argument {name!r} cannot be part of a key; {error.reason}"
        ) from None


def _tagged(value: Any) -> Any:  # noqa: PLR0911 - one return for each kind of value
    if value is None or isinstance(value, str | bool | int | float):
        return value.value if isinstance(value, Enum) else value
    if isinstance(value, list | tuple):
        return [_tagged(item) for item in value]
    if isinstance(value, Mapping):
        return _tagged_mapping(value)
    if isinstance(value, AbstractSet):
        members = sorted(json.dumps(_tagged(member), **_STYLE) for member in value)
        return {_TAG: ["set", *members]}
    for kind, tag, text in _SCALARS:
        if isinstance(value, kind):
            return {_TAG: [tag, text(value)]}
    if isinstance(value, type):
        return {_TAG: ["type", f"{value.__module__}.{value.__qualname__}"]}
    plain = _dumped(value)
    if plain is value:
        raise SerializationError(_type_name(value), _HOW_TO_KEY)
    return _tagged(plain)


def _tagged_mapping(value: Mapping[Any, Any]) -> dict[str, Any]:
    tagged: dict[str, Any] = {}
    for key, item in value.items():
        plain = key.value if isinstance(key, Enum) else key
        if isinstance(plain, str):
            name = _TAG + plain if plain.startswith(_TAG) else plain
        elif plain is None or isinstance(plain, bool | int | float):
            name = json.dumps(plain)  # what JSON makes of such a key
        else:
            name = _TAG + "key" + json.dumps(_tagged(plain), **_STYLE)
        tagged[name] = _tagged(item)
    return tagged


_SCALARS: tuple[tuple[Any, str, Callable[[Any], str]], ...] = (
    (bytes | bytearray, "bytes", lambda value: base64.b64encode(value).decode()),
    (datetime, "datetime", lambda value: value.isoformat()),
    (date, "date", lambda value: value.isoformat()),
    (time, "time", lambda value: value.isoformat()),
    (timedelta, "timedelta", lambda value: f"{value.days},{value.seconds},{value.microseconds}"),
    (Decimal, "decimal", str),
    (UUID, "uuid", lambda value: value.hex),
)


def _unkeyable(bound: dict[str, Any]) -> SerializationError:
    for name, value in bound.items():
        try:
            _encode_unsorted(value)
        except (ValueError, RecursionError):
            return SerializationError(
                _type_name(value), f"argument {name!r} contains itself, is nested too deeply or is too long a number"
            )
        except (_NotPlainError, TypeError):
            continue
    return SerializationError("dict", "the arguments are nested too deeply")


def _type_name(value: object) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")


class KeyTemplate:
    """A name with the call's arguments in it: ``"api:{tenant_id}"``, ``"user:{user.id}"``, ``"{payload[id]}"``.

    Args:
        template: Text with fields in braces; ``{{`` and ``}}`` are literal braces. A field is a parameter's name,
            optionally with attributes and keys that do not start with an underscore. Format specifications and
            conversions are refused.
        option: What errors call the template.

    Raises:
        InvalidOptionError: The template cannot be read.
    """

    def __init__(self, template: str, *, option: str = "key") -> None:
        self.template = template
        self._option = option
        if not isinstance(template, str) or not template:
            raise refuse(option, template, "a string that is not empty")
        self._parts: list[tuple[str, _Field | None]] = []
        try:
            parsed = list(string.Formatter().parse(template))
        except ValueError as error:
            raise refuse(option, template, f"a template with matching braces ({error})") from None
        for literal, field, spec, conversion in parsed:
            if spec or conversion:
                raise refuse(option, template, "a template without format specifications and conversions")
            self._parts.append((literal, None if field is None else self._field(field)))
        self.fields = tuple(field.name for _, field in self._parts if field is not None)
        self._constant = None if self.fields else "".join(literal for literal, _ in self._parts)

    def __repr__(self) -> str:
        return f"KeyTemplate({self.template!r})"

    @property
    def literal(self) -> int:
        """How much of it is text, and no field."""
        return sum(len(text) for text, _ in self._parts)

    def fits(self, name: str) -> bool:
        """Return whether it could have been filled to ``name``."""
        pattern = "".join(re.escape(text) + ("" if field is None else ".*") for text, field in self._parts)
        return re.fullmatch(pattern, name, re.DOTALL) is not None

    def _refused(self, allowed: str) -> InvalidOptionError:
        return refuse(self._option, self.template, allowed)

    def _field(self, text: str) -> _Field:
        first, _, _ = text.partition(".")
        name, _, _ = first.partition("[")
        rest = text[len(name) :]
        if not name.isidentifier():
            raise self._refused(f"a template whose fields are parameter names, not {{{text}}}")
        steps: list[str] = []
        while rest:
            if rest[0] == ".":
                step, rest = _cut(rest[1:], ".[")
            else:
                step, closing, rest = rest[1:].partition("]")
                if not closing or (rest and rest[0] not in ".["):
                    raise self._refused(f"a template with matching brackets, unlike {{{text}}}")
            if not step or step.startswith("_"):
                raise refuse(
                    self._option, self.template, f"a template that names public attributes and keys, unlike {{{text}}}"
                )
            steps.append(step)
        return _Field(name, text, tuple(steps))

    def validate(self, signature_or_function: SignatureLike) -> None:
        """Check that every field names a parameter.

        Raises:
            InvalidOptionError: A field names none.
        """
        signature = call_signature(signature_or_function)
        for name in self.fields:
            if name not in signature.names and not signature.takes_any_name:
                known = ", ".join(signature.names) or "none"
                raise refuse(
                    self._option,
                    self.template,
                    f"a template whose fields are parameters of the call ({known}), unlike {{{name}}}",
                )

    def fill(self, bound: Mapping[str, Any]) -> str:
        """Return the name for these arguments.

        Args:
            bound: The arguments by name, as :meth:`CallSignature.bind` returns them.

        Raises:
            InvalidOptionError: An argument lacks what a field asks of it.
        """
        if self._constant is not None:
            return self._constant
        return "".join(
            [literal if field is None else literal + self._value(field, bound) for literal, field in self._parts]
        )

    def for_call(self, signature_or_function: SignatureLike, args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
        """Bind the arguments and return the name for them; a template without fields binds nothing."""
        if self._constant is not None:
            return self._constant
        return self.fill(self._with_extras(call_signature(signature_or_function).bind(args, kwargs), kwargs))

    @staticmethod
    def _with_extras(bound: dict[str, Any], kwargs: Mapping[str, Any]) -> Mapping[str, Any]:
        return {**kwargs, **bound}

    def _value(self, field: _Field, bound: Mapping[str, Any]) -> str:
        try:
            value = bound[field.name]
            for step in field.steps:
                value = _look_up(value, step)
        except (KeyError, IndexError, AttributeError, TypeError):
            raise self._unfilled(f"{{{field.text}}} is not there") from None
        try:
            return _encodable(str(value))
        except Exception as error:  # noqa: BLE001 - what is nested too deeply, too long a number, an object of any kind
            raise self._unfilled(f"{{{field.text}}} has no text, {type(error).__name__}") from None

    def _unfilled(self, why: str) -> InvalidOptionError:
        return self._refused(f"a template that the arguments can fill: {why}")

    @property
    def constant(self) -> bool:
        """Whether the name is the same for every call."""
        return self._constant is not None


@dataclasses.dataclass(slots=True, frozen=True)
class _Field:
    name: str
    text: str
    steps: tuple[str, ...]


def _cut(text: str, stops: str) -> tuple[str, str]:
    for at, character in enumerate(text):
        if character in stops:
            return text[:at], text[at:]
    return text, ""


def _encodable(text: str) -> str:
    """Return text that UTF-8 has bytes for: half a surrogate, which JSON may bring, has none."""
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            raw = text.encode("utf-8", "surrogatepass")
            return "~" + hashlib.blake2b(raw, digest_size=_DIGEST_BYTES).hexdigest()
    return text


def _look_up(value: Any, step: str) -> Any:
    # A model is a mapping after a queue's wire and an object before it: both forms give the same name.
    if isinstance(value, Mapping):
        if step in value:
            return value[step]
        return value[int(step)] if step.isdigit() else getattr(value, step)
    if step.isdigit():
        return value[int(step)]
    return getattr(value, step)
