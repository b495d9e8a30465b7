"""Limits: what the pool labels of a task ask for, and the limits that a middleware declares."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

from slotline._checks import one_of, optional_seconds, refuse, whole_number
from slotline._default import DEFAULT, Default
from slotline.keys import KeyTemplate
from slotline.pools.demand import (
    OF_EACH,
    Demand,
    OfPool,
    demand_of,
    demand_of_all,
    keys_of,
    named_as_options,
    said_of_each,
)
from slotline.pools.rate import Rate
from taskiq_ext._calls import calls_of
from taskiq_ext._labels import CACHE_LABELS, POOL_LABELS, cache_options, from_wire, pick, refuse_unknown, template_for

if TYPE_CHECKING:
    from taskiq.message import TaskiqMessage

    from taskiq_ext._labels import Labels

OnFull: TypeAlias = Literal["park", "wait", "fail", "drop", "stale", "cancel_newest", "cancel_oldest"]
OnLost: TypeAlias = Literal["cancel", "warn"]

ON_FULL: tuple[OnFull, ...] = get_args(OnFull)
ON_LOST: tuple[OnLost, ...] = get_args(OnLost)
_NEVER_NONE = frozenset({"pool_size", "pool_rate", "pool_burst", "pool_weight"})


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
        timeout: Seconds that a message waits in the worker at most before it ends with ``PoolTimeoutError``; 0: not
            at all; ``None``: no limit.
        rate: How often a run may start at the most, such as ``"100/m"``; ``None``: however often.
        burst: How many runs may start at once after a pause; ``None``: one. Only with a rate.
        partition: On whose account a run counts, a template as the key is: ``"{tenant}"``. Partitions whose messages
            wait are served in turn; ``None``: all are one.
        max_per_partition: How many slots one partition may have at the most; ``None``: as many as there are.
        group: What the pools of tasks that name several have in common on a Redis Cluster; see ``Pool``.
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
    partition: str | None = None
    max_per_partition: int | None = None
    group: str | None = None
    on_lost: OnLost | None = None

    def __post_init__(self) -> None:
        with named_as_options():
            rate = Rate.parse(self.rate, self.burst)
        if rate is not None and self.burst is not None:
            object.__setattr__(self, "burst", rate.burst)
        if self.size is not None:
            object.__setattr__(self, "size", whole_number("pool_size", self.size))
        elif rate is None:
            raise refuse("pool_size", None, "a whole number of at least 1, or None beside a pool_rate")
        if self.slot_exp is not DEFAULT:
            object.__setattr__(self, "slot_exp", optional_seconds("pool_slot_exp", self.slot_exp))
        if self.partition is not None:
            KeyTemplate(self.partition, option="pool_partition")
        if self.max_per_partition is not None:
            most = whole_number("pool_max_per_partition", self.max_per_partition)
            object.__setattr__(self, "max_per_partition", most)
        if self.on_full is not None:
            object.__setattr__(self, "on_full", one_of("pool_on_full", self.on_full, ON_FULL))
        object.__setattr__(self, "timeout", optional_seconds("pool_timeout", self.timeout, zero=True))
        if self.on_full == "park" and self.timeout is not None:
            raise refuse("pool_timeout", self.timeout, 'left out with pool_on_full="park": what is parked waits')
        if self.on_lost is not None:
            object.__setattr__(self, "on_lost", one_of("pool_on_lost", self.on_lost, ON_LOST))
        self.check_on_lost(self.on_lost)

    @property
    def options(self) -> tuple[tuple[str, Any], ...]:
        """The options of ``Pool``, by name."""
        names = ("slot_exp", "rate", "burst", "max_per_partition", "group")
        return ("max_size", self.size), *((name, getattr(self, name)) for name in names)

    def check_on_lost(self, on_lost: OnLost | None) -> None:
        """Refuse to cancel the oldest run where runs are not cancelled.

        Raises:
            InvalidOptionError: ``on_lost`` is what holds, and contradicts ``on_full``.
        """
        if self.on_full == "cancel_oldest" and on_lost == "warn":
            raise refuse("pool_on_full", self.on_full, 'used with pool_on_lost="cancel": the oldest run must end')


def declared_limit(key: str, limit: int | PoolLimit | Mapping[str, Any]) -> PoolLimit:
    """Return the limit that a middleware declares for pool ``key``: a size, a limit, or its options."""
    if isinstance(limit, PoolLimit):
        return limit
    if not isinstance(limit, Mapping):
        return PoolLimit(size=limit)
    for name, value in limit.items():
        if name not in PoolLimit.__dataclass_fields__:
            raise refuse(f"pools[{key!r}].{name}", value, "one of " + ", ".join(PoolLimit.__dataclass_fields__))
    if limit.get("size") is None and limit.get("rate") is None:
        raise refuse(f"pools[{key!r}]", dict(limit), "options with a size, a rate or both")
    return PoolLimit(**limit)


class _DoesNotFitError(Exception):
    """The arguments of a message do not fit its function."""


@dataclass(frozen=True, slots=True)
class PoolOptions:
    """What a task's pool labels ask for.

    Attributes:
        pools: The pools that a run counts in, at the same time.
        limit: What becomes of a message that finds one full, and of a run whose slot is lost.
    """

    pools: tuple[OfPool, ...]
    limit: PoolLimit
    _of_all: Demand | None = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_of_all", demand_of_all(self.pools))

    @property
    def unfilled(self) -> Demand:
        """What messages ask for, with the templates as they are."""
        return demand_of(self.pools, lambda template: template.template)

    def demand_of(self, message: TaskiqMessage, function: Callable[..., Any]) -> Demand | None:
        """Return what a message asks for; ``None``: its arguments do not fit ``function``.

        Raises:
            InvalidOptionError: An argument lacks what a template asks of it.
        """
        if self._of_all is not None:
            return self._of_all
        calls = calls_of(function)

        def name(template: KeyTemplate) -> str:
            filled = calls.fill(template, message)
            if filled is None:
                raise _DoesNotFitError
            return filled

        try:
            return demand_of(self.pools, name)
        except _DoesNotFitError:
            return None


def pool_options(
    labels: Labels, function: Callable[..., Any] | None, pools: Mapping[str, PoolLimit]
) -> PoolOptions | None:
    """Read the labels of the limit; ``pools`` are the declared ones. See :func:`cache_options` for the rest."""
    refuse_unknown(POOL_LABELS, labels)
    if labels.get("pool") is None:
        for name in () if "pool" in labels else POOL_LABELS[1:]:  # None lifts the limit, whatever else the task says
            if labels.get(name) is not None:
                raise refuse(name, labels[name], "used together with pool, the key of the limit")
        return None
    keys = keys_of(labels["pool"])
    named = [pools[key] for key in keys if key in pools]
    policy = {
        "on_full": labels.get("pool_on_full") or _first(limit.on_full for limit in named),
        "timeout": labels["pool_timeout"] if "pool_timeout" in labels else _first(limit.timeout for limit in named),
        "on_lost": labels.get("pool_on_lost") or _first(limit.on_lost for limit in named),
    }
    given = {name: value for name, value in labels.items() if value is not None or name not in _NEVER_NONE}
    said = said_of_each(given, len(keys))
    weights = [of_pool.pop("weight", 1) for of_pool in said]
    limits = [_limit_of(key, of_pool, pools, policy) for key, of_pool in zip(keys, said, strict=True)]
    each = zip(keys, limits, weights, strict=True)
    options = PoolOptions(tuple(_of_pool(*one, function) for one in each), limits[0])
    most = labels.get("pool_max_per_partition")
    if most is not None and "pool_partition" not in labels and not any(pool.partition for pool in options.pools):
        raise refuse("pool_max_per_partition", most, "used together with pool_partition")
    options.unfilled.made()  # says what cannot be, each for itself and together
    return options


def _limit_of(
    key: str, said: Mapping[str, Any], pools: Mapping[str, PoolLimit], policy: Mapping[str, Any]
) -> PoolLimit:
    declared = pools.get(key)
    if declared is None and not said.keys() & {"size", "rate"}:
        if "burst" in said:
            with named_as_options():
                Rate.parse(None, said["burst"])
        known = ", ".join(map(repr, pools)) or "there are none"
        allowed = f"one of the pools that the middleware declares ({known}), or come with pool_size or pool_rate"
        raise refuse("pool", key, allowed)
    base = {name: getattr(declared, name) for name in OF_EACH if name != "weight"} if declared else {}
    return PoolLimit(**{**base, **said, **policy})


def _of_pool(key: str, limit: PoolLimit, weight: Any, function: Callable[..., Any] | None) -> OfPool:
    template = template_for("pool", key, function)
    partition = None if limit.partition is None else template_for("pool_partition", limit.partition, function)
    return OfPool(template, limit.options, whole_number("pool_weight", weight), partition)


def _first(values: Iterable[Any]) -> Any:
    return next((value for value in values if value is not None), None)


def refuse_stale_without_cache(options: PoolOptions | None, labels: Labels) -> None:
    """Refuse ``pool_on_full="stale"`` for a task whose labels do not ask for the cache.

    Raises:
        InvalidOptionError: They do not.
    """
    if options is None or options.limit.on_full != "stale":
        return
    if cache_options(from_wire(pick(CACHE_LABELS, labels)), None, None) is None:
        raise refuse("pool_on_full", "stale", "used on a task that is cached: with cache_ttl or cache=True")
