"""One run of the creator, whatever number of processes and callers want its value at once."""

from __future__ import annotations

import time
from contextlib import ExitStack

import pytest

from tests.integration.cache_process import CacheProcess, most_at_once, runs, wait_for_run


@pytest.fixture
def log(tmp_path):
    return tmp_path / "runs.log"


@pytest.fixture
def begin(redis_url, log):
    """A function that starts processes and lets them all begin together."""
    with ExitStack() as stack:

        def start(*options):
            started = [stack.enter_context(CacheProcess(redis_url, log, **one)) for one in options]
            for process in started:
                process.begin()
            return started

        yield start


@pytest.mark.parametrize("face", ["async", "sync"])
def test_four_processes_and_their_callers_share_one_run(begin, log, face):
    callers = 100 if face == "async" else 10
    processes = begin(*[{"callers": callers, "work": 1.0, "face": face}] * 4)
    outcomes = [process.outcome() for process in processes]
    values = {value for outcome in outcomes for value in outcome["values"]}
    assert len(runs(log)) == 1
    assert values == {f"made by {runs(log)[0].pid}"}
    assert [len(outcome["values"]) for outcome in outcomes] == [callers] * 4
    assert max(outcome["seconds"] for outcome in outcomes) < 1.0 + 5.0  # woken, not polled


def test_both_faces_share_one_run_across_processes(begin, log):
    processes = begin({"callers": 20, "work": 1.0}, {"callers": 5, "face": "sync", "work": 1.0})
    assert sum(len(process.outcome()["values"]) for process in processes) == 25
    assert len(runs(log)) == 1


def test_a_failure_reaches_everyone_who_waits_in_every_process_once(begin, log):
    processes = begin(*[{"callers": 10, "work": 1.5, "fails": True}] * 3)
    errors = [error for process in processes for error in process.outcome()["errors"]]
    (run,) = runs(log)
    assert errors == [f"ValueError: failed in {run.pid}"] * 30


def test_a_creator_slower_than_its_lock_runs_once(begin, log):
    processes = begin(*[{"callers": 10, "work": 4.0, "cache": {"lock_timeout": 1.2}}] * 2)
    assert sum(len(process.outcome()["values"]) for process in processes) == 20
    assert len(runs(log)) == 1


def test_one_process_sends_three_commands_and_another_that_waits_four(begin, log, redis_server):
    begin({"callers": 1, "work": 0, "key": "scripts"})[0].outcome()  # loads the scripts
    with redis_server.counting() as commands:
        first, second = begin({"callers": 50, "work": 2.0}, {"callers": 50, "work": 2.0})
        first.outcome()
        second.outcome()
    assert len(runs(log)) == 2
    # GET and a claim by each; then one stands in line, the other fills, and the one in line asks again.
    assert commands["evalsha"] == 5
    # Scripts read the entry at each of the four claims.
    assert commands["get"] <= 2 + 4 + 4 + 1
    assert commands["publish"] <= 1 + 2  # and the hubs are told to end


def test_a_waiter_is_served_by_another_processs_run_that_began_before(begin, log):
    (first,) = begin({"work": 2.0})
    wait_for_run(log)
    asked = time.monotonic()
    (second,) = begin({"work": 2.0})
    assert second.outcome()["values"] == first.outcome()["values"]
    assert time.monotonic() - asked < 2.0 + 6.0
    assert most_at_once(runs(log)) == len(runs(log)) == 1


def test_two_processes_whose_creators_wait_for_each_other_are_told(begin, log):
    quick = {"work": 0, "cache": {"lock_timeout": 3}}
    processes = begin({"key": "a", "needs": "b", **quick}, {"key": "b", "needs": "a", **quick})
    outcomes = [process.outcome() for process in processes]
    assert [outcome["errors"][0].partition(":")[0] for outcome in outcomes] == ["CacheRecursionError"] * 2
    assert len(runs(log)) == 2
