"""Workers that are killed, stopped, crashed or abused: only their own task fails, and they are replaced."""

import contextlib
import os
import random
import signal
import time
from concurrent.futures import ThreadPoolExecutor, wait

import pytest

from slotline.workers import (
    BilliardExecutor,
    TaskExitError,
    Terminated,
    TimeLimitExceeded,
    UnpicklableError,
    WorkerLostError,
)
from tests.harness import leaks
from tests.harness.processes import alive
from tests.harness.waiting import wait_until
from tests.integration import billiard_tasks as tasks


@pytest.fixture
def executor():
    with BilliardExecutor(2) as running:
        wait_until("both workers are ready", lambda: len(running.worker_pids()) == 2, 30)
        yield running


def read_pids(path):
    wait_until("the task has written its pids", path.exists, 20)
    return [int(pid) for pid in path.read_text().split()]


def start_sleeping(executor, tmp_path, seconds=60):
    """Submit a task and return its future once its code runs: until then a dead worker's task is run again."""
    path = tmp_path / "began"
    job = executor.submit(tasks.touch_and_sleep, str(path), seconds)
    wait_until("the task has begun", path.exists, 20)
    return job


def test_a_limit_acts_at_its_deadline(executor):
    for _ in range(5):
        job = executor.options(timeout=0.3).submit(tasks.stubborn, 60)
        wait_until("the task runs", job.running)
        error = job.exception(10)
        assert type(error) is TimeLimitExceeded
        assert 0.3 <= time.monotonic() - job.started_at < 2


def test_a_killed_worker_fails_only_its_own_task_and_is_replaced(executor, tmp_path):
    neighbour = executor.submit(tasks.sleep_then, 1, "unharmed")
    job = start_sleeping(executor, tmp_path)
    queued = [executor.submit(tasks.square, n) for n in range(20)]
    start = time.monotonic()
    os.kill(job.worker_pids()[0], signal.SIGKILL)
    with pytest.raises(WorkerLostError, match="SIGKILL"):
        job.result(10)
    assert time.monotonic() - start < 5
    assert [future.result(20) for future in queued] == [n * n for n in range(20)]
    assert neighbour.result(10) == "unharmed"


def test_a_task_that_its_worker_has_no_memory_for_fails_and_the_worker_goes_on():
    with BilliardExecutor(1) as executor:
        executor.submit(tasks.cap_address_space, 32 << 20).result(10)
        worker = executor.submit(tasks.pid).result(10)
        assert type(executor.submit(tasks.echo, bytes(128 << 20)).exception(30)) is MemoryError
        assert executor.submit(tasks.pid).result(10) == worker


def test_an_error_of_the_worker_itself_is_printed_before_it_ends(capfd):
    with BilliardExecutor(1) as executor:
        with pytest.raises(WorkerLostError, match="exit code 1"):
            executor.submit(tasks.break_the_worker).result(10)
        assert "TypeError: 'NoneType' object is not callable" in capfd.readouterr().err
        assert executor.submit(tasks.square, 2).result(10) == 4


@pytest.mark.parametrize("code", [0, 1, 155])
def test_os_exit_fails_only_its_own_task(executor, code):
    start = time.monotonic()
    with pytest.raises(WorkerLostError, match=f"exit code {code}"):
        executor.submit(tasks.os_exit, code).result(10)
    assert time.monotonic() - start < 5
    assert executor.map(tasks.square, range(4)) == [0, 1, 4, 9]


def test_a_worker_killed_while_idle_is_replaced_and_no_task_notices(executor):
    for _ in range(3):
        os.kill(executor.worker_pids()[0], signal.SIGKILL)
        assert executor.map(tasks.square, range(50), chunksize=1) == [n * n for n in range(50)]


def test_all_workers_killed_at_once_are_all_replaced(executor):
    for _ in range(3):
        pids = wait_until("two workers", lambda: pids if len(pids := executor.worker_pids()) == 2 else None)
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        assert executor.map(tasks.square, range(50), chunksize=1) == [n * n for n in range(50)]


def test_a_stopped_worker_under_a_hard_limit_is_killed_and_replaced(executor):
    job = executor.options(timeout=0.6).submit(tasks.sleep, 60)
    wait_until("the task runs", job.worker_pids)
    (pid,) = job.worker_pids()
    os.kill(pid, signal.SIGSTOP)
    with pytest.raises(TimeLimitExceeded):
        job.result(10)
    wait_until("the stopped worker is gone", lambda: not alive(pid))
    assert executor.map(tasks.square, range(4)) == [0, 1, 4, 9]


def test_a_task_in_the_pipe_of_a_stopped_worker_meets_its_limit_too():
    with BilliardExecutor(1) as executor:
        pid = executor.submit(tasks.pid).result(30)
        os.kill(pid, signal.SIGSTOP)
        with pytest.raises(TimeLimitExceeded):
            executor.options(timeout=0.3).submit(tasks.square, 2).result(10)
        assert executor.submit(tasks.square, 3).result(10) == 9


def test_short_tasks_behind_a_stopped_worker_go_to_the_other(executor):
    executor.map(tasks.square, range(200), chunksize=1)
    victim = executor.worker_pids()[0]
    os.kill(victim, signal.SIGSTOP)
    try:
        futures = [executor.submit(tasks.square, n) for n in range(200)]
        wait_until("all but the one in its hands are done", lambda: sum(f.done() for f in futures) >= 199, 20)
    finally:
        os.kill(victim, signal.SIGCONT)
    assert [future.result(20) for future in futures] == [n * n for n in range(200)]


def test_a_worker_killed_while_it_receives_a_long_task(executor):
    data = b"x" * (64 << 20)
    job = executor.submit(tasks.echo, data)
    wait_until("a worker has the task", lambda: job.member is not None or job.done())
    for pid in executor.worker_pids():
        os.kill(pid, signal.SIGKILL)
    error = job.exception(60)
    assert error is None or isinstance(error, WorkerLostError)
    assert executor.submit(tasks.echo, b"y" * 200_000).result(60) == b"y" * 200_000


def test_a_worker_killed_while_it_sends_a_long_result(executor):
    job = executor.submit(tasks.allocate, 1)
    assert job.result(30) == 1 << 20
    job = executor.submit(tasks.echo, b"x" * (32 << 20))
    wait_until("the task runs", lambda: job.running() and job.started_at)
    pids = job.worker_pids()
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    error = job.exception(60)
    assert error is None or isinstance(error, WorkerLostError)
    assert executor.submit(tasks.square, 3).result(30) == 9


def test_unpicklable_results_and_exceptions_fail_only_their_own_task(executor):
    neighbour = executor.submit(tasks.sleep_then, 0.5, "fine")
    pid_before = set(executor.worker_pids())
    for function, words in (
        (tasks.return_unpicklable, "result of type PicklesNowhere"),
        (tasks.return_broken, "rebuil"),
        (tasks.raise_unrebuildable, "NeedsTwoArguments"),
        (tasks.raise_with_unpicklable_inside, "ValueError"),
    ):
        error = executor.submit(function).exception(30)
        assert isinstance(error, UnpicklableError), function
        assert words in str(error)
    assert "1 and 2" in str(executor.submit(tasks.raise_unrebuildable).exception(30))
    assert isinstance(executor.submit(tasks.echo, tasks.BreaksWhenRebuilt()).exception(30), UnpicklableError)
    assert neighbour.result(10) == "fine"
    assert set(executor.worker_pids()) == pid_before


@pytest.mark.parametrize(
    ("function", "args", "words"),
    [
        (tasks.exit_with, (3,), "SystemExit(3)"),
        (tasks.exit_with, (0,), "SystemExit(0)"),
        (tasks.interrupt, (), "KeyboardInterrupt()"),
    ],
)
def test_what_would_end_a_program_ends_only_the_task(executor, function, args, words):
    pids = set(executor.worker_pids())
    error = executor.submit(function, *args).exception(30)
    assert isinstance(error, TaskExitError)
    assert words in str(error)
    assert executor.map(tasks.square, range(4)) == [0, 1, 4, 9]
    assert set(executor.worker_pids()) == pids


def test_a_task_that_closes_the_standard_streams_harms_no_later_task():
    with BilliardExecutor(1) as executor:
        first = executor.submit(tasks.pid).result(30)
        assert executor.submit(tasks.close_standard_streams).result(30) == "closed"
        assert executor.submit(tasks.print_something).result(30) == "printed"
        assert executor.submit(tasks.pid).result(30) != first


def test_a_task_that_closes_every_descriptor_fails_with_the_reason(executor):
    with pytest.raises(WorkerLostError, match="file descriptors"):
        executor.submit(tasks.close_every_descriptor).result(30)
    assert executor.map(tasks.square, range(4)) == [0, 1, 4, 9]


def test_a_task_that_forks_and_returns_twice_answers_once(executor):
    for _ in range(5):
        assert executor.submit(tasks.fork_and_both_return).result(30) == "parent"
    assert executor.map(tasks.square, range(20), chunksize=1) == [n * n for n in range(20)]


def test_a_task_that_daemonises_fails_and_its_daemon_dies(executor, tmp_path):
    path = tmp_path / "pid"
    with pytest.raises(WorkerLostError, match="exit code 0"):
        executor.submit(tasks.daemonise, str(path)).result(30)
    if path.exists():
        daemon = int(path.read_text())
        wait_until("the daemon is dead", lambda: not alive(daemon))
    assert executor.map(tasks.square, range(4)) == [0, 1, 4, 9]


def test_a_killed_tasks_children_die_with_it(executor, tmp_path):
    path = tmp_path / "pids"
    job = executor.options(timeout=8).submit(tasks.start_children, str(path), 60)
    pids = read_pids(path)
    assert all(alive(pid) for pid in pids)
    os.kill(job.worker_pids()[0], signal.SIGKILL)
    assert isinstance(job.exception(10), WorkerLostError)
    wait_until("all three are dead", lambda: not any(alive(pid) for pid in pids))


def test_a_task_over_its_limit_takes_its_children_along(executor, tmp_path):
    path = tmp_path / "pids"
    job = executor.options(timeout=3).submit(tasks.start_children, str(path), 60)
    pids = read_pids(path)
    assert isinstance(job.exception(10), TimeLimitExceeded)
    wait_until("all three are dead", lambda: not any(alive(pid) for pid in pids))


def test_a_task_that_takes_the_signals_for_itself_cannot_disarm_the_next_ones(tmp_path):
    with BilliardExecutor(1) as executor:
        assert executor.submit(tasks.take_signals, str(tmp_path / "note")).result(30) == "ignored"
        from slotline.workers import SoftTimeLimitExceeded

        with pytest.raises(SoftTimeLimitExceeded):
            executor.options(soft_timeout=0.2, timeout=20).submit(tasks.sleep, 60).result(30)


def test_a_task_may_use_the_standard_librarys_processes(executor):
    assert executor.submit(tasks.nested_stdlib_process).result(30) == 0


def test_a_killed_launcher_is_replaced_with_its_workers(executor, tmp_path):
    job = start_sleeping(executor, tmp_path)
    pids = executor.worker_pids()
    os.kill(executor._supervisor().crew.process.pid, signal.SIGKILL)
    assert isinstance(job.exception(20), WorkerLostError)
    wait_until("the old workers are dead", lambda: not any(alive(pid) for pid in pids))
    assert executor.map(tasks.square, range(4)) == [0, 1, 4, 9]


def test_a_stopped_launcher_delays_no_error(tmp_path):
    with BilliardExecutor(1) as executor:
        job = start_sleeping(executor, tmp_path)
        launcher = executor._supervisor().crew.process.pid
        os.kill(launcher, signal.SIGSTOP)
        try:
            os.kill(job.worker_pids()[0], signal.SIGKILL)
            assert isinstance(job.exception(5), WorkerLostError)
        finally:
            os.kill(launcher, signal.SIGCONT)
        assert executor.submit(tasks.square, 3).result(30) == 9


def test_nothing_leaks_over_kills_limits_large_payloads_and_restarts():
    def round_trip():
        with BilliardExecutor(2, allow_restart=True) as executor:
            executor.map(tasks.echo, [b"x" * 100_000] * 6, chunksize=1)
            jobs = [executor.options(timeout=0.1).submit(tasks.sleep, 60), executor.submit(tasks.kill_self)]
            jobs += [executor.submit(tasks.echo, b"y" * 500_000), executor.submit(tasks.os_exit, 0)]
            wait(jobs, 30)
            executor.restart()
            executor.grow()
            assert executor.submit(tasks.square, 3).result(30) == 9

    round_trip()
    before, named = leaks.measure(), segments()
    for _ in range(3):
        round_trip()
    wait_until("descriptors and threads are as before", lambda: not leaks.measure().exceeds(before))
    assert segments() <= named


def segments():
    """Return what is in /dev/shm, other programs' semaphores left out."""
    return {name for name in leaks.measure().shm if not name.startswith("sem.")}


def churn(executor, rounds, rng):
    """Kill workers at random while tasks of every kind run; return how many tasks were killed."""
    with ThreadPoolExecutor(2) as patient:
        return _churn(executor, rounds, rng, patient)


def hand_in_and_wait(executor, number):
    return executor.submit(tasks.square, number).result()


def _churn(executor, rounds, rng, patient):
    jobs, killed = [], 0
    for _ in range(rounds):
        kind = rng.random()
        if kind < 0.2:
            jobs.append((patient.submit(hand_in_and_wait, executor, 7), 49))
        elif kind < 0.6:
            jobs.append((executor.submit(tasks.square, 3), 9))
        elif kind < 0.8:
            jobs.append((executor.submit(tasks.sleep, rng.random() / 50), None))
        elif kind < 0.9:
            jobs.append((executor.submit(tasks.echo, b"z" * rng.choice([10, 70_000, 300_000])), None))
        else:
            jobs.append((executor.options(timeout=0.05).submit(tasks.sleep, rng.choice([0.01, 10])), None))
        if rng.random() < 0.5:
            pids = executor.worker_pids()
            if pids:
                killed += 1
                with contextlib.suppress(ProcessLookupError):
                    os.kill(rng.choice(pids), signal.SIGKILL)
        if rng.random() < 0.05:
            wait([job for job, _ in jobs], 60)
    assert not wait([job for job, _ in jobs], 120).not_done
    for job, value in jobs:
        error = job.exception(0)
        assert error is None or isinstance(error, WorkerLostError | TimeLimitExceeded | Terminated), error
        assert error is not None or value is None or job.result(0) == value
    assert executor.submit(tasks.square, 5).result(60) == 25
    return killed


def test_random_kills_leave_no_future_unresolved():
    with BilliardExecutor(3) as executor:
        assert churn(executor, 200, random.Random(7)) > 50


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_ten_thousand_random_kills_leave_no_future_unresolved_and_nothing_behind():
    with BilliardExecutor(4) as executor:
        churn(executor, 500, random.Random(1))
        executor.apply_async(tasks.square, (3,), callback=lambda _: None).get(30)  # the callbacks' thread is there
        before, named = leaks.measure(), segments()
        killed = 0
        while killed < 10_000:
            killed += churn(executor, 2_000, random.Random(killed))
        wait_until("descriptors are as before", lambda: leaks.measure().fds <= before.fds + 4, 30)
        assert leaks.measure().threads <= before.threads
        assert segments() <= named
