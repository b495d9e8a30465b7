"""The end of the process that owns an executor, in every way: nothing that it started is left."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.harness.processes import alive
from tests.harness.waiting import wait_until

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def owner(tmp_path):
    """Start the program in a mode; return its process and the pids that it has reported."""
    started = []

    def start(mode):
        environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'shared'}:{ROOT}"}
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.billiard_owner", mode, str(tmp_path)], cwd=ROOT, env=environment
        )
        started.append(process)
        path = tmp_path / "pids"
        wait_until("the owner has reported", lambda: path.exists() or process.poll() is not None, 60)
        return process, [int(pid) for pid in path.read_text().split()]

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.wait(20)


def assert_all_dead(pids, seconds=10):
    wait_until("nothing is left", lambda: not [pid for pid in pids if alive(pid)], seconds)


@pytest.mark.parametrize("mode", ["busy", "thread"])
def test_nothing_outlives_an_owner_that_is_sigkilled(owner, mode):
    process, pids = owner(mode)
    assert len(pids) == 7
    assert all(alive(pid) for pid in pids)
    process.kill()
    process.wait(10)
    assert_all_dead(pids)


@pytest.mark.leaves("processes", reason="the fork is not the executor's; it ends by itself a few seconds later")
def test_a_fork_of_the_owner_that_lives_on_keeps_nothing_alive(owner):
    process, pids = owner("forked")
    process.kill()
    process.wait(10)
    assert_all_dead(pids, 4)


def test_an_owner_killed_while_its_workers_start_leaves_nothing(owner):
    process, pids = owner("starting")
    process.kill()
    process.wait(10)
    assert_all_dead(pids)


def test_owner_and_launcher_killed_at_once_leave_no_worker(owner):
    process, pids = owner("busy")
    os.kill(pids[1], signal.SIGKILL)
    process.kill()
    process.wait(10)
    assert_all_dead(pids[:4])
    for pid in filter(alive, pids[4:]):
        os.kill(pid, signal.SIGKILL)  # what left its session is out of reach when both are gone


@pytest.mark.parametrize(("mode", "code"), [("exit", 0), ("raise", 3)])
def test_the_interpreters_exit_finishes_the_work_and_ends_the_workers(owner, tmp_path, mode, code):
    process, pids = owner(mode)
    assert process.wait(30) == code
    assert (tmp_path / "done").exists()
    assert_all_dead(pids)


def test_an_owner_that_leaves_on_sigterm_ends_its_workers(owner):
    process, pids = owner("sigterm")
    process.terminate()
    assert process.wait(30) == 0
    assert_all_dead(pids)


def test_a_daemonic_billiard_process_may_own_an_executor(tmp_path):
    """Celery's prefork children are daemonic and were forked from a process with threads."""
    import billiard

    from tests.faults import billiard_daemon

    path = tmp_path / "answer"
    context = billiard.get_context("fork")
    process = context.Process(target=billiard_daemon.main, args=(str(path),), daemon=True)
    process.start()
    process.join(60)
    assert process.exitcode == 0
    process.close()
    assert path.read_text() == "[0, 1, 4] TimeLimitExceeded"
