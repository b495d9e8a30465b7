"""Options of Celery tasks are checked where they are written: at the task, at the call, in the app's settings."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
from celery import Celery
from celery import Task as PlainTask

import celery_ext
from celery_ext.config import read_config
from celery_ext.limits import LimitReader
from celery_ext.options import NAMES
from slotline.errors import InvalidOptionError


@pytest.fixture
def app() -> Iterator[Celery]:
    app = Celery(
        "unit", broker="memory://", backend="cache+memory://", task_cls="celery_ext:Task", set_as_current=False
    )
    yield app
    app.close()


def body(tenant_id: str, size: int = 1) -> None:
    """Do nothing."""


def bind(app: Celery, **options: Any) -> Any:
    """Register a task and return it; its options are checked as it is used for the first time."""
    task = app.task(body, name="unit.body", shared=False, **options)
    assert task.slotline_options is not None
    return task


BAD = [
    ("pool", "", "a string that is not empty"),
    ("pool", 5, "a string that is not empty"),
    ("pool", "crm:\ud800", "text that can be encoded"),
    ("pool", "api:{tenant}", "tenant_id"),
    ("pool", "api:{", "matching braces"),
    *[
        ("pool_size", value, "a whole number of at least 1")
        for value in (0, -1, 1.5, True, "5", math.nan, math.inf, None)
    ],
    *[("pool_rate", value, "text like") for value in ("", "5", "0/s", "1.5/s", "5 /s", 5, 0.1, True, math.nan, None)],
    *[("pool_burst", value, "a whole number of at least 1") for value in (0, -1, 1.5, True, "5", math.nan, None)],
    *[("pool_weight", value, "a whole number of at least 1") for value in (0, 1.5, True, "2", math.nan, None)],
    ("pool_weight", 2, "at most 1, the size of pool 'p'"),
    ("pool_partition", "", "a string that is not empty"),
    ("pool_partition", 5, "a string that is not empty"),
    ("pool_partition", "{tenant}", "tenant_id"),
    ("pool_partition", "{", "matching braces"),
    *[("pool_max_per_partition", value, "a whole number of at least 1") for value in (0, 1.5, True, "2", None)],
    ("pool_max_per_partition", 1, "used together with pool_partition"),
    *[("pool_slot_exp", value, "seconds") for value in (0, -1, True, "5", math.nan, math.inf)],
    *[("pool_timeout", value, "seconds") for value in (-1, True, "5", math.nan, math.inf)],
    *[("pool_on_full", value, "'park', 'wait', 'fail', 'drop', 'stale'") for value in ("queue", 1, None)],
    *[("pool_on_lost", value, "'cancel', 'warn'") for value in ("kill", True, None)],
    *[("cache", value, "True or False") for value in (1, "true", None)],
    *[("cache_ttl", value, "seconds") for value in (-1, True, "5", math.nan, math.inf)],
    *[("cache_grace", value, "seconds") for value in (-1, "5")],
    *[("cache_errors", value, "exception class") for value in ("yes", [1], BaseException)],
    ("cache_key", "user:{nobody}", "tenant_id"),
    ("cache_key", 5, "a string that is not empty"),
    ("cache_tags", "tag", "a list or a tuple"),
    ("cache_tags", ("user:{nobody}",), "tenant_id"),
    ("executor", 5, "a string that is not empty"),
    ("executor", "nobody", "declared executor"),
]


def companions(name: str) -> dict[str, Any]:
    """Return what an option needs beside it, so that nothing else is wrong."""
    if name.startswith("pool"):
        return {"pool": "p", "pool_size": 1, "pool_rate": "5/s"}
    return {"cache_ttl": 5} if name.startswith("cache_") else {}


@pytest.mark.parametrize(("name", "value", "allowed"), BAD, ids=lambda value: repr(value)[:24])
def test_a_bad_option_is_refused_at_the_task(app: Celery, name: str, value: Any, allowed: str) -> None:
    with pytest.raises(InvalidOptionError) as caught:
        bind(app, **{**companions(name), name: value})
    assert caught.value.option.startswith(name)
    assert allowed in str(caught.value)
    assert caught.value.__notes__ == ["It is an option of task 'unit.body'."]


@pytest.mark.parametrize(("name", "value", "allowed"), BAD, ids=lambda value: repr(value)[:24])
def test_a_bad_option_is_refused_at_the_call_and_nothing_is_sent(
    app: Celery, monkeypatch: pytest.MonkeyPatch, name: str, value: Any, allowed: str
) -> None:
    task = bind(app, pool="p", pool_size=1, cache_ttl=5)
    monkeypatch.setattr(app, "send_task", lambda *_, **__: pytest.fail("a message was sent"))
    with pytest.raises(InvalidOptionError) as caught:
        task.apply_async(("t",), **{name: value})
    assert caught.value.option.startswith(name)


@pytest.mark.parametrize("name", ["pool_siez", "cache_tll", "executor_name", "pool_", "executors"])
def test_an_unknown_option_is_refused_by_name(app: Celery, name: str) -> None:
    with pytest.raises(InvalidOptionError, match=f"{name}=5") as caught:
        app.task(lambda_like, name="unit.unknown", shared=False, **{name: 5}).delay()
    assert caught.value.allowed == "one of the options " + ", ".join(NAMES)
    assert caught.value.__notes__ == ["It is an option of task 'unit.unknown'."]
    with pytest.raises(InvalidOptionError, match=f"{name}=5"):
        bind(app).apply_async(("t",), **{name: 5})


def lambda_like() -> None:
    """Do nothing."""


def test_methods_of_a_task_class_may_have_names_like_options(app: Celery) -> None:
    class Mine(celery_ext.Task):
        name = "unit.mine"

        def cache_lookup(self) -> None:
            """Not an option."""

        @property
        def pool_of_mine(self) -> int:
            return 1

        def run(self) -> int:
            return 1

    assert app.register_task(Mine())() == 1


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"pool": "p"}, "pool_size"),
        ({"pool_size": 2}, "pool_size"),
        ({"pool_rate": "5/s"}, "pool_rate"),
        ({"pool": "p", "pool_size": 1, "pool_burst": 2}, "pool_burst"),
        ({"pool": "p", "pool_burst": 2}, "pool_size"),
        ({"pool_on_full": "fail"}, "pool_on_full"),
        ({"pool": "p", "pool_size": 1, "pool_on_full": "park", "pool_timeout": 3}, "pool_timeout"),
        ({"pool": "p", "pool_size": 1, "pool_on_full": "cancel_oldest", "pool_on_lost": "warn"}, "pool_on_full"),
        ({"pool_on_lost": "warn"}, "pool_on_lost"),
        ({"pool_weight": 1}, "pool_weight"),
        ({"pool": "p", "pool_size": 3, "pool_weight": 4}, "pool_weight"),
        (
            {
                "pool": "p",
                "pool_size": 3,
                "pool_weight": 3,
                "pool_partition": "{tenant_id}",
                "pool_max_per_partition": 2,
            },
            "pool_weight",
        ),
        ({"pool": "p", "pool_size": 1, "pool_on_full": "stale"}, "pool_on_full"),
        ({"pool": "p", "pool_size": 1, "pool_on_full": "stale", "cache": False}, "pool_on_full"),
        ({"cache_key": "k"}, "cache_key"),
        ({"cache_errors": True}, "cache_errors"),
    ],
)
def test_options_that_need_another_one_say_so(app: Celery, options: dict[str, Any], named: str) -> None:
    with pytest.raises(InvalidOptionError) as caught:
        bind(app, **options)
    assert caught.value.option == named


def test_a_call_whose_arguments_cannot_name_the_pool_is_refused(app: Celery) -> None:
    task = bind(app, pool="p:{tenant_id.region}", pool_size=1)
    with pytest.raises(InvalidOptionError, match=r"tenant_id\.region"):
        task.delay("t")


def said(limit: Any) -> dict[str, Any]:
    """Return the options of the only pool of a limit."""
    (asked,) = limit.asked
    return dict(asked.options)


def test_options_of_a_call_override_the_task_and_those_the_declared_pool(app: Celery) -> None:
    app.conf.slotline_pools = {"crm": {"size": 3, "on_full": "fail", "timeout": 9, "slot_exp": 7}, "plain": 2}
    task = bind(app, pool="crm", pool_timeout=4)
    limit = task.slotline_options.limit(("t",), {})
    assert (limit.on_full, limit.timeout, said(limit)) == ("fail", 4.0, {"max_size": 3, "slot_exp": 7.0})
    changed = task.slotline_options.with_call({"pool_size": 1, "pool_on_full": "drop", "pool_slot_exp": None})
    limit = changed.limit(("t",), {})
    assert (limit.on_full, limit.timeout, said(limit)) == ("drop", 4.0, {"max_size": 1, "slot_exp": None})
    assert said(task.slotline_options.with_call({"pool": "plain"}).limit(("t",), {})) == {"max_size": 2}
    assert not task.slotline_options.with_call({"pool": None}).limited


def test_weights_and_partitions_come_from_the_call_the_task_or_the_declared_pool(app: Celery) -> None:
    app.conf.slotline_pools = {"gpu": {"size": 8, "partition": "{tenant_id}", "max_per_partition": 4}}
    options = bind(app, pool="gpu", pool_weight=2).slotline_options
    limit = options.limit(("t",), {})
    assert (limit.share, said(limit)) == ({"weight": 2, "partition": "t"}, {"max_size": 8, "max_per_partition": 4})
    changed = options.with_call({"pool_weight": 8, "pool_partition": None}).limit(("t",), {})
    assert (changed.share, said(changed)) == ({"weight": 8, "partition": None}, said(limit))
    other = options.with_call({"pool_partition": "{size}", "pool_max_per_partition": 2}).limit(("t",), {"size": 7})
    assert (other.share["partition"], said(other)) == ("7", {"max_size": 8, "max_per_partition": 2})
    with pytest.raises(InvalidOptionError, match="at most 4, the max_per_partition of pool 'gpu'"):
        options.with_call({"pool_weight": 5})
    with pytest.raises(InvalidOptionError, match="pool_weight=2 is not allowed: it must be at most 1, the size"):
        options.with_call({"pool_size": 1})


def test_a_task_may_name_several_pools(app: Celery) -> None:
    app.conf.slotline_pools = {"gpu": {"size": 8, "on_full": "fail", "partition": "{tenant_id}"}}
    options = bind(app, pool=["db", "api:{tenant_id}", "gpu"], pool_size=[10, 2, None], pool_group="g").slotline_options
    limit = options.limit(("t",), {})
    assert [dict(one.options) for one in limit.asked] == [{"max_size": size, "group": "g"} for size in (2, 10, 8)]
    assert (limit.key, limit.on_full) == ("api:t + db + gpu", "fail")
    assert limit.share == {
        "weight": {"db": 1, "api:t": 1, "gpu": 1},
        "partition": {"db": None, "api:t": None, "gpu": "t"},
    }
    changed = options.with_call({"pool_weight": [2, None, 3], "pool_partition": None, "pool_on_full": "wait"})
    limit = changed.limit(("t",), {})
    assert limit.share["weight"] == {"db": 2, "api:t": 1, "gpu": 3}
    assert set(limit.share["partition"].values()) == {None}
    assert limit.on_full == "wait"
    assert len(options.with_call({"pool": ("db", "gpu"), "pool_size": 4}).limit(("t",), {}).asked) == 2
    assert options.with_call({"pool": ["gpu"], "pool_size": 4}).limit(("t",), {}).key == "gpu"


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"pool": []}, "pool"),
        ({"pool": ["db", 5], "pool_size": 1}, "pool"),
        ({"pool": ["db", "db"], "pool_size": 1}, "pool"),
        ({"pool": [f"p{number}" for number in range(9)], "pool_size": 1}, "pool"),
        ({"pool": ["db", "api:{nobody}"], "pool_size": 1}, "pool"),
        ({"pool": ["db", "api"], "pool_size": [1, None]}, "pool_size"),
        ({"pool": ["db", "api"], "pool_size": [1]}, "pool_size"),
        ({"pool": ["db", "api"], "pool_size": [1, 0]}, "pool_size"),
        ({"pool": "db", "pool_size": [1]}, "pool_size"),
        ({"pool": ["db", "api"], "pool_size": [10, 2], "pool_weight": 3}, "pool_weight"),
        ({"pool": ["db", "api"], "pool_size": 1, "pool_partition": ["{tenant_id}", "{nobody}"]}, "pool_partition"),
        ({"pool": ["db", "api"], "pool_size": 1, "pool_group": "with a space"}, "pool_group"),
        ({"pool_group": "g"}, "pool_group"),
    ],
)
def test_a_bad_list_of_pools_is_refused_by_name(app: Celery, options: dict[str, Any], named: str) -> None:
    with pytest.raises(InvalidOptionError) as caught:
        bind(app, **options)
    assert caught.value.option == named


def test_two_pools_that_are_one_for_these_arguments_are_refused_when_the_call_is_sent(app: Celery) -> None:
    task = bind(app, pool=["p:{tenant_id}", "p:{size}"], pool_size=1)
    with pytest.raises(InvalidOptionError, match=r"^pool="):
        task.delay("1", 1)


def test_a_call_whose_arguments_cannot_name_its_partition_is_refused(app: Celery) -> None:
    task = bind(app, pool="p", pool_size=1, pool_partition="{tenant_id.region}")
    with pytest.raises(InvalidOptionError, match=r"pool_partition='\{tenant_id\.region\}'"):
        task.delay("t")


def test_a_limit_is_a_size_a_rate_or_both_from_the_call_the_task_or_the_declared_pool(app: Celery) -> None:
    app.conf.slotline_pools = {"api": {"size": 5, "rate": "100/m", "burst": 10}, "rated": {"rate": "1/s"}}
    options = bind(app, pool="alone", pool_rate="5/s").slotline_options
    limit = options.limit(("t",), {})
    assert said(limit) == {"max_size": None, "rate": "5/s"}
    both = options.with_call({"pool_size": 2, "pool_burst": 3}).limit(("t",), {})
    assert said(both) == {"max_size": 2, "rate": "5/s", "burst": 3}
    faster = options.with_call({"pool": "api", "pool_rate": "9/s"}).limit(("t",), {})
    assert said(faster) == {"max_size": 5, "rate": "9/s", "burst": 10}
    declared = type(options)({"pool": "rated", "pool_burst": 4}, None, read_config(app)).limit((), {})
    assert said(declared) == {"max_size": None, "rate": "1/s", "burst": 4}


def test_a_burst_for_one_call_needs_a_rate_too(app: Celery) -> None:
    with pytest.raises(InvalidOptionError, match=r"^pool_burst=3.*pool_rate"):
        bind(app, pool="p", pool_size=1).apply_async(("t",), pool_burst=3)


@pytest.mark.parametrize(
    ("declared", "option"),
    [
        ({"rate": "often"}, "slotline_pools['crm'].pool_rate"),
        ({"size": 1, "rate": "1/s", "burst": 0}, "slotline_pools['crm'].pool_burst"),
        ({"size": 1, "burst": 2}, "slotline_pools['crm'].pool_burst"),
        ({"size": [1]}, "slotline_pools['crm'].pool_size"),
        ({"size": 1, "partition": ["a"]}, "slotline_pools['crm'].pool_partition"),
        ({"burst": 2}, "slotline_pools['crm']"),
    ],
)
def test_a_wrong_rate_of_a_declared_pool_is_refused_by_name(app: Celery, declared: Any, option: str) -> None:
    app.conf.slotline_pools = {"crm": declared}
    with pytest.raises(InvalidOptionError) as caught:
        read_config(app)
    assert caught.value.option == option


@pytest.mark.parametrize(("args", "kwargs"), [(("t",), {}), ((), {"tenant_id": "t"}), (("t", 1), {})])
def test_a_pool_is_named_after_bound_arguments_with_defaults(app: Celery, args: Any, kwargs: Any) -> None:
    task = bind(app, pool="api:{tenant_id}:{size}", pool_size=1)
    assert task.slotline_options.limit(args, kwargs).key == "api:t:1"


def test_a_bound_tasks_pool_does_not_see_self(app: Celery) -> None:
    @app.task(
        bind=True, name="unit.bound", shared=False, pool="api:{tenant_id}", pool_size=1, autoretry_for=(ValueError,)
    )
    def bound(self: Any, tenant_id: str) -> None:
        pass

    assert bound.slotline_options.limit(("t",), {}).key == "api:t"


def test_a_plain_task_carries_limits_by_its_attributes_alone(app: Celery) -> None:
    class Plain(PlainTask):
        name = "unit.plain"
        pool = "plain"
        pool_size = 2

        def run(self) -> None:
            """Do nothing."""

    class Unrelated(PlainTask):
        name = "unit.unrelated"
        pool = object()

        def run(self) -> None:
            """Do nothing."""

    app.register_task(Plain())
    app.register_task(Unrelated())
    reader = LimitReader(app, read_config(app))
    request = type("Request", (), {"request_dict": {}, "args": (), "kwargs": {}})
    request.task = app.tasks["unit.plain"]
    assert said(reader.limit_of(request)) == {"max_size": 2}
    assert not reader.is_free(request)
    request.task = app.tasks["unit.unrelated"]
    assert reader.is_free(request)
    assert reader.limit_of(request) is None


@pytest.mark.parametrize("option", [{"cache_ttl": 5}, {"cache_key": "k"}])
def test_a_plain_task_cannot_be_cached(app: Celery, option: dict[str, Any]) -> None:
    app.task(lambda_like, name="unit.plain", shared=False, base=PlainTask, **option)
    with pytest.raises(InvalidOptionError, match=r"celery_ext\.Task"):
        LimitReader(app, read_config(app))


@pytest.mark.parametrize("kind", [list, tuple])
def test_a_plain_task_may_count_in_several_pools(app: Celery, kind: Any) -> None:
    app.task(lambda_like, name="unit.plain", shared=False, base=PlainTask, pool=kind(["a", "b"]), pool_size=[1, 2])
    request = type("Request", (), {"request_dict": {}, "args": (), "kwargs": {}})
    request.task = app.tasks["unit.plain"]
    limit = LimitReader(app, read_config(app)).limit_of(request)
    assert limit is not None
    assert limit.key == "a + b"
