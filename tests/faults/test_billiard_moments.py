"""A worker is killed or stopped at exactly one moment of a task's life, by a hook that is in place there."""

import os
import signal
from concurrent.futures import wait

import pytest

from slotline.workers import BilliardExecutor, RestartFreqExceeded, TimeLimitExceeded, WorkerLostError
from slotline.workers.arena import Arena
from tests.faults import billiard_moments as moments
from tests.harness import leaks
from tests.harness.processes import gone
from tests.harness.waiting import wait_until
from tests.integration import billiard_tasks as tasks

SIZES = pytest.mark.parametrize("megabytes", [1, 9], ids=["mapped", "beyond the mapping"])


def ready(executor, count):
    return wait_until(f"{count} workers", lambda: pids if len(pids := executor.worker_pids()) == count else None, 30)


@pytest.fixture
def executor():
    """Yield an executor with a task in its other worker, which no kill may harm, and count what is left."""
    with BilliardExecutor(2) as executor:
        ready(executor, 2)
        # Each worker's memory is mapped, which takes descriptors, and the callbacks' thread is there.
        wait([executor.apply_async(tasks.sleep_then, (0.05, b"x" * (1 << 20)), callback=len) for _ in range(2)], 30)
        before = leaks.measure()
        neighbour = executor.submit(tasks.sleep_then, 0.4, "unharmed")
        yield executor
        assert neighbour.result(30) == "unharmed"
        assert executor.map(tasks.square, range(20), chunksize=1) == [n * n for n in range(20)]
        ready(executor, 2)
        wait_until("no more descriptors and threads are left", lambda: not leaks.measure().exceeds(before))


def kill(pid):
    """Kill a worker, and wait until it is dead."""
    os.kill(pid, signal.SIGKILL)
    wait_until("it is dead", lambda: gone(pid))


@SIZES
def test_killed_while_half_of_its_task_is_written_the_task_runs_elsewhere(executor, megabytes, monkeypatch):
    original, killed = Arena.write, []

    def write(self, parts, offset, size):
        if not killed:
            member = next(m for m in executor._supervisor().dispatcher.members.values() if m.arena is self)
            killed.append(member.pid)
            half = b"".join(parts)[: size // 2]
            original(self, [half], offset, len(half))
            kill(member.pid)
            assert member.buried.wait(30)
        original(self, parts, offset, size)

    monkeypatch.setattr(Arena, "write", write)
    assert executor.submit(moments.total, moments.load(megabytes)).result(30) == megabytes << 20
    assert killed


@SIZES
def test_killed_while_it_has_read_half_of_its_task_that_task_alone_fails(executor, megabytes):
    half = moments.load(megabytes)
    job = executor.submit(moments.total, half, moments.WhenRebuilt(signal.SIGKILL), half)
    with pytest.raises(WorkerLostError, match="SIGKILL"):
        job.result(30)


def test_killed_while_it_runs_a_task_that_task_alone_fails(executor, tmp_path):
    path = tmp_path / "running"
    job = executor.submit(moments.running, str(path))
    wait_until("it runs", path.exists, 30)
    kill(*job.worker_pids())
    with pytest.raises(WorkerLostError, match="SIGKILL"):
        job.result(30)


@SIZES
def test_killed_while_it_packs_its_result_that_task_alone_fails(executor, megabytes):
    with pytest.raises(WorkerLostError, match="SIGKILL"):
        executor.submit(moments.packs, megabytes, signal.SIGKILL).result(30)


@SIZES
def test_killed_while_half_of_its_result_is_written_that_task_alone_fails(executor, megabytes):
    with pytest.raises(WorkerLostError, match="SIGKILL"):
        executor.submit(moments.sends_half, megabytes).result(30)


@pytest.mark.parametrize("megabytes", [0, 1, 9], ids=["short", "mapped", "beyond the mapping"])
@pytest.mark.parametrize("waits", [True, False], ids=["who waits", "supervisor"])
def test_killed_once_its_result_is_sent_the_result_counts(executor, megabytes, waits):
    for _ in range(3):
        job = executor.submit(moments.dies_once_sent, megabytes)
        if not waits:
            wait([job], 30)
        assert job.result() == moments.load(megabytes)  # for as long as it takes: a call that is missed is a hang


@SIZES
def test_killed_while_its_result_is_being_read_the_result_counts(executor, megabytes, monkeypatch):
    original, killed = Arena.read, []

    def read(self, offset, size):
        if not killed:
            member = next(m for m in executor._supervisor().dispatcher.members.values() if m.arena is self)
            killed.append(member.pid)
            kill(member.pid)
        return original(self, offset, size)

    monkeypatch.setattr(Arena, "read", read)
    assert executor.submit(moments.load, megabytes).result() == moments.load(megabytes)
    assert killed


def test_killed_while_idle_no_task_notices(executor):
    kill(executor._supervisor().dispatcher.free[0].pid)


@pytest.mark.parametrize(
    ("function", "args"),
    [
        (moments.total, ([], moments.WhenRebuilt(signal.SIGSTOP))),
        (tasks.kill_self, (signal.SIGSTOP,)),
        (moments.packs, (1, signal.SIGSTOP)),
    ],
    ids=["reading", "running", "packing"],
)
def test_stopped_at_any_moment_under_a_hard_limit_it_is_killed_and_replaced(executor, function, args):
    with pytest.raises(TimeLimitExceeded):
        executor.options(timeout=0.4).submit(function, *args).result(30)


def test_all_workers_killed_at_once_fail_what_each_of_them_ran_and_nothing_else(tmp_path):
    with BilliardExecutor(3) as executor:
        ready(executor, 3)
        paths = [tmp_path / str(n) for n in range(3)]
        jobs = [executor.submit(moments.running, str(path)) for path in paths]
        wait_until("all run", lambda: all(path.exists() for path in paths), 30)
        waiting = [executor.submit(tasks.square, n) for n in range(50)]
        for pid in executor.worker_pids():
            os.kill(pid, signal.SIGKILL)
        assert all(isinstance(job.exception(30), WorkerLostError) for job in jobs)
        assert [job.result(30) for job in waiting] == [n * n for n in range(50)]
        ready(executor, 3)


def test_a_storm_of_deaths_ends_the_executor_only_when_no_task_is_taken_between_them():
    executor, dead = BilliardExecutor(1, max_restarts=3, max_restart_freq=600), []

    def kill_the_next():
        dead.extend(wait_until("another worker is ready", lambda: set(executor.worker_pids()) - set(dead), 30))
        kill(dead[-1])

    for _ in range(2):
        for _ in range(3):
            kill_the_next()
        assert executor.submit(tasks.square, 3).result(30) == 9
    for _ in range(4):
        kill_the_next()
    wait_until("it gives up", lambda: executor._supervisor().dispatcher.refusal is not None, 30)
    with pytest.raises(RestartFreqExceeded, match="more than 3 restarts in 600 s"):
        executor.submit(tasks.square, 3)
    executor.shutdown()


def test_a_worker_over_its_memory_is_replaced_and_the_tasks_behind_its_own_run_elsewhere():
    with BilliardExecutor(1, max_memory_per_child=200 << 10) as executor:
        first = executor.submit(tasks.pid).result(30)
        large = executor.submit(tasks.allocate, 256)
        behind = [executor.submit(tasks.pid) for _ in range(30)]
        assert large.result(30) == 256 << 20
        assert first not in {job.result(30) for job in behind}
