"""Limits: what the pool labels of a task ask for, and the limits that a middleware declares."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias, get_args

from slotline._checks import one_of, optional_seconds, refuse, text, whole_number
from slotline._default import DEFAULT, Default
from slotline.errors import InvalidOptionError
from slotline.keys import KeyTemplate
from slotline.pools._share import Share
from slotline.pools._wire import UNLIMITED
from slotline.pools.rate import Rate
from taskiq_ext._labels import CACHE_LABELS, POOL_LABELS, cache_options, from_wire, pick, refuse_unknown, template_for

if TYPE_CHECKING:
    from taskiq.message import TaskiqMessage

    from taskiq_ext._calls import TaskCalls
    from taskiq_ext._labels import Labels

OnFull: TypeAlias = Literal["park", "wait", "fail", "drop", "stale", "cancel_newest", "cancel_oldest"]
OnLost: TypeAlias = Literal["cancel", "warn"]

ON_FULL: tuple[OnFull, ...] = get_args(OnFull)
ON_LOST: tuple[OnLost, ...] = get_args(OnLost)


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
        partition: On whose account a run counts, a template as the key is: ``"{tenant}"``. Partitions whose messages
            wait are served in turn; ``None``: all are one.
        max_per_partition: How many slots one partition may have at the most; ``None``: as many as there are.
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
    on_lost: OnLost | None = None

    def __post_init__(self) -> None:
        with _named_as_labels():
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


class Asked(NamedTuple):
    """What one message asks of which pool."""

    key: str
    weight: int
    partition: str | None

    @property
    def share(self) -> dict[str, Any]:
        """The arguments by which a pool or a room is asked for it."""
        return {"weight": self.weight, "partition": self.partition}


@dataclass(frozen=True, slots=True)
class PoolOptions:
    """What a task's pool labels ask for.

    Attributes:
        key: The pool's key, which may be a template.
        limit: Its limit.
        weight: How many of its slots a run counts as.
        partition: The template of the partition that a run counts in; ``None``: in none.
    """

    key: KeyTemplate
    limit: PoolLimit
    weight: int = 1
    partition: KeyTemplate | None = None

    def asked_by(self, message: TaskiqMessage, calls: TaskCalls) -> Asked | None:
        """Return what a message asks for; ``None``: its arguments do not fit the function.

        Raises:
            InvalidOptionError: An argument lacks what a template asks of it.
        """
        key = calls.fill(self.key, message)
        partition = None if self.partition is None else calls.fill(self.partition, message)
        if key is None or (partition is None and self.partition is not None):
            return None
        return Asked(key, self.weight, partition)


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
    template = template_for("pool", text("pool", key), function)
    declared = pools.get(key)
    own = {name: labels[name] for name in ("pool_size", "pool_rate", "pool_burst") if labels.get(name) is not None}
    if declared is None and not own.keys() & {"pool_size", "pool_rate"}:
        if "pool_burst" in own:
            with _named_as_labels():
                Rate.parse(None, own["pool_burst"])
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
        partition=labels.get("pool_partition", base.partition),
        max_per_partition=labels.get("pool_max_per_partition", base.max_per_partition),
        on_lost=labels.get("pool_on_lost") or base.on_lost,
    )
    if labels.get("pool_max_per_partition") and limit.partition is None and "pool_partition" not in labels:
        raise refuse("pool_max_per_partition", limit.max_per_partition, "used together with pool_partition")
    weight = labels.get("pool_weight")
    with _named_as_labels():
        size, most = limit.size or UNLIMITED, limit.max_per_partition
        share = Share.of(1 if weight is None else weight, limit.partition, key=key, size=size, most=most)
    partition = None if limit.partition is None else template_for("pool_partition", limit.partition, function)
    return PoolOptions(template, limit, share.weight, partition)


def refuse_stale_without_cache(options: PoolOptions | None, labels: Labels) -> None:
    """Refuse ``pool_on_full="stale"`` for a task whose labels do not ask for the cache.

    Raises:
        InvalidOptionError: They do not.
    """
    if options is None or options.limit.on_full != "stale":
        return
    if cache_options(from_wire(pick(CACHE_LABELS, labels)), None, None) is None:
        raise refuse("pool_on_full", "stale", "used on a task that is cached: with cache_ttl or cache=True")


@contextmanager
def _named_as_labels() -> Iterator[None]:
    try:
        yield
    except InvalidOptionError as error:
        raise InvalidOptionError(f"pool_{error.option}", error.value, error.allowed) from None
