"""The process-wide settings: what ``configure()`` and the ``SLOTLINE_*`` variables say."""

from __future__ import annotations

import contextlib
import os
import threading
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from slotline._checks import key_prefix, optional_seconds, refuse, seconds, whole_number
from slotline.metrics._choosing import checked_choice, checked_names, use

if TYPE_CHECKING:
    from slotline.stores.base import Store

OnStoreError = Literal["wait", "open", "fail"]


class Settings(BaseModel):
    """What holds for every primitive of this process that is not told otherwise.

    Attributes:
        redis_url: Where the default store is (``SLOTLINE_REDIS_URL``); ``None`` keeps state in this process's memory.
        prefix: The first part of every key in Redis (``SLOTLINE_PREFIX``).
        default_pool_slot_expiration: Seconds after which a slot no longer counts unless its pool says otherwise
            (``SLOTLINE_DEFAULT_POOL_SLOT_EXPIRATION``); ``None`` means no such limit.
        heartbeat_lease: Seconds after which a process that no longer renews loses what it holds in a shared store
            (``SLOTLINE_HEARTBEAT_LEASE``); it renews every third of it.
        on_store_error: What happens to a task whose limit or cache cannot be asked (``SLOTLINE_ON_STORE_ERROR``):
            ``"wait"`` until the store is back, run without it (``"open"``) or ``"fail"``.
        max_parked_bytes: The largest message that is parked while its pool is full (``SLOTLINE_MAX_PARKED_BYTES``);
            ``None`` means no such limit.
        metrics: Where figures go (``SLOTLINE_METRICS``): ``"prometheus"``, ``"otel"``, an ``Exporter``, or nowhere
            (``None``).
        metrics_pools: What pools are called in them that no task declares (``SLOTLINE_METRICS_POOLS``, with commas
            between them): their keys, or templates of them.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    redis_url: str | None = None
    prefix: str = Field(default="slotline", min_length=1)
    default_pool_slot_expiration: float | None = 600.0
    heartbeat_lease: float = 30.0
    on_store_error: OnStoreError = "wait"
    max_parked_bytes: int | None = 4 * 1024 * 1024
    metrics: Any = None
    metrics_pools: tuple[str, ...] = ()

    @field_validator("default_pool_slot_expiration", mode="before")
    @classmethod
    def _expiration(cls, value: Any) -> float | None:
        return optional_seconds("default_pool_slot_expiration", value)

    @field_validator("heartbeat_lease", mode="before")
    @classmethod
    def _lease(cls, value: Any) -> float:
        return seconds("heartbeat_lease", value)

    @field_validator("max_parked_bytes", mode="before")
    @classmethod
    def _bytes(cls, value: Any) -> int | None:
        return None if value is None else whole_number("max_parked_bytes", value)

    @field_validator("metrics", mode="before")
    @classmethod
    def _metrics(cls, value: Any) -> Any:
        return checked_choice("metrics", value)

    @field_validator("metrics_pools", mode="before")
    @classmethod
    def _metrics_pools(cls, value: Any) -> tuple[str, ...]:
        return checked_names("metrics_pools", value)

    @field_validator("prefix", mode="after")
    @classmethod
    def _prefix(cls, value: str) -> str:
        return key_prefix("prefix", value)


_lock = threading.RLock()
_settings: Settings | None = None
_store: Store | None = None
_VARIABLE = "SLOTLINE_"
_MAY_BE_NONE = frozenset({"default_pool_slot_expiration", "max_parked_bytes"})
_NUMBERS = _MAY_BE_NONE | {"heartbeat_lease"}


def configure(store: Store | None = None, **options: Any) -> Settings:
    """Set the process-wide settings; what is not named comes from ``SLOTLINE_*`` variables or the defaults.

    Args:
        store: The default store of every primitive that has none of its own, from now on; what is held is given back to
            the store that it was taken from.
        **options: Fields of :class:`Settings`.

    Raises:
        InvalidOptionError: An option is unknown or has an impossible value; nothing has changed then.
        ImportError: The library for ``metrics`` is not installed; nothing has changed then, either.
    """
    global _settings, _store
    settings = _validated({**_from_environment(), **options})
    if store is not None:
        from slotline.stores.base import Store  # noqa: PLC0415 - the stores import this module

        if not isinstance(store, Store):
            raise refuse("store", store, "a Store, such as MemoryStore() or RedisStore(url), or None")
    if settings.redis_url is not None and store is None:
        from slotline.stores.url import check_url  # noqa: PLC0415 - the stores import this module

        check_url("redis_url", settings.redis_url)
    with _lock:
        use(settings.metrics, settings.metrics_pools)
        _settings, _store = settings, store
    return settings


def current() -> Settings:
    """Return the settings in force."""
    global _settings  # noqa: PLW0603 - the one process-wide place
    if _settings is None:
        with _lock:
            if _settings is None:
                settings = _validated(_from_environment())
                use(settings.metrics, settings.metrics_pools)
                _settings = settings
    return _settings


def default_store() -> Store:
    """Return the configured store, else one on ``redis_url``, else this process's memory."""
    global _store  # noqa: PLW0603 - the one process-wide place
    if _store is None:
        with _lock:
            if _store is None:
                _store = _make_store(current())
    return _store


def reset() -> None:
    """Forget what was configured and close the default store of this process."""
    global _settings, _store
    with _lock:
        store, _settings, _store = _store, None, None
        use(None, ())
    if store is not None:
        with contextlib.suppress(Exception):
            store.sync.close()


def _make_store(settings: Settings) -> Store:
    if settings.redis_url is None:
        from slotline.stores.memory import MemoryStore  # noqa: PLC0415 - the stores import this module

        return MemoryStore()
    from slotline.stores import RedisStore  # noqa: PLC0415 - redis is an extra

    return RedisStore(settings.redis_url, prefix=settings.prefix)


def _from_environment() -> dict[str, Any]:
    found: dict[str, Any] = {}
    for variable, value in os.environ.items():
        if not variable.startswith(_VARIABLE):
            continue
        name = variable.removeprefix(_VARIABLE).lower()
        if name not in Settings.model_fields:
            # Its value may be a secret under a name that was misspelt.
            raise refuse(variable, "...", "unset: the variables are " + ", ".join(_variables()))
        if name not in _NUMBERS:
            found[name] = value
        elif name in _MAY_BE_NONE and value.strip().lower() in {"none", ""}:
            found[name] = None
        else:
            try:
                found[name] = float(value)
            except ValueError:
                raise refuse(variable, value, "a number") from None
    return found


def _variables() -> list[str]:
    return [_VARIABLE + name.upper() for name in Settings.model_fields]


def _validated(options: dict[str, Any]) -> Settings:
    try:
        return Settings(**options)
    except ValidationError as error:
        problem = error.errors()[0]
        name = str(problem["loc"][0])
        if problem["type"] == "extra_forbidden":
            raise refuse(name, problem["input"], "one of " + ", ".join(Settings.model_fields)) from None
        cause = problem.get("ctx", {}).get("error")
        if cause is not None and hasattr(cause, "allowed"):
            raise cause from None
        raise refuse(name, problem["input"], f"valid ({problem['msg']})") from None
