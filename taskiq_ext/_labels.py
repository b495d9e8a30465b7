"""The labels that the middlewares understand, and what each may be.

A label comes from the decorator with the type that the user wrote, or off the wire as text where the sender (a
schedule source, another language) kept no types. Both are read here; only the second may spell numbers as text.
"""

from __future__ import annotations

import ast
import difflib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

from slotline._checks import flag, one_of, optional_seconds, refuse, text, whole_number
from slotline._default import DEFAULT, Default
from slotline.errors import InvalidOptionError
from slotline.keys import KeyTemplate
from slotline.leases import Limits, ManagerRegistry, limits_for
from slotline.pools.rate import Rate
from taskiq_ext._calls import calls_of

Labels: TypeAlias = Mapping[str, Any]
OnFull: TypeAlias = Literal["park", "wait", "fail", "drop", "stale", "cancel_newest", "cancel_oldest"]
OnLost: TypeAlias = Literal["cancel", "warn"]

ON_FULL: tuple[OnFull, ...] = get_args(OnFull)
ON_LOST: tuple[OnLost, ...] = get_args(OnLost)
CACHE_LABELS = ("cache", "cache_ttl", "cache_errors", "cache_key", "cache_grace", "cache_tags")
POOL_LABELS = (
    *("pool", "pool_size", "pool_rate", "pool_burst", "pool_slot_exp"),
    *("pool_on_full", "pool_timeout", "pool_on_lost"),
)
EXECUTOR_LABELS = ("executor", "time_limit", "soft_time_limit", "max_memory")
_NUMBERS = frozenset(
    {"cache_ttl", "cache_grace", "pool_size", "pool_burst", "pool_slot_exp", "pool_timeout", *EXECUTOR_LABELS}
    - {"executor"}
)
_FLAGS = frozenset({"cache", "cache_errors"})
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


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolLimit:
    """A limit that tasks name by their ``pool`` label: a size, a rate, or both.

    Args:
        size: How many runs there may be at once; ``None``: as many as the rate lets start.
        slot_exp: Seconds from acquisition after which a run no longer counts; ``None``: no such limit. The default
            is ``default_pool_slot_expiration`` of the settings.
        on_full: What happens to a message that finds no slot: it is parked in the store and costs no worker anything
            until there is a slot for it (``"park"``), waits in the worker (``"wait"``), ends with ``PoolFullError``
            (``"fail"``) or ``RunCancelledError`` (``"cancel_newest"``), or ends without a run or a result
            (``"drop"``). ``None``: it is parked where processes share the store, and waits otherwise and where it has
            a ``timeout``. ``"cancel_oldest"``: so it is, and the longest run ends for it with ``SlotLostError``.
            ``"stale"``: it ends with the last value that the cache has of it, however old, and does as with ``None``
            where there is none.
        timeout: Seconds that a message waits in the worker at most before it ends with ``PoolTimeoutError``;
            ``None``: no limit.
        rate: How often a run may start at the most, such as ``"100/m"``; ``None``: however often.
        burst: How many runs may start at once after a pause; ``None``: one. Only with a rate.
        on_lost: What happens to a run whose slot is lost, or whose pool is told to evict it: it ends with
            ``SlotLostError`` before anybody else can have its slot, where it can be ended (``"cancel"``), or goes on
            (``"warn"``). ``None``: as the middleware says.

    Raises:
        InvalidOptionError: A value is impossible, or there is neither a size nor a rate.
    """

    size: int | None = None
    slot_exp: float | Default | None = DEFAULT
    on_full: OnFull | None = None
    timeout: float | None = None
    rate: str | None = None
    burst: int | None = None
    on_lost: OnLost | None = None

    def __post_init__(self) -> None:
        rate = _rate(self.rate, self.burst)
        if rate is not None and self.burst is not None:
            object.__setattr__(self, "burst", rate.burst)
        if self.size is not None:
            object.__setattr__(self, "size", whole_number("pool_size", self.size))
        elif rate is None:
            raise refuse("pool_size", None, "a whole number of at least 1, or None beside a pool_rate")
        if self.slot_exp is not DEFAULT:
            object.__setattr__(self, "slot_exp", optional_seconds("pool_slot_exp", self.slot_exp))
        if self.on_full is not None:
            object.__setattr__(self, "on_full", one_of("pool_on_full", self.on_full, ON_FULL))
        object.__setattr__(self, "timeout", optional_seconds("pool_timeout", self.timeout))
        if self.on_full == "park" and self.timeout is not None:
            raise refuse("pool_timeout", self.timeout, 'left out with pool_on_full="park": what is parked waits')
        if self.on_lost is not None:
            object.__setattr__(self, "on_lost", one_of("pool_on_lost", self.on_lost, ON_LOST))
        self.check_on_lost(self.on_lost)

    def check_on_lost(self, on_lost: OnLost | None) -> None:
        """Refuse to cancel the oldest run where runs are not cancelled.

        Raises:
            InvalidOptionError: ``on_lost`` is what holds, and contradicts ``on_full``.
        """
        if self.on_full == "cancel_oldest" and on_lost == "warn":
            raise refuse("pool_on_full", self.on_full, 'used with pool_on_lost="cancel": the oldest run must end')


@dataclass(frozen=True, slots=True)
class PoolOptions:
    """What a task's pool labels ask for: a key, which may be a template, and its limit."""

    key: KeyTemplate
    limit: PoolLimit


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
    template = _template("cache_key", key, function) if key is not None else None
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


def pool_options(
    labels: Labels, function: Callable[..., Any] | None, pools: Mapping[str, PoolLimit]
) -> PoolOptions | None:
    """Read the labels of the limit; ``pools`` are the declared ones. See :func:`cache_options` for the rest."""
    refuse_unknown(POOL_LABELS, labels)
    key = labels.get("pool")
    if key is None:
        for name in POOL_LABELS[1:]:
            if labels.get(name) is not None:
                raise refuse(name, labels[name], "used together with pool, the key of the limit")
        return None
    template = _template("pool", text("pool", key), function)
    declared = pools.get(key)
    own = {name: labels[name] for name in ("pool_size", "pool_rate", "pool_burst") if labels.get(name) is not None}
    if declared is None and not own.keys() & {"pool_size", "pool_rate"}:
        if "pool_burst" in own:
            _rate(None, own["pool_burst"])
        known = ", ".join(map(repr, pools)) or "there are none"
        allowed = f"one of the pools that the middleware declares ({known}), or come with pool_size or pool_rate"
        raise refuse("pool", key, allowed)
    base = declared or PoolLimit(size=1)
    limit = PoolLimit(
        size=own.get("pool_size", declared.size if declared else None),
        slot_exp=labels.get("pool_slot_exp", base.slot_exp),
        on_full=labels.get("pool_on_full") or base.on_full,
        timeout=labels.get("pool_timeout", base.timeout),
        rate=own.get("pool_rate", base.rate),
        burst=own.get("pool_burst", base.burst),
        on_lost=labels.get("pool_on_lost") or base.on_lost,
    )
    return PoolOptions(template, limit)


def refuse_stale_without_cache(options: PoolOptions | None, labels: Labels) -> None:
    """Refuse ``pool_on_full="stale"`` for a task whose labels do not ask for the cache.

    Raises:
        InvalidOptionError: They do not.
    """
    if options is None or options.limit.on_full != "stale":
        return
    if cache_options(from_wire(pick(CACHE_LABELS, labels)), None, None) is None:
        raise refuse("pool_on_full", "stale", "used on a task that is cached: with cache_ttl or cache=True")


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


def _rate(rate: Any, burst: Any) -> Rate | None:
    try:
        return Rate.parse(rate, burst)
    except InvalidOptionError as error:
        raise InvalidOptionError(f"pool_{error.option}", error.value, error.allowed) from None


def _tags(value: Any, function: Callable[..., Any] | None) -> tuple[KeyTemplate, ...]:
    if value is None:
        return ()
    if isinstance(value, str) and value[:1] in {"[", "("}:  # Taskiq sends a list as its repr
        try:
            value = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            raise refuse("cache_tags", value, _TAGS_ALLOWED) from None
    if isinstance(value, str):
        value = [tag.strip() for tag in value.split(",")]
    if not isinstance(value, list | tuple) or not all(isinstance(tag, str) and tag for tag in value):
        raise refuse("cache_tags", value, _TAGS_ALLOWED)
    return tuple(_template("cache_tags", tag, function) for tag in value)


def _template(option: str, value: Any, function: Callable[..., Any] | None) -> KeyTemplate:
    template = KeyTemplate(text(option, value), option=option)
    if function is not None:
        template.validate(calls_of(function).signature)
    return template
