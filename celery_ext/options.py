"""The options of a task: their names, their checks, and what they come to for one call."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from slotline import _checks
from slotline.errors import InvalidOptionError
from slotline.keys import CallSignature, KeyTemplate
from slotline.metrics._names import name_pools
from slotline.pools.demand import OF_EACH, Demand, OfPool, demand_of, demand_of_all, for_each, keys_of, said_of_each
from slotline.pools.rate import Rate

if TYPE_CHECKING:
    from celery_ext.config import Config

HEADER: Final = "slotline"
"""The message header in which the options of one call travel."""
ON_FULL: Final = ("park", "wait", "fail", "drop", "stale", "cancel_newest", "cancel_oldest")
ON_LOST: Final = ("cancel", "warn")
_FAMILIES: Final = ("pool_", "cache_", "executor")
_UNSET: Any = object()
_CALLS_KEPT: Final = 256


def _cache_errors(option: str, value: Any) -> bool | float | tuple[type[Exception], ...]:
    allowed = "True, False, seconds, an exception class or a tuple of them"
    if isinstance(value, bool):
        return value
    if isinstance(value, int | float):
        return _checks.seconds(option, value)
    classes = value if isinstance(value, tuple | list) else (value,)
    if not all(isinstance(kind, type) and issubclass(kind, Exception) for kind in classes):
        raise _checks.refuse(option, value, allowed)
    return tuple(classes)


def _template(option: str, value: Any) -> str:
    text = _checks.text(option, value)
    KeyTemplate(text, option=option)
    return text


def _tags(option: str, value: Any) -> tuple[str, ...]:
    if not isinstance(value, list | tuple):
        raise _checks.refuse(option, value, "a list or a tuple of strings")
    return tuple(_template(option, tag) for tag in value)


def _pool(option: str, value: Any) -> str | tuple[str, ...]:
    keys = keys_of(value)
    for key in keys:
        KeyTemplate(key, option=option)
    return keys if len(keys) > 1 else keys[0]


def _rate(option: str, value: Any) -> str:
    try:
        rate = Rate.parse("" if value is None else value, None)
    except InvalidOptionError as error:
        raise _checks.refuse(option, value, error.allowed) from None
    assert rate is not None  # noqa: S101 - only None means no rate
    return rate.text


def _optional(check: Callable[[str, Any], Any]) -> Callable[[str, Any], Any]:
    def checked(option: str, value: Any) -> Any:
        return None if value is None else check(option, value)

    return checked


_CHECKS: Final[Mapping[str, Callable[[str, Any], Any]]] = {
    "pool": _optional(_pool),
    "pool_size": for_each(_checks.whole_number),
    "pool_rate": for_each(_rate),
    "pool_burst": for_each(_checks.whole_number),
    "pool_slot_exp": for_each(_checks.optional_seconds),
    "pool_weight": for_each(_checks.whole_number),
    "pool_partition": for_each(_optional(_template)),
    "pool_max_per_partition": for_each(_checks.whole_number),
    "pool_group": for_each(_checks.text),
    "pool_on_full": lambda option, value: _checks.one_of(option, value, ON_FULL),
    "pool_timeout": lambda option, value: _checks.optional_seconds(option, value, zero=True),
    "pool_on_lost": lambda option, value: _checks.one_of(option, value, ON_LOST),
    "cache": _checks.flag,
    "cache_ttl": lambda option, value: _checks.optional_seconds(option, value, zero=True),
    "cache_errors": _cache_errors,
    "cache_key": _optional(_template),
    "cache_grace": lambda option, value: _checks.optional_seconds(option, value, zero=True),
    "cache_tags": _tags,
    "executor": _optional(_checks.text),
}
NAMES: Final = tuple(_CHECKS)
LIMIT_NAMES: Final = tuple(name for name in NAMES if name.startswith("pool"))


def check_option(name: str, value: Any) -> Any:
    """Return the value of option ``name`` in its final type.

    Raises:
        InvalidOptionError: There is no such option, or the value is impossible.
    """
    check = _CHECKS.get(name)
    if check is None:
        raise _checks.refuse(name, value, "one of the options " + ", ".join(NAMES))
    return check(name, value)


def is_option(name: str) -> bool:
    """Return whether ``name`` is an option of Slotline, or looks so much like one that it must be a mistake."""
    return name in _CHECKS or name.startswith(_FAMILIES)


@dataclass(frozen=True, slots=True)
class CallLimit(Demand):
    """What one call asks of its pools, and what becomes of it where one is full.

    Attributes:
        on_full: What becomes of the call that finds one full, one of ``ON_FULL``; ``None`` for what suits the store.
        timeout: Seconds that the call waits at the most; ``None`` for as long as it takes.
    """

    on_full: str | None
    timeout: float | None

    @property
    def parks(self) -> bool:
        """Whether a call that finds no slot is parked, where processes share the store."""
        if self.on_full in {None, "stale", "cancel_oldest"}:
            return self.timeout is None
        return self.on_full == "park"


@dataclass(frozen=True, slots=True)
class TaskOptions:
    """The checked options of a task, or of one call of it.

    Attributes:
        pools: What they say of each pool that a call counts in; none without a limit.
    """

    values: Mapping[str, Any]
    signature: CallSignature | None
    config: Config
    pools: tuple[OfPool, ...] = field(init=False)
    _limit_of_all: CallLimit | None = field(init=False, compare=False, repr=False)
    _calls: dict[Any, TaskOptions] = field(init=False, default_factory=dict, compare=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "pools", tuple(self._of_pools()))
        demand = demand_of_all(self.pools)
        object.__setattr__(self, "_limit_of_all", None if demand is None else self._limit(demand))

    def with_call(self, changes: Mapping[str, Any]) -> TaskOptions:
        """Return the options of a call that overrides some.

        Raises:
            InvalidOptionError: An override is unknown or impossible.
        """
        if not isinstance(changes, Mapping):
            raise _checks.refuse(f"headers[{HEADER!r}]", changes, "a dictionary of options")
        # Calls that override the same are many, and each is asked for more than once. True is no 1 here.
        known = tuple((name, type(value), value) for name, value in changes.items())
        try:
            found = self._calls.get(known)
        except TypeError:  # a list
            return self._changed(changes)
        if found is None:
            found = self._changed(changes)
            if len(self._calls) < _CALLS_KEPT:
                self._calls[known] = found
        return found

    def _changed(self, changes: Mapping[str, Any]) -> TaskOptions:
        checked = {name: check_option(name, value) for name, value in changes.items()}
        return _coherent(TaskOptions({**self.values, **checked}, self.signature, self.config))

    def get(self, name: str, default: Any = None) -> Any:
        """Return the value of one option."""
        return self.values.get(name, default)

    def of_pools(self, name: str, default: Any = None) -> Any:
        """Return an option that holds for all pools: the task's or the call's own, else that of a declared pool."""
        if name in self.values:
            return self.values[name]
        return next((said[name] for said in map(self._declared, self._keys) if name in said), default)

    @property
    def _keys(self) -> tuple[str, ...]:
        pool = self.values.get("pool")
        return () if pool is None else keys_of(pool)

    def _declared(self, key: str) -> Mapping[str, Any]:
        return self.config.pools.get(key, {})

    def _of_pools(self) -> Iterator[OfPool]:
        keys = self._keys
        for key, own in zip(keys, said_of_each(self.values, len(keys)), strict=True):
            (declared,) = said_of_each(self._declared(key), 1)
            merged = declared | own
            said: dict[str, Any] = {name: merged[name] for name in OF_EACH if name in merged}
            weight, partition = said.pop("weight", 1), said.pop("partition", None)
            template = None if partition is None else KeyTemplate(partition, option="pool_partition")
            options: dict[str, Any] = {"max_size": said.pop("size", None), **said}
            yield OfPool(KeyTemplate(key, option="pool"), tuple(options.items()), weight, template)

    @property
    def limited(self) -> bool:
        """Whether a call counts in a pool."""
        return bool(self.pools)

    @property
    def cached(self) -> bool:
        """Whether a call may be answered from the cache: it carries ``cache_ttl``, or ``cache=True``."""
        wanted = self.values.get("cache")
        return bool(wanted) if wanted is not None else "cache_ttl" in self.values

    @property
    def serves_old(self) -> bool:
        """Whether a call whose pool is full ends with the last value that the cache has of it."""
        return self.limited and self.of_pools("pool_on_full") == "stale"

    @property
    def on_lost(self) -> str:
        """What becomes of a call whose slot is lost: it is ended (``"cancel"``), or goes on (``"warn"``)."""
        chosen: str = self.of_pools("pool_on_lost", self.config.on_lost)
        return chosen

    @property
    def executor(self) -> str | None:
        """The name of the manager whose lease runs the body."""
        return self.values.get("executor")

    @property
    def unfilled(self) -> Demand:
        """What calls ask of their pools, with the templates as they are."""
        return demand_of(self.pools, lambda template: template.template)

    def limit(self, args: Any, kwargs: Any) -> CallLimit:
        """Return the pools of a call with these arguments.

        Raises:
            InvalidOptionError: A template names an argument that the call does not have.
            TypeError: The arguments do not fit the task.
        """
        if self._limit_of_all is not None:
            return self._limit_of_all
        return self._limit(demand_of(self.pools, lambda template: fill(template, self.signature, args, kwargs)))

    def _limit(self, demand: Demand) -> CallLimit:
        return CallLimit(demand.asked, self.of_pools("pool_on_full"), self.of_pools("pool_timeout"))


def fill(template: KeyTemplate, signature: CallSignature | None, args: Any, kwargs: Any) -> str:
    """Fill a template from a call's arguments, defaults included.

    Raises:
        InvalidOptionError: The template names an argument that the call does not have.
        TypeError: The arguments do not fit the task.
    """
    if signature is None:
        return template.fill(dict(kwargs or {}))
    return template.for_call(signature, tuple(args or ()), dict(kwargs or {}))


def options_of(task: Any, config: Config) -> TaskOptions:
    """Return the checked options that a task carries as attributes.

    Raises:
        InvalidOptionError: An option is unknown, impossible, or contradicts the others or the app's settings.
    """
    values: dict[str, Any] = {}
    with _checks.of_task(task.name):
        for name in NAMES:
            value = getattr(task, name, _UNSET)
            if value is not _UNSET:
                values[name] = check_option(name, value)
        options = _coherent(TaskOptions(values, signature_of(task), config))
    name_pools(pool.key for pool in options.pools)  # not those of a call, whose keys may be made of data
    return options


def refuse_unknown(cls: type, stop: type) -> None:
    """Refuse class attributes of a task that look like an option and are none.

    Raises:
        InvalidOptionError: There is one; methods and properties are the user's own affair.
    """
    for base in cls.__mro__:
        if base is stop:
            return
        for name, value in vars(base).items():
            own = callable(value) or isinstance(value, property | classmethod | staticmethod)
            if is_option(name) and name not in _CHECKS and not own:
                check_option(name, value)


def split_call(options: dict[str, Any]) -> dict[str, Any]:
    """Take the options of Slotline out of those of ``apply_async`` and return them, checked.

    Raises:
        InvalidOptionError: One is unknown or impossible.
    """
    mine = {name: value for name, value in options.items() if is_option(name)}
    for name, value in mine.items():
        check_option(name, value)
        del options[name]
    errors = mine.get("cache_errors")
    if errors is not None and not isinstance(errors, bool | int | float):
        raise _checks.refuse("cache_errors", errors, "True, False or seconds for one call: classes do not travel")
    return mine


def signature_of(task: Any) -> CallSignature | None:
    """Return the parameters of a task's body without ``self``, or ``None`` where Python cannot tell."""
    try:
        return CallSignature(task.run)
    except (TypeError, ValueError):
        return None


def _coherent(options: TaskOptions) -> TaskOptions:
    if options.executor is not None:
        options.config.executors.declared(options.executor)  # refuses a name that is not
    _check_limit(options)
    _check_cache(options)
    return options


def _check_limit(options: TaskOptions) -> None:
    values = options.values
    if options.limited:
        _check_pools(options)
        timeout, on_full = options.of_pools("pool_timeout"), options.of_pools("pool_on_full")
        if on_full == "cancel_oldest" and options.on_lost == "warn":
            raise _checks.refuse("pool_on_full", on_full, 'used with pool_on_lost="cancel": the oldest call must end')
        if timeout is not None and on_full == "park":
            raise _checks.refuse("pool_timeout", timeout, 'left out with pool_on_full="park": what is parked waits')
    elif "pool" not in values:  # None lifts the limit for one call, whatever else the task says
        for name in LIMIT_NAMES[1:]:
            if name in values:
                raise _checks.refuse(name, values[name], "used together with the option pool")


def _check_pools(options: TaskOptions) -> None:
    for pool in options.pools:
        said, key = dict(pool.options), pool.key.template
        if said["max_size"] is None and "rate" not in said:
            allowed = f"given, or pool_rate, or {key!r} must be declared in slotline_pools"
            raise InvalidOptionError("pool_size", "unset", allowed)
        if "burst" in said and "rate" not in said:
            raise _checks.refuse("pool_burst", said["burst"], "used together with pool_rate")
        for template in (pool.key, pool.partition):
            if template is not None and options.signature is not None:
                template.validate(options.signature)
    values = options.values
    partitions = "pool_partition" in values or any(pool.partition for pool in options.pools)
    if "pool_max_per_partition" in values and not partitions:
        most = values["pool_max_per_partition"]
        raise _checks.refuse("pool_max_per_partition", most, "used together with pool_partition")
    options.unfilled.made()  # says what cannot be, alone or together


def _check_cache(options: TaskOptions) -> None:
    values = options.values
    if options.serves_old and not options.cached:
        raise _checks.refuse("pool_on_full", "stale", "used on a task that is cached: with cache_ttl or cache=True")
    if values.get("cache_key") is not None:
        _check_template(options, "cache_key", values["cache_key"])
    for tag in values.get("cache_tags", ()):
        _check_template(options, "cache_tags", tag)
    if "cache" not in values and "cache_ttl" not in values:
        for name in ("cache_errors", "cache_key", "cache_grace", "cache_tags"):
            if values.get(name):
                raise _checks.refuse(name, values[name], "used together with cache_ttl or cache=True")


def _check_template(options: TaskOptions, name: str, text: str) -> None:
    if options.signature is not None:
        KeyTemplate(text, option=name).validate(options.signature)
