"""The executor beside billiard's Pool: every method, parameter and default under its own name."""

from __future__ import annotations

import inspect

import pytest
from billiard.pool import ApplyResult as BilliardResult
from billiard.pool import Pool

from slotline.workers import ApplyResult, BilliardExecutor, MapResult

EMPTY = inspect.Parameter.empty
METHODS = {
    "apply": {"func": EMPTY, "args": (), "kwds": None},
    "map": {"func": EMPTY, "chunksize": None},
    "starmap": {"func": EMPTY, "iterable": EMPTY, "chunksize": None},
    "apply_async": {
        "func": EMPTY,
        "args": (),
        "kwds": None,
        "callback": None,
        "error_callback": None,
        "accept_callback": None,
        "timeout_callback": None,
        "waitforslot": None,
        "soft_timeout": None,
        "timeout": None,
        "lost_worker_timeout": None,
        "callbacks_propagate": None,
        "correlation_id": None,
    },
    "map_async": {"func": EMPTY, "iterable": EMPTY, "chunksize": None, "callback": None, "error_callback": None},
    "starmap_async": {"func": EMPTY, "iterable": EMPTY, "chunksize": None, "callback": None, "error_callback": None},
    "imap": {"func": EMPTY, "iterable": EMPTY, "chunksize": 1},
    "imap_unordered": {"func": EMPTY, "iterable": EMPTY, "chunksize": 1},
    "close": {},
    "terminate": {},
    "join": {},
    "restart": {},
    "grow": {"n": 1},
    "shrink": {"n": 1},
    "terminate_job": {"pid": EMPTY, "sig": None},
    "maintain_pool": {},
    "send_ack": {"response": EMPTY, "job": EMPTY, "i": EMPTY, "fd": EMPTY},
    "did_start_ok": {},
    "on_job_ready": {"job": EMPTY, "i": EMPTY, "obj": EMPTY, "inqW_fd": EMPTY},
    "handle_result_event": {"args": EMPTY},
    "cpu_count": {},
}
RESULT = {
    "get": {"timeout": None},
    "wait": {"timeout": None},
    "ready": {},
    "successful": {},
    "terminate": {"signum": EMPTY},
}
OPTIONS = {
    "processes": None,
    "initializer": None,
    "initargs": (),
    "maxtasksperchild": None,
    "timeout": None,
    "soft_timeout": None,
    "lost_worker_timeout": None,
    "max_restarts": None,
    "max_restart_freq": 1,
    "on_process_up": None,
    "on_process_down": None,
    "on_timeout_set": None,
    "on_timeout_cancel": None,
    "threads": True,
    "semaphore": None,
    "putlocks": False,
    "allow_restart": False,
    "synack": False,
    "on_process_exit": None,
    "context": None,
    "max_memory_per_child": None,
    "enable_timeouts": False,
}


def defaults(function):
    parameters = inspect.signature(function).parameters.values()
    return {parameter.name: parameter.default for parameter in parameters if parameter.name != "self"}


def test_every_option_has_its_name_and_default():
    assert defaults(BilliardExecutor) == OPTIONS
    assert set(defaults(Pool.__init__)) <= set(OPTIONS) | {"kwargs"}


@pytest.mark.parametrize("name", METHODS)
def test_every_method_has_its_parameters_and_defaults(name):
    ours = defaults(getattr(BilliardExecutor, name))
    assert {parameter: ours.get(parameter, "missing") for parameter in METHODS[name]} == METHODS[name]
    required = [parameter for parameter, default in ours.items() if default is EMPTY]
    assert set(required) <= set(METHODS[name]) | {"iterables"}


@pytest.mark.parametrize("kind", [ApplyResult, MapResult])
@pytest.mark.parametrize("name", RESULT)
def test_every_method_of_a_result_has_its_parameters_and_defaults(kind, name):
    assert defaults(getattr(kind, name)) == RESULT[name]
    assert hasattr(BilliardResult, name)


def test_process_sentinels_is_a_property():
    assert isinstance(inspect.getattr_static(BilliardExecutor, "process_sentinels"), property)
