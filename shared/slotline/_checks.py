"""Checks of option values: each returns the value in its final type or raises ``InvalidOptionError``.

``bool`` is never a number here, and neither is a string: ``True`` slots or ``"5"`` seconds are a mistake somewhere.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from slotline.errors import InvalidOptionError

T = TypeVar("T", bound=str)


def refuse(option: str, value: object, allowed: str) -> InvalidOptionError:
    """Return the error for an option's value; ``repr`` of the value is cut at 200 characters."""
    try:
        shown = repr(value)
    except ValueError:  # more digits than Python likes to show
        shown = f"an int of {value.bit_length()} bits" if isinstance(value, int) else object.__repr__(value)
    return InvalidOptionError(option, shown if len(shown) <= 200 else shown[:197] + "...", allowed)  # noqa: PLR2004 - the docstring names the number


@contextmanager
def of_task(name: str) -> Iterator[None]:
    """Have a refusal of a task's options name the task: an app has hundreds, and checks all of them as it starts."""
    try:
        yield
    except InvalidOptionError as error:
        note = f"It is an option of task {name!r}."
        if note not in getattr(error, "__notes__", ()):
            error.add_note(note)
        raise


def whole_number(option: str, value: Any, *, at_least: int = 1) -> int:
    """Return ``value`` as an ``int``; a float counts only where it is whole."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or (isinstance(value, float) and not value.is_integer()) or value < at_least:
        raise refuse(option, value, f"a whole number of at least {at_least}")
    return int(value)


def seconds(option: str, value: Any, *, zero: bool = False) -> float:
    """Return ``value`` as finite seconds greater than zero (or at least zero with ``zero=True``)."""
    allowed = "a finite number of seconds, " + ("zero or more" if zero else "greater than zero")
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise refuse(option, value, allowed)
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number) or number < 0 or (number == 0 and not zero):
        raise refuse(option, value, allowed)
    return number


def optional_seconds(option: str, value: Any, *, zero: bool = False) -> float | None:
    """Return ``None`` or what :func:`seconds` returns."""
    if value is None:
        return None
    try:
        return seconds(option, value, zero=zero)
    except InvalidOptionError as error:
        raise refuse(option, value, error.allowed + ", or None") from None


def any_text(option: str, value: Any) -> str:
    """Return ``value`` if it is a string that is not empty."""
    if not isinstance(value, str) or not value:
        raise refuse(option, value, "a string that is not empty")
    return value


def text(option: str, value: Any) -> str:
    """Return ``value`` if it is a string that is not empty, and that UTF-8 has bytes for."""
    checked = any_text(option, value)
    try:
        checked.encode()
    except UnicodeEncodeError:
        raise refuse(option, value, "text that can be encoded, without half a surrogate") from None
    return checked


def key_prefix(option: str, value: Any) -> str:
    """Return ``value`` if keys and channels can begin with it."""
    if any(character in text(option, value) for character in "{}|"):
        raise refuse(option, value, "text without braces, which Redis Cluster reads as a hash tag, and without a bar")
    return str(value)


def flag(option: str, value: Any) -> bool:
    """Return ``value`` if it is ``True`` or ``False``."""
    if not isinstance(value, bool):
        raise refuse(option, value, "True or False")
    return value


def one_of(option: str, value: Any, allowed: Collection[T]) -> T:
    """Return ``value`` if it is one of the words in ``allowed``."""
    for word in allowed:
        if isinstance(value, str) and value == word:
            return word
    raise refuse(option, value, "one of " + ", ".join(repr(str(word)) for word in allowed))
