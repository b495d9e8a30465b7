"""The labels that the middlewares understand, and what each may be.

A label comes from the decorator with the type that the user wrote, or off the wire as text where the sender (a
schedule source, another language) kept no types. Both are read here; only the second may spell numbers as text.
"""

from __future__ import annotations

import ast
import contextlib
import difflib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from slotline._checks import flag, optional_seconds, refuse, text
from slotline.keys import KeyTemplate
from slotline.leases import Limits, ManagerRegistry, limits_for
from taskiq_ext._calls import calls_of

Labels: TypeAlias = Mapping[str, Any]
CACHE_LABELS = ("cache", "cache_ttl", "cache_errors", "cache_key", "cache_grace", "cache_tags")
POOL_LABELS = (
    *("pool", "pool_size", "pool_rate", "pool_burst", "pool_slot_exp"),
    *("pool_weight", "pool_partition", "pool_max_per_partition", "pool_group"),
    *("pool_on_full", "pool_timeout", "pool_on_lost"),
)
EXECUTOR_LABELS = ("executor", "time_limit", "soft_time_limit", "max_memory")
_NUMBERS = frozenset(
    {"cache_ttl", "cache_grace", *EXECUTOR_LABELS[1:], "pool_size", "pool_burst", "pool_slot_exp", "pool_timeout"}
    | {"pool_weight", "pool_max_per_partition"}
)
_FLAGS = frozenset({"cache", "cache_errors"})
_MAY_BE_LISTS = frozenset(POOL_LABELS) - {"pool_on_full", "pool_timeout", "pool_on_lost"}
_LIST_BEGINS = frozenset("[(")
_TAGS_ALLOWED = "a list of strings that are not empty, or such strings with commas between them"
_INSTEAD = {
    "executor": "take a lease with executor_lease()",
    "time_limit": "use timeout",
    "soft_time_limit": "use timeout",
    "max_memory": "only a process of its own can be limited",
}


@dataclass(frozen=True, slots=True)
class CacheOptions:
    """What a task's cache labels ask for.

    Attributes:
        ttl: Seconds that a result is kept; ``None``: as long as the cache keeps anything.
        errors: Whether the exceptions of the function are kept as well; ``None``: as the cache is set up.
        key: The template of the key; ``None``: the task's name and its arguments.
        grace: Seconds after the TTL for which the old value serves while one message refreshes it; ``None``: as the
            cache is set up.
        tags: The templates of the names by which entries can be invalidated together.
    """

    ttl: float | None
    errors: bool | None
    key: KeyTemplate | None
    grace: float | None = None
    tags: tuple[KeyTemplate, ...] = ()


@dataclass(frozen=True, slots=True)
class ExecutorOptions:
    """What a task's executor labels ask for: a manager's name, and how long the function may run there."""

    name: str
    limits: Limits


def pick(family: tuple[str, ...], labels: Labels) -> dict[str, Any]:
    """Return the labels that are in a family, or look as if they were meant to be."""
    first = family[0]
    return {
        name: value
        for name, value in labels.items()
        if name in family or (name.startswith(first) and _meant_for(first, name))
    }


def _meant_for(first: str, name: str) -> bool:
    # "executors" can only be a slip; "cached_at" or "pooling" may well be somebody else's label.
    return first == "executor" or len(name) == len(first) or name[len(first)] == "_"


def refuse_unknown(family: tuple[str, ...], labels: Labels) -> None:
    """Raise ``InvalidOptionError`` for a label that looks like one of the family but is none."""
    for name, value in labels.items():
        if name not in family:
            close = difflib.get_close_matches(name, family, n=1)
            meant = f" (did you mean {close[0]!r}?)" if close else ""
            raise refuse(name, value, "left out: the labels are " + ", ".join(family) + meant)


def from_wire(labels: Labels) -> dict[str, Any]:
    """Return labels that may have lost their types on the way with the types that they must have."""
    return {name: _from_text(name, value) if isinstance(value, str) else value for name, value in labels.items()}


def _from_text(name: str, value: str) -> Any:
    word = value.strip().lower()
    if word == "none":
        return None
    if name in _FLAGS and word in {"true", "false"}:
        return word == "true"
    if name in _MAY_BE_LISTS and value[:1] in _LIST_BEGINS:
        return _listed(value)
    if name in _NUMBERS:
        for number in (int, float):
            try:
                return number(word)
            except ValueError:
                continue
    return value


def cache_options(
    labels: Labels, function: Callable[..., Any] | None, default_ttl: float | None, *, capable: bool = True
) -> CacheOptions | None:
    """Read the labels of the cache.

    Args:
        labels: What :func:`pick` returned.
        function: The task's function, for the names in a key's template; ``None`` where it is not known.
        default_ttl: The TTL of a task that is cached without saying for how long.
        capable: Whether the cache knows grace and tags.

    Returns:
        The options, or ``None`` where the task is not cached.

    Raises:
        InvalidOptionError: A label is unknown or has an impossible value.
    """
    refuse_unknown(CACHE_LABELS, labels)
    wanted = labels.get("cache")
    if isinstance(wanted, str):
        wanted = _from_text("cache", wanted)
    cached = flag("cache", wanted) if wanted is not None else "cache_ttl" in labels
    ttl = optional_seconds("cache_ttl", labels["cache_ttl"], zero=True) if "cache_ttl" in labels else default_ttl
    errors = labels.get("cache_errors")
    if errors is not None:
        errors = flag("cache_errors", _from_text("cache_errors", errors) if isinstance(errors, str) else errors)
    key = labels.get("cache_key")
    template = template_for("cache_key", key, function) if key is not None else None
    grace = optional_seconds("cache_grace", labels.get("cache_grace"), zero=True)
    tags = _tags(labels.get("cache_tags"), function)
    for name, value in labels.items():
        if value is None or value is False:
            continue
        if not cached and wanted is None:
            raise refuse(name, value, "used together with cache_ttl or cache=True, which turn the cache on")
        if not capable and name in {"cache_grace", "cache_tags"}:
            raise refuse(name, value, "left out: the cache is no CacheAdapter, and knows neither grace nor tags")
    return CacheOptions(ttl, errors, template, grace, tags) if cached else None


def executor_options(
    labels: Labels, function: Callable[..., Any] | None, managers: ManagerRegistry, default: str | None
) -> ExecutorOptions | None:
    """Read the labels of the executor; ``default`` is the manager of plain functions without the label."""
    refuse_unknown(EXECUTOR_LABELS, labels)
    runs_in_loop = function is not None and inspect.iscoroutinefunction(function)
    name = labels.get("executor")
    if runs_in_loop:
        for label, value in labels.items():
            if value is not None:
                raise refuse(label, value, f"left out: an async task runs in the event loop; {_INSTEAD[label]}")
        return None
    if name is None and "executor" not in labels:
        name = default
    if name is None:
        for label in EXECUTOR_LABELS[1:]:
            if labels.get(label) is not None:
                raise refuse(label, labels[label], "used together with executor, whose processes can be killed")
        return None
    manager = managers.declared(name)
    limits = limits_for(manager, **{label: labels.get(label) for label in EXECUTOR_LABELS[1:]})
    return ExecutorOptions(name, limits)


def _tags(value: Any, function: Callable[..., Any] | None) -> tuple[KeyTemplate, ...]:
    if value is None:
        return ()
    if isinstance(value, str) and value[:1] in _LIST_BEGINS:
        value = _listed(value)
        if isinstance(value, str):
            raise refuse("cache_tags", value, _TAGS_ALLOWED)
    if isinstance(value, str):
        value = [tag.strip() for tag in value.split(",")]
    if not isinstance(value, list | tuple) or not all(isinstance(tag, str) and tag for tag in value):
        raise refuse("cache_tags", value, _TAGS_ALLOWED)
    return tuple(template_for("cache_tags", tag, function) for tag in value)


def _listed(value: str) -> Any:
    """Return the list that Taskiq has sent as its ``repr``; text that is none as it is."""
    with contextlib.suppress(ValueError, SyntaxError):
        found = ast.literal_eval(value)
        if isinstance(found, list | tuple):
            return found
    return value


def template_for(option: str, value: Any, function: Callable[..., Any] | None) -> KeyTemplate:
    """Return the template in a label, whose fields must be parameters of ``function``, if that is known."""
    template = KeyTemplate(text(option, value), option=option)
    if function is not None:
        template.validate(calls_of(function).signature)
    return template
