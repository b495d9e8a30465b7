"""Options of the process pool: what is refused, and in which words."""

import math
import subprocess
import sys
import threading

import pytest

from slotline.errors import InvalidOptionError, UnsupportedBackendError
from slotline.workers import BilliardExecutor, _billiard
from slotline.workers.options import DEFAULT, TaskLimits, usable_cpus

NOT_COUNTS = [0, -1, 1.5, math.nan, math.inf, -math.inf, True, False, "2", b"2", [], ...]
NOT_SECONDS = [0, -1, -0.5, math.nan, math.inf, -math.inf, True, False, "2", [], ...]
NOT_CALLABLES = [1, "name", (), ...]
NOT_FLAGS = [0, 1, None, "yes"]


def refused(option, value, **more):
    with pytest.raises(InvalidOptionError) as caught:
        BilliardExecutor(**{option: value}, **more)
    assert caught.value.option == option
    assert option in str(caught.value)
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize("option", ["processes", "maxtasksperchild", "max_restarts", "max_memory_per_child"])
@pytest.mark.parametrize("value", NOT_COUNTS, ids=repr)
def test_counts_must_be_whole_numbers_of_at_least_one(option, value):
    refused(option, value)


@pytest.mark.parametrize("option", ["timeout", "soft_timeout", "lost_worker_timeout", "max_restart_freq"])
@pytest.mark.parametrize("value", NOT_SECONDS, ids=repr)
def test_durations_must_be_finite_positive_numbers(option, value):
    refused(option, value)


def test_the_restart_frequency_cannot_be_none():
    refused("max_restart_freq", None)


@pytest.mark.parametrize(
    "option",
    [
        "initializer",
        "on_process_up",
        "on_process_down",
        "on_process_exit",
        "on_timeout_set",
        "on_timeout_cancel",
    ],
)
@pytest.mark.parametrize("value", NOT_CALLABLES, ids=repr)
def test_callbacks_must_be_callable(option, value):
    refused(option, value)


@pytest.mark.parametrize("option", ["threads", "putlocks", "allow_restart", "synack", "enable_timeouts"])
@pytest.mark.parametrize("value", NOT_FLAGS, ids=repr)
def test_switches_must_be_true_or_false(option, value):
    refused(option, value)


@pytest.mark.parametrize("value", [1, "semaphore", ...], ids=repr)
def test_a_semaphore_must_have_acquire_and_release(value):
    refused("semaphore", value)


@pytest.mark.parametrize("value", [1, "threads", ...], ids=repr)
def test_a_context_must_name_a_start_method(value):
    refused("context", value)


@pytest.mark.parametrize("value", [5, "abc", None], ids=repr)
def test_initargs_must_be_a_sequence_of_arguments(value):
    refused("initargs", value)


def test_an_unknown_option_is_refused_by_python():
    with pytest.raises(TypeError, match="workers"):
        BilliardExecutor(workers=2)


@pytest.mark.parametrize("option", ["timeout", "soft_timeout", "lost_worker_timeout"])
@pytest.mark.parametrize("value", NOT_SECONDS, ids=repr)
def test_a_tasks_own_durations_are_checked_too(option, value):
    with pytest.raises(InvalidOptionError, match=option):
        TaskLimits().override(**{option: value})


@pytest.mark.parametrize("value", NOT_COUNTS, ids=repr)
def test_a_tasks_memory_is_a_whole_number_of_kilobytes(value):
    with pytest.raises(InvalidOptionError, match="max_memory"):
        TaskLimits().override(max_memory=value)


def test_none_lifts_a_limit_and_nothing_given_keeps_it():
    limits = TaskLimits(timeout=5, soft_timeout=4)
    assert limits.override() is limits
    assert limits.override(timeout=DEFAULT, soft_timeout=None) == TaskLimits(timeout=5)
    assert not limits.override(timeout=None, soft_timeout=None).timed


def test_usable_cpus_is_at_least_one():
    assert usable_cpus() >= 1


def test_an_initializer_that_cannot_be_pickled_is_refused_at_construction():
    from slotline.workers import UnpicklableError

    with pytest.raises(UnpicklableError, match="initializer"):
        BilliardExecutor(1, initializer=lambda: None)
    with pytest.raises(UnpicklableError, match="initializer"):
        BilliardExecutor(1, initializer=print, initargs=(threading.Lock(),))


def test_a_missing_billiard_is_named_with_the_cure(monkeypatch):
    def no_billiard(name):
        raise ModuleNotFoundError(f"No module named {name!r}")

    monkeypatch.setattr(_billiard.importlib, "import_module", no_billiard)
    with pytest.raises(UnsupportedBackendError, match=r"pip install 'slotline\[celery\]'"):
        BilliardExecutor(1)


def test_importing_slotline_workers_imports_neither_billiard_nor_celery():
    code = (
        "import sys, slotline.workers as own; "
        "assert 'slotline.workers.executor' not in sys.modules; "
        "assert all(getattr(own, name).__name__ == name for name in own._HOMES); "
        "assert not [name for name in sys.modules if name.partition('.')[0] in ('billiard', 'celery')]; "
        "import billiard.exceptions as b; "
        "assert all(getattr(own, name) is getattr(b, name) for name in {*own.__all__} - {*own._HOMES})"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_an_unknown_name_in_the_package_is_an_attribute_error():
    import slotline.workers

    with pytest.raises(AttributeError, match="Nonsense"):
        slotline.workers.Nonsense  # noqa: B018 - the access is the test
