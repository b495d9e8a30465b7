"""The options of a task: their names, their checks, and what they come to for one call."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from slotline import _checks
from slotline.errors import InvalidOptionError
from slotline.keys import CallSignature, KeyTemplate
from slotline.pools._share import Share
from slotline.pools._wire import UNLIMITED
from slotline.pools.rate import Rate

if TYPE_CHECKING:
    from celery_ext.config import Config

HEADER: Final = "slotline"
"""The message header in which the options of one call travel."""
ON_FULL: Final = ("park", "wait", "fail", "drop", "stale", "cancel_newest", "cancel_oldest")
ON_LOST: Final = ("cancel", "warn")
_FAMILIES: Final = ("pool_", "cache_", "executor")
_UNSET: Any = object()


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
    "pool": _optional(_template),
    "pool_size": _checks.whole_number,
    "pool_rate": _rate,
    "pool_burst": _checks.whole_number,
    "pool_slot_exp": _checks.optional_seconds,
    "pool_weight": _checks.whole_number,
    "pool_partition": _optional(_template),
    "pool_max_per_partition": _checks.whole_number,
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
class Limit:
    """The pool that one call counts in.

    Attributes:
        key: The pool's key, filled in.
        size: How many calls may run at once; ``None`` where only the rate limits them.
        slot_exp: Seconds after which the slot no longer counts; ``None`` for never; missing for the default.
        on_full: One of ``ON_FULL``; ``None`` for what suits the store.
        timeout: Seconds that the call waits at the most; ``None`` for as long as it takes.
        rate: How often calls may start, ``"100/m"``; ``None`` for no such limit.
        burst: How many starts may come at once after a pause; ``None`` for one.
        weight: How many of the pool's slots the call counts as.
        partition: On whose account, filled in; ``None`` for nobody's.
        max_per_partition: How many slots one partition may have; ``None`` for as many as there are.
    """

    key: str
    size: int | None
    slot_exp: Any
    on_full: str | None
    timeout: float | None
    rate: str | None = None
    burst: int | None = None
    weight: int = 1
    partition: str | None = None
    max_per_partition: int | None = None

    @property
    def pool_options(self) -> dict[str, Any]:
        """The options of ``Pool`` besides key and size."""
        given: dict[str, Any] = {} if self.slot_exp is _UNSET else {"slot_exp": self.slot_exp}
        if self.max_per_partition is not None:
            given["max_per_partition"] = self.max_per_partition
        return given if self.rate is None else {**given, "rate": self.rate, "burst": self.burst}

    @property
    def parks(self) -> bool:
        """Whether a call that finds no slot is parked, where processes share the store."""
        if self.on_full in {None, "stale", "cancel_oldest"}:
            return self.timeout is None
        return self.on_full == "park"

    @property
    def share(self) -> dict[str, Any]:
        """The arguments by which a pool or a room is asked for what the call needs of it."""
        return {"weight": self.weight, "partition": self.partition}

    @property
    def line(self) -> tuple[str, str | None]:
        """What calls have in common that wait one after the other: their pool, and their partition of it."""
        return self.key, self.partition


@dataclass(frozen=True, slots=True)
class TaskOptions:
    """The checked options of a task, or of one call of it."""

    values: Mapping[str, Any]
    signature: CallSignature | None
    config: Config

    def with_call(self, changes: Mapping[str, Any]) -> TaskOptions:
        """Return the options of a call that overrides some.

        Raises:
            InvalidOptionError: An override is unknown or impossible.
        """
        if not isinstance(changes, Mapping):
            raise _checks.refuse(f"headers[{HEADER!r}]", changes, "a dictionary of options")
        checked = {name: check_option(name, value) for name, value in changes.items()}
        return _coherent(TaskOptions({**self.values, **checked}, self.signature, self.config))

    def get(self, name: str, default: Any = None) -> Any:
        """Return the value of one option."""
        return self.values.get(name, default)

    def of_pool(self, name: str, default: Any = None) -> Any:
        """Return the value of one option of the limit: the task's or the call's own, else that of the declared pool."""
        declared = self.config.pools.get(self.values.get("pool") or "", {})
        return self.values.get(name, declared.get(name, default))

    @property
    def limited(self) -> bool:
        """Whether a call counts in a pool."""
        return self.values.get("pool") is not None

    @property
    def cached(self) -> bool:
        """Whether a call may be answered from the cache: it carries ``cache_ttl``, or ``cache=True``."""
        wanted = self.values.get("cache")
        return bool(wanted) if wanted is not None else "cache_ttl" in self.values

    @property
    def serves_old(self) -> bool:
        """Whether a call whose pool is full ends with the last value that the cache has of it."""
        return self.limited and self.of_pool("pool_on_full") == "stale"

    @property
    def on_lost(self) -> str:
        """What becomes of a call whose slot is lost: it is ended (``"cancel"``), or goes on (``"warn"``)."""
        chosen: str = self.of_pool("pool_on_lost", self.config.on_lost)
        return chosen

    @property
    def executor(self) -> str | None:
        """The name of the manager whose lease runs the body."""
        return self.values.get("executor")

    def limit(self, args: Any, kwargs: Any) -> Limit:
        """Return the pool of a call with these arguments.

        Raises:
            InvalidOptionError: A template names an argument that the call does not have.
            TypeError: The arguments do not fit the task.
        """
        partition = self.of_pool("pool_partition")
        if partition is not None:
            partition = fill(partition, "pool_partition", self.signature, args, kwargs)
        return Limit(
            key=fill(self.values["pool"], "pool", self.signature, args, kwargs),
            size=self.of_pool("pool_size"),
            slot_exp=self.of_pool("pool_slot_exp", _UNSET),
            on_full=self.of_pool("pool_on_full"),
            timeout=self.of_pool("pool_timeout"),
            rate=self.of_pool("pool_rate"),
            burst=self.of_pool("pool_burst"),
            weight=self.of_pool("pool_weight", 1),
            partition=partition,
            max_per_partition=self.of_pool("pool_max_per_partition"),
        )


def fill(template: str, option: str, signature: CallSignature | None, args: Any, kwargs: Any) -> str:
    """Fill a key template from a call's arguments, defaults included.

    Raises:
        InvalidOptionError: The template names an argument that the call does not have.
        TypeError: The arguments do not fit the task.
    """
    parsed = KeyTemplate(template, option=option)
    if signature is None:
        return parsed.fill(dict(kwargs or {}))
    return parsed.for_call(signature, tuple(args or ()), dict(kwargs or {}))


def options_of(task: Any, config: Config) -> TaskOptions:
    """Return the checked options that a task carries as attributes.

    Raises:
        InvalidOptionError: An option is unknown, impossible, or contradicts the others or the app's settings.
    """
    values: dict[str, Any] = {}
    for name in NAMES:
        value = getattr(task, name, _UNSET)
        if value is not _UNSET:
            values[name] = check_option(name, value)
    return _coherent(TaskOptions(values, signature_of(task), config))


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
    pool = values.get("pool")
    if pool is not None:
        if not {"pool_size", "pool_rate"} & values.keys() and pool not in options.config.pools:
            allowed = f"given, or pool_rate, or {pool!r} must be declared in slotline_pools"
            raise InvalidOptionError("pool_size", "unset", allowed)
        _check_template(options, "pool", pool)
        if "pool_burst" in values and options.of_pool("pool_rate") is None:
            raise _checks.refuse("pool_burst", values["pool_burst"], "used together with pool_rate")
        _check_share(options, pool)
        timeout, on_full = options.of_pool("pool_timeout"), options.of_pool("pool_on_full")
        if on_full == "cancel_oldest" and options.on_lost == "warn":
            raise _checks.refuse("pool_on_full", on_full, 'used with pool_on_lost="cancel": the oldest call must end')
        if timeout is not None and on_full == "park":
            raise _checks.refuse("pool_timeout", timeout, 'left out with pool_on_full="park": what is parked waits')
    elif "pool" not in values:  # None lifts the limit for one call, whatever else the task says
        for name in LIMIT_NAMES[1:]:
            if name in values:
                raise _checks.refuse(name, values[name], "used together with the option pool")


def _check_share(options: TaskOptions, pool: str) -> None:
    partition, most = options.of_pool("pool_partition"), options.of_pool("pool_max_per_partition")
    if partition is not None:
        _check_template(options, "pool_partition", partition)
    elif "pool_max_per_partition" in options.values and "pool_partition" not in options.values:
        raise _checks.refuse("pool_max_per_partition", most, "used together with pool_partition")
    size = options.of_pool("pool_size") or UNLIMITED
    try:
        Share.of(options.of_pool("pool_weight", 1), partition, key=pool, size=size, most=most)
    except InvalidOptionError as error:
        raise InvalidOptionError(f"pool_{error.option}", error.value, error.allowed) from None


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
