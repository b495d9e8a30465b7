"""The process-wide settings."""

from __future__ import annotations

import math

import pytest

from slotline import InvalidOptionError, MemoryStore, Pool, RedisStore, configure, settings


def test_the_defaults_are_those_of_the_documentation():
    current = settings.current()
    assert current.model_dump() == {
        "redis_url": None,
        "prefix": "slotline",
        "default_pool_slot_expiration": 600.0,
        "heartbeat_lease": 30.0,
        "on_store_error": "wait",
        "max_parked_bytes": 4_194_304,
        "metrics": None,
        "metrics_pools": (),
    }
    assert isinstance(settings.default_store(), MemoryStore)


def test_variables_of_the_environment_set_them(monkeypatch):
    monkeypatch.setenv("SLOTLINE_REDIS_URL", "redis://localhost:1234/5")
    monkeypatch.setenv("SLOTLINE_DEFAULT_POOL_SLOT_EXPIRATION", "none")
    monkeypatch.setenv("SLOTLINE_HEARTBEAT_LEASE", "12.5")
    monkeypatch.setenv("SLOTLINE_MAX_PARKED_BYTES", "100000")
    settings.reset()
    current = settings.current()
    assert (current.default_pool_slot_expiration, current.heartbeat_lease) == (None, 12.5)
    assert current.max_parked_bytes == 100_000
    store = settings.default_store()
    assert isinstance(store, RedisStore)
    assert store.name == "redis://localhost:1234/5"


def test_what_the_code_says_is_stronger_than_the_environment(monkeypatch):
    monkeypatch.setenv("SLOTLINE_PREFIX", "env")
    assert configure(prefix="code").prefix == "code"


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("heartbeat_lease", 0),
        ("heartbeat_lease", -1),
        ("heartbeat_lease", math.nan),
        ("heartbeat_lease", math.inf),
        ("heartbeat_lease", True),
        ("heartbeat_lease", "30"),
        ("heartbeat_lease", None),
        ("default_pool_slot_expiration", 0),
        ("default_pool_slot_expiration", False),
        ("default_pool_slot_expiration", "600"),
        ("prefix", ""),
        ("prefix", "a{b"),
        ("prefix", "a|b"),
        ("prefix", 5),
        ("redis_url", "nowhere"),
        ("redis_url", 7),
        ("on_store_error", "explode"),
        *[("max_parked_bytes", value) for value in (0, 1.5, True, "1000", math.nan, math.inf)],
        ("colour", "red"),
    ],
)
def test_unknown_and_impossible_values_are_refused_by_name_and_change_nothing(option, value):
    before = settings.current()
    with pytest.raises(InvalidOptionError) as caught:
        configure(**{option: value})
    assert caught.value.option == option
    assert option in str(caught.value)
    assert settings.current() == before


def test_a_variable_may_lift_the_limit_of_parked_messages(monkeypatch):
    monkeypatch.setenv("SLOTLINE_MAX_PARKED_BYTES", "none")
    settings.reset()
    assert settings.current().max_parked_bytes is None


@pytest.mark.parametrize(("variable", "value"), [("SLOTLINE_COLOUR", "red"), ("SLOTLINE_HEARTBEAT_LEASE", "soon")])
def test_variables_that_mean_nothing_are_refused_by_name(monkeypatch, variable, value):
    monkeypatch.setenv(variable, value)
    settings.reset()
    with pytest.raises(InvalidOptionError, match=variable):
        settings.current()


def test_a_pool_follows_the_default_expiration_and_may_say_otherwise():
    configure(default_pool_slot_expiration=300)
    assert Pool("p", 10).slot_exp == 300
    assert Pool("p", 5, slot_exp=60).slot_exp == 60
    assert Pool("p", 3, slot_exp=None).slot_exp is None


def test_a_store_must_be_a_store():
    with pytest.raises(InvalidOptionError, match=r"^store="):
        configure(store="redis://localhost")


def test_the_value_of_a_misspelt_variable_is_not_shown(monkeypatch):
    monkeypatch.setenv("SLOTLINE_REDIS_URI", "redis://ann:secret@localhost")
    settings.reset()
    with pytest.raises(InvalidOptionError) as caught:
        settings.current()
    assert "secret" not in str(caught.value)


def test_a_store_given_to_configure_is_the_default_of_every_pool():
    store = MemoryStore()
    configure(store=store)
    assert Pool("p", 1).store is store
