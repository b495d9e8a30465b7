"""How long an entry lives and who may have it: checked once, then passed around whole."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Final

from slotline._checks import any_text, refuse, seconds
from slotline.errors import InvalidOptionError

_TTL_ALLOWED = "a finite number of seconds, zero or more (0 and None: no expiry)"


_LONGEST = 1e12
"""Seconds, some 30,000 years: more than that would be too many milliseconds for a server."""


class _Default(int):
    """An ``int`` that is known by its identity, so that signatures show the documented number."""


DEFAULT_TTL: Final[Any] = _Default(3600)
"""Stands for the adapter's ``default_ttl``, which is 3600 seconds unless it was told otherwise."""

KEPT_FOR_FULL_POOLS: Final = 86_400.0
"""Seconds after its end for which the last value serves calls whose pool is full (``pool_on_full="stale"``)."""

UNSET: Final[Any] = type("Unset", (), {"__repr__": lambda _: "UNSET", "__slots__": ()})()
"""Stands for what the adapter was told at its construction."""


@dataclass(slots=True, frozen=True)
class EntryOptions:
    """Everything about an entry but its key and its value; all times in seconds.

    Attributes:
        ttl: How long the value is fresh; ``math.inf`` for ever.
        grace: How long after that it still serves while one caller refreshes it.
        beta: How eagerly a value is refreshed before its end (XFetch); 0 never, 1 is the literature's choice.
        errors_ttl: How long a creator's exception is served in its place; 0 not at all.
        jitter: The share of the TTL that is taken off at random, so that entries do not end together.
        tags: Names under which the entry can be invalidated together with others.
        returns: The declared type of the value, for models and dataclasses.
        own_errors: Exceptions that concern the one caller alone whose creator raised them: a queue's retry, a time
            limit. Nobody else gets them, and the next caller in line runs its own creator.
        keep: How long after its end, grace included, the last value can still be had by ``kept``.
    """

    ttl: float = 3600.0
    grace: float = 0.0
    beta: float = 0.0
    errors_ttl: float = 0.0
    jitter: float = 0.0
    tags: tuple[str, ...] = ()
    returns: Any = None
    own_errors: tuple[type[BaseException], ...] = ()
    keep: float = 0.0

    def life(self) -> float:
        """Return the seconds that a value stored now is fresh, jitter taken off."""
        if not self.jitter or self.ttl == math.inf:
            return self.ttl
        return self.ttl * (1.0 - self.jitter * random.random())  # noqa: S311 - spreads expiry, no secret

    def changed(
        self,
        ttl_seconds: Any = DEFAULT_TTL,
        grace_seconds: Any = UNSET,
        beta: Any = UNSET,
        cache_errors: Any = UNSET,
        tags: Iterable[str] = (),
        returns: Any = None,
        own_errors: tuple[type[BaseException], ...] = (),
        keep_seconds: Any = UNSET,
    ) -> EntryOptions:
        """Return these options with what one call says otherwise.

        Raises:
            InvalidOptionError: A value is impossible; the error names the option.
        """
        changes: dict[str, Any] = {}
        if ttl_seconds is not DEFAULT_TTL:
            changes["ttl"] = checked_ttl("ttl_seconds", ttl_seconds)
        if grace_seconds is not UNSET:
            changes["grace"] = checked_grace("grace_seconds", grace_seconds)
        if beta is not UNSET:
            changes["beta"] = checked_beta("beta", beta)
        if cache_errors is not UNSET:
            changes["errors_ttl"] = checked_errors_ttl("cache_errors", cache_errors, changes.get("ttl", self.ttl))
        if tags:
            changes["tags"] = checked_tags("tags", tags)
        if returns is not None:
            changes["returns"] = returns
        if own_errors:
            changes["own_errors"] = own_errors
        if keep_seconds is not UNSET:
            changes["keep"] = checked_grace("keep_seconds", keep_seconds)
        return replace(self, **changes) if changes else self


def checked_ttl(option: str, value: Any) -> float:
    """Return a TTL in seconds, ``math.inf`` for 0 and ``None``."""
    return math.inf if value is None else _time(option, value, _TTL_ALLOWED) or math.inf


def checked_grace(option: str, value: Any) -> float:
    """Return a grace in seconds, 0 for ``None``."""
    return 0.0 if value is None else _time(option, value)


def checked_beta(option: str, value: Any) -> float:
    """Return a number of at least 0, 0 for ``None``."""
    return 0.0 if value is None else _time(option, value, "a finite number, zero or more, or None")


def checked_jitter(option: str, value: Any) -> float:
    """Return a share of the TTL, at least 0 and less than 1."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
        raise refuse(option, value, "a share of the TTL, at least 0 and less than 1")
    return float(value)


def checked_errors_ttl(option: str, value: Any, ttl: float) -> float:
    """Return for how many seconds errors are kept: ``True`` as long as values, ``False`` and ``None`` not at all."""
    if value is None or value is False:
        return 0.0
    return ttl if value is True else _time(option, value)


def _time(option: str, value: Any, allowed: str | None = None) -> float:
    try:
        return min(seconds(option, value, zero=True), _LONGEST)
    except InvalidOptionError as error:
        raise refuse(option, value, allowed or error.allowed) from None


def checked_tags(option: str, value: Any) -> tuple[str, ...]:
    """Return tags without repetition, in order."""
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise refuse(option, value, "a sequence of strings")
    return tuple(dict.fromkeys(any_text(option, tag) for tag in value))
