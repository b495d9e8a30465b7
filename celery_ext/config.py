"""The ``slotline_*`` settings of a Celery app, and what they stand for in this process."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from celery_ext.options import ON_LOST, check_option
from slotline import _checks, settings
from slotline.caches import BaseCacheAdapter, InMemoryCacheAdapter
from slotline.errors import InvalidOptionError
from slotline.leases import ManagerRegistry
from slotline.metrics._choosing import checked_choice, checked_names
from slotline.metrics._names import name_keys
from slotline.pools.demand import spread
from slotline.stores import Store
from slotline.stores.url import check_url

if TYPE_CHECKING:
    from celery import Celery

    from slotline.metrics import Exporter

_PREFIX = "slotline_"
GATE_TIMEOUT = 1.0
"""Seconds for which the worker's main process waits for an answer of its store."""
_POOL_FIELDS = {
    name: f"pool_{name}"
    for name in (
        *("size", "rate", "burst", "slot_exp", "partition", "max_per_partition", "group"),
        *("on_full", "timeout", "on_lost"),
    )
}


@dataclass(frozen=True, kw_only=True)
class Config:
    """The checked settings of one app; an attribute ``x`` is the setting ``slotline_x``.

    Attributes:
        redis_url: Where slots and cached results live; ``None`` means the process-wide default store.
        store: A store to use instead of ``redis_url``.
        cache: A cache adapter to use instead of the one that belongs to the store.
        prefix: The first part of every key in Redis.
        pools: Pools that tasks name: ``{"crm": 5}`` or ``{"crm": {"size": 5, "rate": "100/m", "on_full": "fail"}}``,
            each with a size, a rate or both.
        executors: Managers of leased executors that tasks name: ``{"cpu": {"backend": "process", "max_pools": 1}}``,
            with the options of ``LeasedExecutorManager``, or one itself.
        heartbeat_lease: Seconds after which a worker that died has lost its slots.
        default_pool_slot_expiration: Seconds after which a slot no longer counts unless its pool says otherwise.
        max_parked_bytes: How large a message may be that is parked; ``None`` means no such limit.
        on_store_error: ``"wait"``, ``"open"`` or ``"fail"``: what happens to a task whose limit cannot be asked.
        on_lost: ``"cancel"`` or ``"warn"``: whether a task whose slot is lost, or evicted, is ended where it can be.
        metrics: Where figures go: ``"prometheus"``, ``"otel"``, an ``Exporter``, or nowhere (``None``).
        metrics_pools: What pools are called in them that neither a task nor ``pools`` declares.
        cache_default_ttl: Seconds that a result is kept for a task with ``cache=True`` and no ``cache_ttl``.
        cache_store_hits: Whether a hit on the sending side is written to the result backend.
        cache_on_send: Whether a hit is answered on the sending side at all.
        room: Part of the names of this app's lanes in the waiting room; apps that share a store, and have queues of the
            same name on brokers with the same virtual host, each need one of their own.
        keep_unacked_fresh: Whether a worker keeps the Redis transport from delivering again, after its
            ``visibility_timeout``, what the worker has in hand.
    """

    redis_url: str | None = None
    store: Store | None = None
    cache: BaseCacheAdapter | None = None
    prefix: str | None = None
    pools: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    executors: ManagerRegistry = field(default_factory=lambda: ManagerRegistry({}))
    heartbeat_lease: float | None = None
    default_pool_slot_expiration: float | None = 600.0
    max_parked_bytes: int | None = 4 * 1024 * 1024
    on_store_error: str | None = None
    on_lost: str = "cancel"
    metrics: str | Exporter | None = None
    metrics_pools: tuple[str, ...] = ()
    cache_default_ttl: float | None = 3600.0
    cache_store_hits: bool = True
    cache_on_send: bool = True
    room: str | None = None
    keep_unacked_fresh: bool = True


def _pools(option: str, value: Any) -> dict[str, dict[str, Any]]:
    allowed = f"a dictionary from a pool's key to its size, or to a dictionary of {', '.join(_POOL_FIELDS)}"
    if not isinstance(value, Mapping):
        raise _checks.refuse(option, value, allowed)
    pools: dict[str, dict[str, Any]] = {}
    for key, declared in value.items():
        fields = declared if isinstance(declared, Mapping) else {"size": declared}
        if not {"size", "rate"} & set(fields) or not all(name in _POOL_FIELDS for name in fields):
            wanted = f"a size, or a dictionary of a size, a rate or both, and any of {', '.join(_POOL_FIELDS)}"
            raise _checks.refuse(f"{option}[{key!r}]", declared, wanted)
        try:
            check_option("pool", _checks.text("pool", key))
            checked = {_POOL_FIELDS[name]: check_option(_POOL_FIELDS[name], it) for name, it in fields.items()}
            pools[key] = {name: spread(name, value, 1)[0] for name, value in checked.items()}
        except InvalidOptionError as error:
            raise InvalidOptionError(f"{option}[{key!r}].{error.option}", error.value, error.allowed) from None
        if "burst" in fields and "rate" not in fields:
            raise _checks.refuse(f"{option}[{key!r}].pool_burst", fields["burst"], "used together with a rate")
    return pools


def _executors(option: str, value: Any) -> ManagerRegistry:
    if not isinstance(value, Mapping):
        raise _checks.refuse(option, value, "a dictionary from names to managers or to their options")
    try:
        return ManagerRegistry(value)
    except InvalidOptionError as error:  # the registry calls the whole of it "executors"
        raise InvalidOptionError(option + error.option.removeprefix("executors"), error.value, error.allowed) from None


def _url(option: str, value: Any) -> str | None:
    if value is not None:
        check_url(option, value)
    return None if value is None else str(value)


def _instance(kind: type) -> Callable[[str, Any], Any]:
    def check(option: str, value: Any) -> Any:
        if value is not None and not isinstance(value, kind):
            raise _checks.refuse(option, value, f"a {kind.__name__}, or None")
        return value

    return check


_CHECKS: dict[str, Callable[[str, Any], Any]] = {
    "redis_url": _url,
    "store": _instance(Store),
    "cache": _instance(BaseCacheAdapter),
    "prefix": _checks.text,
    "pools": _pools,
    "executors": _executors,
    "heartbeat_lease": _checks.seconds,
    "default_pool_slot_expiration": _checks.optional_seconds,
    "max_parked_bytes": lambda option, value: None if value is None else _checks.whole_number(option, value),
    "on_store_error": lambda option, value: _checks.one_of(option, value, ("wait", "open", "fail")),
    "on_lost": lambda option, value: _checks.one_of(option, value, ON_LOST),
    "metrics": checked_choice,
    "metrics_pools": checked_names,
    "cache_default_ttl": lambda option, value: _checks.optional_seconds(option, value, zero=True),
    "cache_store_hits": _checks.flag,
    "cache_on_send": _checks.flag,
    "room": _checks.text,
    "keep_unacked_fresh": _checks.flag,
}


_configs: WeakKeyDictionary[Celery, tuple[dict[str, Any], Config]] = WeakKeyDictionary()


def read_config(app: Celery) -> Config:
    """Return the checked ``slotline_*`` settings of ``app``.

    Raises:
        InvalidOptionError: A setting is unknown or has an impossible value.
    """
    written = dict(_set_by_user(app))
    known = _configs.get(app)
    if known is None or known[0] != written:
        config = Config(**{name: _CHECKS[name](_PREFIX + name, value) for name, value in written.items()})
        known = _configs[app] = (written, config)
    return known[1]


def _set_by_user(app: Celery) -> Iterator[tuple[str, Any]]:
    names = list(app.conf.keys())  # loads the configuration, which only then knows its prefix
    namespace = (getattr(app.conf, "prefix", None) or "").lower()
    seen: set[str] = set()
    for written in names:
        name = str(written).lower().removeprefix(namespace)
        if not name.startswith(_PREFIX) or name in seen:
            continue
        seen.add(name)
        short = name.removeprefix(_PREFIX)
        if short not in _CHECKS:
            raise _checks.refuse(
                name, app.conf.get(written), "one of " + ", ".join(_PREFIX + known for known in _CHECKS)
            )
        yield short, app.conf[name] if name in app.conf else app.conf[written]


class Runtime:
    """What one app uses in this process: its store, its cache and its executors, made when first asked for.

    A forked child starts with nothing and makes its own; what runs in a child ends in :meth:`close`.
    """

    def __init__(self, app: Celery) -> None:
        self.config = read_config(app)
        self._fresh()
        self._apply_settings()

    def _fresh(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.RLock()
        self._cache: BaseCacheAdapter | None = None

    def _apply_settings(self) -> None:
        mine = {
            name: getattr(self.config, name)
            for name in ("redis_url", "prefix", "heartbeat_lease", "on_store_error", "metrics")
            if getattr(self.config, name) is not None
        }
        for name in ("default_pool_slot_expiration", "max_parked_bytes"):  # None is a value of theirs
            if getattr(self.config, name) != getattr(Config, name):
                mine[name] = getattr(self.config, name)
        if self.config.metrics_pools:
            mine["metrics_pools"] = self.config.metrics_pools
        name_keys(self.config.pools)
        if mine or self.config.store is not None:
            store = self.config.store
            if store is None and "redis_url" not in mine and "prefix" not in mine:
                store = settings.default_store()
            settings.configure(store, **{**settings.current().model_dump(), **mine})

    def _here(self) -> None:
        if self._pid != os.getpid():
            self._fresh()

    @property
    def store(self) -> Store:
        """Where this app's slots and cached results live."""
        return self.config.store or settings.default_store()

    def store_for_gate(self) -> tuple[Store, bool]:
        """Return the store for the worker's main process, and whether that process has to close it.

        It is one of its own, with little patience, where the app names a Redis: nothing else runs in that process
        while it waits for an answer.
        """
        url = settings.current().redis_url
        if self.config.store is not None or url is None:
            return self.store, False
        from slotline.stores import RedisStore  # noqa: PLC0415 - redis is an extra

        return RedisStore(url, prefix=settings.current().prefix, timeout=GATE_TIMEOUT, retries=1), True

    @property
    def on_store_error(self) -> str:
        """What happens to a task whose limit or cache cannot be asked."""
        return settings.current().on_store_error

    @property
    def cache(self) -> BaseCacheAdapter:
        """This process's cache adapter: on Redis where the store is, else in memory."""
        self._here()
        with self._lock:
            if self._cache is None:
                self._cache = self.config.cache or self._make_cache()
            return self._cache

    def _make_cache(self) -> BaseCacheAdapter:
        ttl: Any = self.config.cache_default_ttl
        if not self.store.shared:
            return InMemoryCacheAdapter(default_ttl=ttl)
        from slotline.caches import RedisCacheAdapter  # noqa: PLC0415 - redis is an extra

        return RedisCacheAdapter(default_ttl=ttl, store=self.store)

    @property
    def executors(self) -> ManagerRegistry:
        """The declared managers of executors, each started in the process that first asks for it."""
        return self.config.executors

    def close(self) -> None:
        """Stop the executors of this process; they start again when they are used again."""
        with contextlib.suppress(Exception):
            self.executors.stop_all(wait=False)


_runtimes: WeakKeyDictionary[Celery, Runtime] = WeakKeyDictionary()
_lock = threading.Lock()


def runtime(app: Celery) -> Runtime:
    """Return what ``app`` uses in this process, checking its settings at first.

    Raises:
        InvalidOptionError: A ``slotline_*`` setting is unknown or has an impossible value.
    """
    found = _runtimes.get(app)
    if found is None:
        with _lock:
            found = _runtimes.get(app)
            if found is None:
                found = _runtimes[app] = Runtime(app)
    return found


def runtimes() -> list[Runtime]:
    """Return the runtimes of all apps of this process."""
    return list(_runtimes.values())
