"""Options of the manager: what leasepool's manager accepts is accepted, and nothing else."""

from __future__ import annotations

import inspect
import logging
import math
import subprocess
import sys

import pytest

from slotline.errors import InvalidOptionError
from slotline.leases import (
    ExecutorBackend,
    LeasedExecutorManager,
    ProcessLoggingConfig,
    WorkGrinder,
    limits_for,
    run_in_lease_sync,
)

TOO_LARGE = 10**5000  # a whole number, but no number of seconds


def short(value):
    return "10**5000" if value == TOO_LARGE else repr(value)


NO_NUMBERS = [True, False, "4", b"4", None, math.nan, math.inf, -math.inf, [], 1j]


EXECUTORS = {
    "thread": "initializer, initargs",
    "process": "mp_context, initializer, initargs, max_tasks_per_child",
    "billiard": "initializer, initargs, maxtasksperchild, timeout, soft_timeout",
}


class IntegerLike:
    """An integer of another library."""

    def __init__(self, value):
        self.value = value

    def __index__(self):
        return self.value

    def __repr__(self):
        return f"IntegerLike({self.value})"


def refused(option, value, **options):
    with pytest.raises(InvalidOptionError) as caught:
        LeasedExecutorManager(**{"max_pools": 4, **options, option: value})
    assert caught.value.option == option
    assert isinstance(caught.value, ValueError)
    return caught.value


def test_the_defaults_are_those_of_leasepool():
    parameters = inspect.signature(LeasedExecutorManager).parameters
    defaults = {name: parameter.default for name, parameter in parameters.items() if name != "executor_kwargs"}
    assert defaults == {
        "backend": ExecutorBackend.THREAD,
        "max_pools": inspect.Parameter.empty,
        "min_pools": 1,
        "units_per_pool": 10,
        "size_provider": None,
        "check_interval": 120.0,
        "default_lease_seconds": 300.0,
        "lease_grace_seconds": 15.0,
        "workers_per_pool": 4,
        "name_prefix": "leasepool",
        "logger": None,
        "process_logging": None,
        "forward_process_logs": False,
        "process_log_level": logging.INFO,
        "process_log_target_logger": None,
        "clear_process_log_handlers": True,
        "hold_overdue": False,
    }
    assert all(parameter.kind is not parameter.POSITIONAL_OR_KEYWORD for parameter in parameters.values())


def test_max_pools_must_be_given():
    with pytest.raises(TypeError, match="max_pools"):
        LeasedExecutorManager()


@pytest.mark.parametrize("option", ["max_pools", "min_pools", "units_per_pool", "workers_per_pool"])
@pytest.mark.parametrize("value", [*NO_NUMBERS, 0, -1, 1.5, 0.5, IntegerLike(0), IntegerLike(-2)], ids=repr)
def test_counts_that_are_not_positive_whole_numbers_are_refused(option, value):
    refused(option, value)


@pytest.mark.parametrize("value", [2, 2.0, IntegerLike(2)], ids=repr)
def test_positive_integer_like_counts_are_accepted(value):
    manager = LeasedExecutorManager(max_pools=value, min_pools=value, units_per_pool=value, workers_per_pool=value)
    assert (manager.stats()["max_pools"], manager.stats()["workers_per_pool"]) == (2, 2)


@pytest.mark.parametrize("option", ["check_interval", "default_lease_seconds"])
@pytest.mark.parametrize("value", [*NO_NUMBERS, 0, 0.0, -1, TOO_LARGE], ids=short)
def test_times_that_are_not_finite_and_greater_than_zero_are_refused(option, value):
    refused(option, value)


@pytest.mark.parametrize("value", [*NO_NUMBERS, -0.001, TOO_LARGE], ids=short)
def test_a_grace_that_is_not_finite_or_negative_is_refused(value):
    refused("lease_grace_seconds", value)


@pytest.mark.parametrize("backend", EXECUTORS)
def test_times_and_counts_without_a_reasonable_end_are_allowed(backend):
    for_ever = dict.fromkeys(("check_interval", "default_lease_seconds", "lease_grace_seconds"), 1e300)
    with LeasedExecutorManager(backend=backend, max_pools=TOO_LARGE, **for_ever) as manager:
        assert run_in_lease_sync(manager, pow, (2, 3), acquire_timeout=1e300) == 8
        if manager.killable:
            assert run_in_lease_sync(manager, pow, (2, 3), limits=limits_for(manager, time_limit=1e300)) == 8
        if manager.takes_limits:
            limits = limits_for(manager, soft_time_limit=1e299, max_memory=10**30)
            assert run_in_lease_sync(manager, pow, (2, 3), limits=limits) == 8


def test_no_grace_at_all_is_allowed():
    LeasedExecutorManager(max_pools=1, lease_grace_seconds=0.0)


def test_more_executors_at_least_than_at_most_are_refused():
    assert "max_pools (2)" in str(refused("min_pools", 3, max_pools=2))


@pytest.mark.parametrize("value", ["threads", "THREAD", "", None, 1], ids=repr)
def test_an_unknown_backend_is_refused_with_the_known_ones(value):
    assert "'thread', 'process', 'interpreter', 'billiard'" in str(refused("backend", value))


@pytest.mark.parametrize("value", [ExecutorBackend.THREAD, "thread"])
def test_a_backend_is_named_by_text_or_by_the_enum(value):
    assert LeasedExecutorManager(backend=value, max_pools=1).backend is ExecutorBackend.THREAD


@pytest.mark.parametrize(("option", "value"), [("name_prefix", ""), ("name_prefix", 3), ("logger", "root")])
@pytest.mark.parametrize("extra", [{}])
def test_texts_and_loggers_are_checked(option, value, extra):
    refused(option, value, **extra)


@pytest.mark.parametrize("value", [3, "count"])
def test_a_size_provider_that_cannot_be_called_is_refused(value):
    refused("size_provider", value)


@pytest.mark.parametrize("option", ["hold_overdue", "forward_process_logs", "clear_process_log_handlers"])
@pytest.mark.parametrize("value", [1, None, "yes"], ids=repr)
def test_flags_are_true_or_false(option, value):
    refused(option, value, backend="process")


@pytest.mark.parametrize("value", ["LOUD", -1, True, 1.5, None], ids=repr)
def test_an_unknown_log_level_is_refused(value):
    refused("process_log_level", value, backend="process")
    with pytest.raises(InvalidOptionError, match="level"):
        ProcessLoggingConfig(level=value)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("forward_process_logs", True),
        ("process_log_level", "DEBUG"),
        ("process_log_target_logger", logging.getLogger("x")),
        ("clear_process_log_handlers", False),
    ],
)
def test_both_forms_of_log_forwarding_together_are_refused(option, value):
    error = refused(option, value, backend="process", process_logging=ProcessLoggingConfig(enabled=True))
    assert "process_logging" in str(error)


def test_a_process_logging_of_another_type_is_refused():
    refused("process_logging", {"enabled": True}, backend="process")


def test_log_forwarding_without_worker_processes_is_refused():
    refused("forward_process_logs", True, backend="thread")


@pytest.mark.parametrize(("backend", "known"), EXECUTORS.items())
def test_arguments_that_the_executor_does_not_know_are_refused_at_construction(backend, known):
    error = refused("colour", "red", backend=backend)
    assert error.value == "'red'"
    assert f"option of LeasedExecutorManager, or of the {backend} backend's executor: {known}" in error.allowed
    assert "did you mean" not in str(error)


@pytest.mark.parametrize("backend", EXECUTORS)
@pytest.mark.parametrize(
    ("misspelt", "meant"), [("max_pool", "max_pools"), ("min_pool", "min_pools"), ("initialiser", "initializer")]
)
@pytest.mark.parametrize("also", [{}, {"max_pools": 4}], ids=["alone", "beside max_pools"])
def test_a_misspelt_option_is_named_and_never_taken_for_a_missing_one(backend, misspelt, meant, also):
    with pytest.raises(InvalidOptionError, match=rf"^{misspelt}=2 .*did you mean {meant}\?") as caught:
        LeasedExecutorManager(backend=backend, **also, **{misspelt: 2})
    assert caught.value.option == misspelt


@pytest.mark.parametrize(
    ("backend", "options"),
    [
        ("thread", {}),
        ("process", {"mp_context": "spawn", "max_tasks_per_child": 2}),
        ("billiard", {"context": "spawn", "maxtasksperchild": 2, "soft_timeout": 3}),
    ],
)
def test_arguments_that_the_executor_knows_are_accepted(backend, options):
    LeasedExecutorManager(backend=backend, max_pools=1, initializer=print, initargs=("hello",), **options)


@pytest.mark.parametrize(
    ("backend", "option", "value"),
    [("thread", "max_workers", 3), ("thread", "thread_name_prefix", "x"), ("process", "max_workers", 3)],
)
def test_arguments_that_the_manager_sets_itself_are_refused(backend, option, value):
    assert "sets it" in str(refused(option, value, backend=backend))


BAD_COUNTS = [*[value for value in NO_NUMBERS if value is not None], 0, -1, 1.5]
BAD_SECONDS = [*[value for value in NO_NUMBERS if value is not None], 0, -1, TOO_LARGE]
NUMBERS = {
    ("process", "max_tasks_per_child"): BAD_COUNTS,
    ("billiard", "maxtasksperchild"): BAD_COUNTS,
    ("billiard", "max_memory_per_child"): BAD_COUNTS,
    ("billiard", "max_restarts"): BAD_COUNTS,
    ("billiard", "max_restart_freq"): [*BAD_SECONDS, None],
    ("billiard", "timeout"): BAD_SECONDS,
    ("billiard", "soft_timeout"): BAD_SECONDS,
    ("billiard", "lost_worker_timeout"): BAD_SECONDS,
}


@pytest.mark.parametrize(("backend", "option"), NUMBERS, ids=str)
def test_numbers_that_the_executor_cannot_use_are_refused_at_construction(backend, option):
    for value in NUMBERS[backend, option]:
        refused(option, value, backend=backend)


@pytest.mark.parametrize("option", ["threads", "putlocks"])
def test_what_would_have_the_callers_of_a_lease_do_its_waiting_is_refused(option):
    assert "the manager sets it" in str(refused(option, option == "putlocks", backend="billiard"))


@pytest.mark.parametrize("value", ["forks", 3, object()])
def test_an_unknown_start_method_is_refused(value):
    refused("mp_context", value, backend="process")


@pytest.mark.parametrize("backend", EXECUTORS)
def test_an_initializer_that_cannot_be_called_is_refused(backend):
    refused("initializer", 3, backend=backend)
    refused("initargs", 3, backend=backend)


@pytest.mark.parametrize("value", [*[value for value in NO_NUMBERS if value is not None], 0, -1.0], ids=repr)
async def test_lease_seconds_that_are_not_finite_and_greater_than_zero_are_refused(value):
    async with LeasedExecutorManager(max_pools=1) as manager:
        with pytest.raises(InvalidOptionError, match="lease_seconds"):
            await manager.acquire(lease_seconds=value)
        with pytest.raises(InvalidOptionError, match="lease_seconds"):
            manager.sync.acquire(lease_seconds=value)
        assert manager.leased_count == 0


@pytest.mark.parametrize("value", ["1", math.nan, math.inf, True, -0.1], ids=repr)
async def test_a_timeout_that_is_no_finite_number_of_seconds_is_refused(value):
    async with LeasedExecutorManager(max_pools=1) as manager:
        with pytest.raises(InvalidOptionError, match="timeout"):
            await manager.acquire(timeout=value)


async def test_an_owner_that_is_no_text_is_refused():
    async with LeasedExecutorManager(max_pools=1) as manager:
        with pytest.raises(InvalidOptionError, match="owner"):
            await manager.acquire(owner=3)


@pytest.mark.parametrize(
    ("option", "values"),
    [
        ("max_wait_seconds", [*NO_NUMBERS, 0, -1]),
        ("batch_size_threshold", [*NO_NUMBERS, 0, -1, 1.5]),
        ("lease_seconds", [*NO_NUMBERS, 0, -1]),
        ("max_pending", [*NO_NUMBERS, 0, -1, 1.5, 19]),
        ("owner_prefix", ["", 3, None]),
        ("executor_manager", [None, "manager"]),
        ("logger", ["root"]),
    ],
)
def test_options_of_the_grinder_are_checked(option, values):
    manager = LeasedExecutorManager(max_pools=1)
    for value in values:
        with pytest.raises(InvalidOptionError) as caught:
            WorkGrinder(**{"executor_manager": manager, option: value})
        assert caught.value.option == option


def test_the_defaults_of_the_grinder_are_those_of_leasepool():
    parameters = inspect.signature(WorkGrinder).parameters
    defaults = {name: parameter.default for name, parameter in parameters.items()}
    assert defaults == {
        "executor_manager": inspect.Parameter.empty,
        "max_wait_seconds": 10.0,
        "batch_size_threshold": 20,
        "lease_seconds": 60.0,
        "owner_prefix": "work-grinder",
        "max_pending": 10_000,
        "logger": None,
    }


def test_every_public_name_is_there_and_a_worker_process_imports_next_to_nothing():
    from slotline import leases

    assert all(getattr(leases, name).__name__ == name for name in leases.__all__)
    assert set(leases.__all__) == set(leases._HOMES)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = leases.nothing
    script = "import slotline, sys; old = set(sys.modules); import slotline.leases._child; print({*sys.modules} - old)"
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert "slotline.leases._child" in loaded
    assert "slotline.leases.manager" not in loaded
