"""Labels are checked where they are written, when they are sent, and once more when they arrive."""

from __future__ import annotations

import math
from typing import Annotated, Any

import pytest
from taskiq import Context, TaskiqDepends

from slotline import DEFAULT
from slotline.errors import InvalidOptionError
from slotline.leases import ManagerRegistry
from slotline.pools.demand import OfPool
from taskiq_ext import PoolLimit
from taskiq_ext._labels import cache_options, executor_options, from_wire, pick
from taskiq_ext._limits import pool_options

BAD_POOL_LABELS = [
    ({"pool": 3}, "pool", "3"),
    ({"pool": ""}, "pool", "''"),
    ({"pool": True}, "pool", "True"),
    ({"pool": "a"}, "pool", "'a'"),
    ({"pool_size": 3}, "pool_size", "3"),
    ({"pool": "a", "pool_size": 0}, "pool_size", "0"),
    ({"pool": "a", "pool_size": 1.5}, "pool_size", "1.5"),
    ({"pool": "a", "pool_size": True}, "pool_size", "True"),
    ({"pool": "a", "pool_size": "many"}, "pool_size", "'many'"),
    ({"pool": "a", "pool_size": math.nan}, "pool_size", "nan"),
    ({"pool": "a", "pool_size": math.inf}, "pool_size", "inf"),
    ({"pool_rate": "1/s"}, "pool_rate", "'1/s'"),
    ({"pool": "a", "pool_rate": 5}, "pool_rate", "5"),
    ({"pool": "a", "pool_rate": ""}, "pool_rate", "''"),
    ({"pool": "a", "pool_rate": "fast"}, "pool_rate", "'fast'"),
    ({"pool": "a", "pool_rate": "0/s"}, "pool_rate", "'0/s'"),
    ({"pool": "a", "pool_rate": True}, "pool_rate", "True"),
    ({"pool": "a", "pool_burst": 2}, "pool_burst", "2"),
    ({"pool": "a", "pool_size": 1, "pool_burst": 2}, "pool_burst", "2"),
    ({"pool": "a", "pool_rate": "1/s", "pool_burst": 0}, "pool_burst", "0"),
    ({"pool": "a", "pool_rate": "1/s", "pool_burst": 1.5}, "pool_burst", "1.5"),
    ({"pool": "a", "pool_rate": "1/s", "pool_burst": True}, "pool_burst", "True"),
    ({"pool": "a", "pool_rate": "1/s", "pool_burst": math.nan}, "pool_burst", "nan"),
    ({"pool": "a", "pool_rate": "1/s", "pool_size": 0}, "pool_size", "0"),
    ({"pool": "a", "pool_rates": "1/s"}, "pool_rates", "'1/s'"),
    ({"pool": "a", "pool_size": 1, "pool_slot_exp": 0}, "pool_slot_exp", "0"),
    ({"pool": "a", "pool_size": 1, "pool_slot_exp": math.nan}, "pool_slot_exp", "nan"),
    ({"pool": "a", "pool_size": 1, "pool_slot_exp": False}, "pool_slot_exp", "False"),
    ({"pool": "a", "pool_size": 1, "pool_timeout": -1}, "pool_timeout", "-1"),
    ({"pool": "a", "pool_size": 1, "pool_timeout": math.inf}, "pool_timeout", "inf"),
    ({"pool": "a", "pool_size": 1, "pool_on_full": "explode"}, "pool_on_full", "'explode'"),
    ({"pool": "a", "pool_size": 1, "pool_on_full": 3}, "pool_on_full", "3"),
    ({"pool_weight": 2}, "pool_weight", "2"),
    ({"pool_partition": "{x}"}, "pool_partition", "'{x}'"),
    ({"pool": "a", "pool_size": 3, "pool_weight": 0}, "pool_weight", "0"),
    ({"pool": "a", "pool_size": 3, "pool_weight": 1.5}, "pool_weight", "1.5"),
    ({"pool": "a", "pool_size": 3, "pool_weight": True}, "pool_weight", "True"),
    ({"pool": "a", "pool_size": 3, "pool_weight": "two"}, "pool_weight", "'two'"),
    ({"pool": "a", "pool_size": 3, "pool_weight": 4}, "pool_weight", "4"),
    ({"pool": "a", "pool_size": 3, "pool_partition": ""}, "pool_partition", "''"),
    ({"pool": "a", "pool_size": 3, "pool_partition": 5}, "pool_partition", "5"),
    ({"pool": "a", "pool_size": 3, "pool_partition": "{y}"}, "pool_partition", "'{y}'"),
    ({"pool": "a", "pool_size": 3, "pool_partition": "{x"}, "pool_partition", "'{x'"),
    ({"pool": "a", "pool_size": 3, "pool_max_per_partition": 1}, "pool_max_per_partition", "1"),
    (
        {"pool": "a", "pool_size": 3, "pool_partition": "{x}", "pool_max_per_partition": 0},
        *("pool_max_per_partition", "0"),
    ),
    (
        {"pool": "a", "pool_size": 3, "pool_partition": "{x}", "pool_max_per_partition": 1, "pool_weight": 2},
        *("pool_weight", "2"),
    ),
    ({"pool": "a", "pool_sise": 1}, "pool_sise", "1"),
    ({"pool": "a:{y}", "pool_size": 1}, "pool", "'a:{y}'"),
    ({"pool": "a:{x", "pool_size": 1}, "pool", "'a:{x'"),
]

BAD_CACHE_LABELS = [
    ({"cache": "yes"}, "cache", "'yes'"),
    ({"cache": 1}, "cache", "1"),
    ({"cache_ttl": -1}, "cache_ttl", "-1"),
    ({"cache_ttl": math.nan}, "cache_ttl", "nan"),
    ({"cache_ttl": math.inf}, "cache_ttl", "inf"),
    ({"cache_ttl": True}, "cache_ttl", "True"),
    ({"cache_ttl": "soon"}, "cache_ttl", "'soon'"),
    ({"cache_ttl": [5]}, "cache_ttl", "[5]"),
    ({"cache_ttl": 5, "cache_errors": "perhaps"}, "cache_errors", "'perhaps'"),
    ({"cache_ttl": 5, "cache_errors": 1}, "cache_errors", "1"),
    ({"cache_errors": True}, "cache_errors", "True"),
    ({"cache_key": "a"}, "cache_key", "'a'"),
    ({"cache_ttl": 5, "cache_key": ""}, "cache_key", "''"),
    ({"cache_ttl": 5, "cache_key": 5}, "cache_key", "5"),
    ({"cache_ttl": 5, "cache_key": "user:{y}"}, "cache_key", "'user:{y}'"),
    ({"cache_tll": 5}, "cache_tll", "5"),
    ({"cache_ttl": 5, "cache_grace": -1}, "cache_grace", "-1"),
    ({"cache_ttl": 5, "cache_grace": True}, "cache_grace", "True"),
    ({"cache_grace": 5}, "cache_grace", "5"),
    ({"cache_ttl": 5, "cache_tags": 3}, "cache_tags", "3"),
    ({"cache_ttl": 5, "cache_tags": ["a", 3]}, "cache_tags", "['a', 3]"),
    ({"cache_ttl": 5, "cache_tags": "['a'"}, "cache_tags", "\"['a'\""),
    ({"cache_ttl": 5, "cache_tags": ["user:{y}"]}, "cache_tags", "'user:{y}'"),
    ({"cache_tags": ["a"]}, "cache_tags", "['a']"),
    ({"cache_hit": True}, "cache_hit", "True"),
]


MANAGERS = ManagerRegistry(
    {
        "cpu": {"max_pools": 1},
        "killable": {"max_pools": 1, "backend": "process"},
        "billiard": {"max_pools": 1, "backend": "billiard"},
    }
)


def function(x: int, context: Annotated[Context, TaskiqDepends()]) -> int:
    return x


@pytest.mark.parametrize(("labels", "option", "value"), BAD_POOL_LABELS)
def test_a_bad_pool_label_is_refused_by_name(labels: dict[str, Any], option: str, value: str) -> None:
    with pytest.raises(InvalidOptionError) as caught:
        pool_options(labels, function, {})
    assert (caught.value.option, caught.value.value) == (option, value)
    assert caught.value.allowed


@pytest.mark.parametrize(("labels", "option", "value"), BAD_CACHE_LABELS)
def test_a_bad_cache_label_is_refused_by_name(labels: dict[str, Any], option: str, value: str) -> None:
    with pytest.raises(InvalidOptionError) as caught:
        cache_options(labels, function, 3600)
    assert (caught.value.option, caught.value.value) == (option, value)


def test_a_misspelt_label_gets_a_suggestion() -> None:
    with pytest.raises(InvalidOptionError, match="did you mean 'cache_ttl'"):
        cache_options({"cache_tll": 5}, function, 3600)


@pytest.mark.parametrize(
    ("labels", "ttl", "errors"),
    [
        ({"cache": True}, 3600, None),
        ({"cache": "true"}, 3600, None),
        ({"cache_ttl": 5, "cache_errors": False}, 5, False),
        ({"cache_ttl": 0.5, "cache_errors": "true"}, 0.5, True),
        ({"cache_ttl": None, "cache_errors": True}, None, True),
        ({"cache_ttl": 0}, 0, None),
    ],
)
def test_cache_labels_that_turn_the_cache_on(labels: dict[str, Any], ttl: float | None, errors: bool | None) -> None:
    options = cache_options(labels, function, 3600)
    assert options is not None
    assert (options.ttl, options.errors) == (ttl, errors)


@pytest.mark.parametrize("tags", [["a", "x:{x}"], ("a", "x:{x}"), "a, x:{x}", "['a', 'x:{x}']"])
def test_tags_come_in_several_spellings(tags: Any) -> None:
    options = cache_options({"cache_ttl": 5, "cache_tags": tags}, function, 3600)
    assert options is not None
    assert [template.template for template in options.tags] == ["a", "x:{x}"]


@pytest.mark.parametrize("labels", [{"cache_ttl": 5, "cache_grace": 5}, {"cache_ttl": 5, "cache_tags": ["a"]}])
def test_grace_and_tags_are_refused_where_the_cache_has_none(labels: dict[str, Any]) -> None:
    with pytest.raises(InvalidOptionError, match="CacheAdapter"):
        cache_options(labels, function, 3600, capable=False)


@pytest.mark.parametrize(
    "labels", [{}, {"cache": False}, {"cache": False, "cache_ttl": 5}, {"cache": "False"}, {"cache": None}]
)
def test_cache_labels_that_leave_the_cache_off(labels: dict[str, Any]) -> None:
    assert cache_options(labels, function, 3600) is None


def test_a_declared_pool_is_named_by_label_and_may_be_adjusted() -> None:
    declared = {"api": PoolLimit(size=3, on_full="fail", slot_exp=9)}
    plain = pool_options({"pool": "api"}, function, declared)
    adjusted = pool_options({"pool": "api", "pool_on_full": "wait", "pool_timeout": 2}, function, declared)
    assert plain is not None
    assert plain.limit == declared["api"]
    assert adjusted is not None
    assert adjusted.limit == PoolLimit(size=3, on_full="wait", slot_exp=9, timeout=2.0)


@pytest.mark.parametrize(
    ("labels", "limit"),
    [
        ({"pool": "own", "pool_rate": "100/m"}, PoolLimit(rate="100/m")),
        ({"pool": "own", "pool_size": 2, "pool_rate": "1/s", "pool_burst": 3}, PoolLimit(size=2, rate="1/s", burst=3)),
        ({"pool": "own", "pool_rate": "1/s", "pool_burst": 3.0}, PoolLimit(rate="1/s", burst=3)),
        ({"pool": "mail"}, PoolLimit(rate="100/m", burst=10)),
        ({"pool": "mail", "pool_rate": "5/s"}, PoolLimit(rate="5/s", burst=10)),
        ({"pool": "mail", "pool_burst": 2}, PoolLimit(rate="100/m", burst=2)),
        ({"pool": "mail", "pool_size": 4}, PoolLimit(size=4, rate="100/m", burst=10)),
    ],
)
def test_a_limit_is_a_size_a_rate_or_both(labels: dict[str, Any], limit: PoolLimit) -> None:
    options = pool_options(labels, function, {"mail": PoolLimit(rate="100/m", burst=10)})
    assert options is not None
    assert options.limit == limit


@pytest.mark.parametrize(
    ("labels", "weight", "partition", "most"),
    [
        ({"pool": "own", "pool_size": 3, "pool_weight": 2.0}, 2, None, None),
        ({"pool": "own", "pool_rate": "1/s", "pool_weight": 50}, 50, None, None),
        ({"pool": "own", "pool_size": 3, "pool_partition": "t:{x}"}, 1, "t:{x}", None),
        ({"pool": "own", "pool_size": 3, "pool_partition": "{x}", "pool_max_per_partition": 2}, 1, "{x}", 2),
        ({"pool": "gpu"}, 1, "{x}", 4),
        ({"pool": "gpu", "pool_weight": 4}, 4, "{x}", 4),
        ({"pool": "gpu", "pool_weight": 8, "pool_partition": None}, 8, None, 4),
        ({"pool": "gpu", "pool_partition": "fixed", "pool_max_per_partition": 1}, 1, "fixed", 1),
        ({"pool": "shares", "pool_partition": "{x}"}, 1, "{x}", 2),
        ({"pool": "shares"}, 1, None, 2),
    ],
)
def test_weights_and_partitions_come_from_the_labels_or_the_declared_pool(
    labels: dict[str, Any], weight: int, partition: str | None, most: int | None
) -> None:
    declared = {
        "gpu": PoolLimit(size=8, partition="{x}", max_per_partition=4),
        "shares": PoolLimit(size=8, max_per_partition=2),
    }
    options = pool_options(labels, function, declared)
    assert options is not None
    (pool,) = options.pools
    assert (pool.weight, pool.partition and pool.partition.template) == (weight, partition)
    assert options.limit.max_per_partition == most


def said(pool: OfPool) -> dict[str, Any]:
    return dict(pool.options)


SEVERAL = {"pool": ["db", "api:{x}"], "pool_size": [10, 2]}


@pytest.mark.parametrize(
    ("labels", "sizes", "weights"),
    [
        (SEVERAL, [10, 2], [1, 1]),
        ({"pool": ("db", "api:{x}"), "pool_size": 4}, [4, 4], [1, 1]),
        ({"pool": ["db", "gpu"], "pool_size": [10, None]}, [10, 8], [1, 1]),
        ({"pool": ["gpu", "db"], "pool_size": [None, 10], "pool_weight": [4, None]}, [8, 10], [4, 1]),
        ({**SEVERAL, "pool_weight": 2}, [10, 2], [2, 2]),
        ({"pool": ["gpu"]}, [8], [1]),
        ({"pool": "['db', 'api:{x}']", "pool_size": "[10, 2]", "pool_weight": "(3, None)"}, [10, 2], [3, 1]),
    ],
)
def test_a_task_may_name_several_pools(labels: dict[str, Any], sizes: list[int], weights: list[int]) -> None:
    options = pool_options(from_wire(labels), function, {"gpu": PoolLimit(size=8)})
    assert options is not None
    assert [said(pool)["max_size"] for pool in options.pools] == sizes
    assert [pool.weight for pool in options.pools] == weights


def test_what_holds_for_all_pools_is_what_the_labels_or_the_first_declared_pool_say() -> None:
    declared = {
        "a": PoolLimit(size=1, slot_exp=5, partition="{x}", group="g"),
        "b": PoolLimit(size=2, on_full="fail", timeout=3, on_lost="warn"),
        "c": PoolLimit(size=3, on_full="drop"),
    }
    options = pool_options({"pool": ["a", "b", "c"], "pool_group": "g"}, function, declared)
    assert options is not None
    assert (options.limit.on_full, options.limit.timeout, options.limit.on_lost) == ("fail", 3, "warn")
    assert [said(one)["slot_exp"] for one in options.pools] == [5, DEFAULT, DEFAULT]
    assert [one.partition and one.partition.template for one in options.pools] == ["{x}", None, None]
    assert [said(one)["group"] for one in options.pools] == ["g"] * 3
    own = {"pool_on_full": "drop", "pool_timeout": None, "pool_partition": [None, "b", None]}
    options = pool_options({"pool": ["a", "b", "c"], **own}, function, declared)
    assert options is not None
    assert (options.limit.on_full, options.limit.timeout) == ("drop", None)
    assert [one.partition and one.partition.template for one in options.pools] == ["{x}", "b", None]


@pytest.mark.parametrize(
    ("labels", "option"),
    [
        ({"pool": []}, "pool"),
        ({"pool": ["db", 5], "pool_size": 1}, "pool"),
        ({"pool": ["db", ""], "pool_size": 1}, "pool"),
        ({"pool": ["db", "db"], "pool_size": 1}, "pool"),
        ({"pool": [f"p{number}" for number in range(9)], "pool_size": 1}, "pool"),
        ({"pool": ["db", "api:{y}"], "pool_size": 1}, "pool"),
        ({"pool": ["db", "api"], "pool_size": [1, None]}, "pool"),
        ({"pool": ["db", "api"], "pool_size": [1]}, "pool_size"),
        ({"pool": ["db", "api"], "pool_size": [1, 0]}, "pool_size"),
        ({"pool": "db", "pool_size": [1]}, "pool_size"),
        ({**SEVERAL, "pool_weight": 3}, "pool_weight"),
        ({**SEVERAL, "pool_weight": [10, 3]}, "pool_weight"),
        ({**SEVERAL, "pool_partition": ["{x}", "{y}"]}, "pool_partition"),
        ({**SEVERAL, "pool_group": "with a space"}, "pool_group"),
        ({**SEVERAL, "pool_group": 5}, "pool_group"),
        ({"pool_group": "g"}, "pool_group"),
    ],
)
def test_a_bad_list_of_pools_is_refused_by_name(labels: dict[str, Any], option: str) -> None:
    with pytest.raises(InvalidOptionError) as caught:
        pool_options(from_wire(labels), function, {})
    assert caught.value.option == option


@pytest.mark.parametrize(
    ("options", "option"),
    [
        ({}, "pool_size"),
        ({"size": 1, "partition": "{"}, "pool_partition"),
        ({"size": 1, "max_per_partition": 1.5}, "pool_max_per_partition"),
        ({"rate": "often"}, "pool_rate"),
        ({"rate": "1/s", "burst": 0}, "pool_burst"),
        ({"size": 1, "burst": 2}, "pool_burst"),
    ],
)
def test_a_bad_limit_is_refused_by_the_labels_name(options: dict[str, Any], option: str) -> None:
    with pytest.raises(InvalidOptionError) as caught:
        PoolLimit(**options)
    assert caught.value.option == option


@pytest.mark.parametrize("name", ["executor_pool", "executors", "executor_name"])
def test_a_label_that_looks_like_an_executor_is_refused(name: str) -> None:
    with pytest.raises(InvalidOptionError, match=name):
        executor_options(pick(("executor",), {name: "cpu"}), function, MANAGERS, None)


@pytest.mark.parametrize("value", ["gpu", "", 3, True, math.nan])
def test_an_unknown_executor_is_refused_with_the_known_ones(value: object) -> None:
    with pytest.raises(InvalidOptionError, match="'cpu'"):
        executor_options({"executor": value}, function, MANAGERS, None)


def test_an_executor_on_an_async_task_is_refused() -> None:
    async def work() -> None: ...

    with pytest.raises(InvalidOptionError, match="executor_lease"):
        executor_options({"executor": "cpu"}, work, MANAGERS, None)
    with pytest.raises(InvalidOptionError, match="use timeout"):
        executor_options({"time_limit": 3}, work, MANAGERS, "cpu")
    assert executor_options({}, work, MANAGERS, "cpu") is None


def test_the_default_executor_is_for_plain_functions_that_name_none() -> None:
    options = executor_options({}, function, MANAGERS, "cpu")
    assert options is not None
    assert options.name == "cpu"
    assert executor_options({"executor": None}, function, MANAGERS, "cpu") is None
    assert executor_options({}, function, MANAGERS, None) is None


@pytest.mark.parametrize(
    "labels",
    [
        {"time_limit": 3},
        {"executor": "cpu", "time_limit": 3},
        {"executor": "killable", "time_limit": math.nan},
        {"executor": "killable", "time_limit": True},
        {"executor": "killable", "time_limit": 0},
        {"executor": "killable", "soft_time_limit": 3},
        {"max_memory": 1000},
        {"executor": "killable", "max_memory": 1000},
        {"executor": "billiard", "max_memory": 0},
        {"executor": "billiard", "max_memory": 1.5},
        {"executor": "billiard", "max_memory": True},
    ],
)
def test_a_limit_that_cannot_be_kept_is_refused(labels: dict[str, Any]) -> None:
    with pytest.raises(InvalidOptionError, match=list(labels)[-1]):
        executor_options(labels, function, MANAGERS, None)


def test_labels_that_lost_their_types_on_the_way_get_them_back() -> None:
    labels = {
        "cache_ttl": "60",
        "cache_errors": "TRUE",
        "pool_timeout": "1.5",
        "pool_slot_exp": "None",
        "pool_size": "two",
        "pool_rate": "100/m",
        "pool_burst": "10",
        "pool_weight": "2",
        "pool_partition": "None",
        "pool_max_per_partition": "4",
    }
    assert from_wire(labels) == {
        "cache_ttl": 60,
        "cache_errors": True,
        "pool_timeout": 1.5,
        "pool_slot_exp": None,
        "pool_size": "two",
        "pool_rate": "100/m",
        "pool_burst": 10,
        "pool_weight": 2,
        "pool_partition": None,
        "pool_max_per_partition": 4,
    }
