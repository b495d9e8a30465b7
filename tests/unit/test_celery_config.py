"""Settings of Celery applications are checked when they are read."""

from __future__ import annotations

import math
from typing import Any

import pytest
from celery import Celery

from celery_ext.config import read_config, runtime
from slotline.errors import InvalidOptionError
from slotline.leases import LeasedExecutorManager
from slotline.stores import MemoryStore
from tests.unit.test_celery_options import app  # noqa: F401 - a fixture


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("slotline_redis_url", "http://localhost"),
        ("slotline_redis_url", 5),
        ("slotline_store", "redis"),
        ("slotline_cache", {}),
        ("slotline_pools", ["crm"]),
        ("slotline_pools", {"crm": 0}),
        ("slotline_pools", {"crm": {"on_full": "fail"}}),
        ("slotline_pools", {"crm": {"size": 1, "colour": 1}}),
        ("slotline_executors", ["cpu"]),
        ("slotline_executors", {"cpu": {"backend": "steam", "max_pools": 1}}),
        ("slotline_executors", {"cpu": {"max_pools": 1.5}}),
        ("slotline_heartbeat_lease", 0),
        ("slotline_heartbeat_lease", "30"),
        ("slotline_default_pool_slot_expiration", math.nan),
        ("slotline_on_store_error", "ignore"),
        ("slotline_on_lost", "ignore"),
        ("slotline_cache_default_ttl", -1),
        ("slotline_cache_store_hits", 1),
        ("slotline_redis", "redis://localhost"),
    ],
)
def test_a_bad_setting_is_refused_by_name(app: Celery, setting: str, value: Any) -> None:
    app.conf[setting] = value
    with pytest.raises(InvalidOptionError, match="slotline_"):
        read_config(app)


@pytest.mark.parametrize(
    ("declared", "option"),
    [
        ({"a": {"max_pools": 0}}, "slotline_executors['a'].max_pools"),
        ({"a": {"backend": "process", "max_pool": 1}}, "slotline_executors['a'].max_pool"),
        ({"b": {"max_pools": 1}, "a": {}}, "slotline_executors['a']"),
        ({"a": "process"}, "slotline_executors['a']"),
        ({"": {"max_pools": 1}}, "slotline_executors"),
        ("process", "slotline_executors"),
    ],
)
def test_a_wrong_executor_is_named_once(app: Celery, declared: Any, option: str) -> None:
    app.conf.slotline_executors = declared
    with pytest.raises(InvalidOptionError) as caught:
        read_config(app)
    assert caught.value.option == option


def test_settings_are_read_through_a_namespace() -> None:
    written = {"CELERY_SLOTLINE_POOLS": {"crm": 2}, "CELERY_SLOTLINE_CACHE_STORE_HITS": False}
    app = Celery("unit", set_as_current=False)
    app.config_from_object(type("Settings", (), written), namespace="CELERY")
    config = read_config(app)
    assert dict(config.pools) == {"crm": {"pool_size": 2}}
    assert config.cache_store_hits is False


def test_executors_may_be_managers_that_exist(app: Celery) -> None:
    manager = LeasedExecutorManager(max_pools=1)
    app.conf.slotline_executors = {"own": manager}
    assert read_config(app).executors.declared("own") is manager


def test_a_store_of_the_users_own_serves_limits_and_the_cache(app: Celery) -> None:
    store = MemoryStore()
    app.conf.slotline_store = store
    using = runtime(app)
    assert using.store is store
    assert using.store_for_gate() == (store, False)
    assert type(using.cache).__name__ == "InMemoryCacheAdapter"
