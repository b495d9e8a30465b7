"""Every method of billiard's ``Pool``, as the process pool has it."""

import os
import pickle
import select
import signal
import threading
import time
from pathlib import Path

import billiard
import pytest

from slotline.workers import (
    BilliardExecutor,
    ExecutorClosedError,
    SoftTimeLimitExceeded,
    Terminated,
    TimeLimitExceeded,
    UnpicklableError,
    WorkerLostError,
)
from tests.harness.waiting import wait_until
from tests.integration import billiard_tasks as tasks


@pytest.fixture
def pool():
    with BilliardExecutor(2) as executor:
        wait_until("both workers are ready", lambda: len(executor.worker_pids()) == 2, 30)
        yield executor


def test_apply_takes_args_and_kwds(pool):
    assert pool.apply(tasks.keywords, (1, 2), {"a": 3}) == ((1, 2), {"a": 3})
    assert pool.apply(tasks.keywords) == ((), {})
    assert pool.apply(tasks.keywords, args=[1], kwds={}) == ((1,), {})


def test_apply_async_calls_back_with_the_value(pool):
    values, errors = [], []
    result = pool.apply_async(tasks.square, (4,), callback=values.append, error_callback=errors.append)
    assert result.get(10) == 16
    wait_until("the callback has run", lambda: values == [16])
    assert errors == []


def test_apply_async_calls_back_with_the_error_itself(pool):
    values, errors = [], []
    result = pool.apply_async(tasks.fail, ("no",), callback=values.append, error_callback=errors.append)
    with pytest.raises(ValueError, match="no"):
        result.get(10)
    wait_until("the callback has run", lambda: errors)
    assert type(errors[0]) is ValueError
    assert values == []


def test_accept_callback_gets_the_workers_pid_and_the_time(pool):
    seen = []
    before = time.monotonic()
    result = pool.apply_async(tasks.pid, accept_callback=lambda pid, when: seen.append((pid, when)))
    pid = result.get(10)
    wait_until("the callback has run", lambda: seen)
    assert seen[0][0] == pid
    assert before <= seen[0][1] <= time.monotonic()
    assert result.time_accepted == seen[0][1]


def test_timeout_callback_hears_of_the_soft_and_of_the_hard_limit(pool):
    seen = []
    result = pool.apply_async(
        tasks.stubborn, (60,), timeout_callback=lambda **limit: seen.append(limit), soft_timeout=0.1, timeout=0.4
    )
    with pytest.raises(TimeLimitExceeded) as caught:
        result.get(10)
    assert caught.value.args == (0.4,)
    wait_until("both limits are told", lambda: len(seen) == 2)
    assert seen == [{"soft": True, "timeout": 0.1}, {"soft": False, "timeout": 0.4}]


def test_a_soft_limit_is_an_exception_in_the_task(pool):
    with pytest.raises(SoftTimeLimitExceeded):
        pool.apply_async(tasks.sleep, (60,), soft_timeout=0.1).get(10)
    with pytest.raises(SoftTimeLimitExceeded):
        pool.options(soft_timeout=0.1).submit(tasks.sleep, 60).result(10)


def test_callbacks_propagate_turns_a_callbacks_error_into_the_tasks(pool):
    def picky(_value):
        raise LookupError("the callback objects")

    for propagate in (LookupError, (LookupError,), [LookupError]):
        with pytest.raises(LookupError, match="objects"):
            pool.apply_async(tasks.square, (1,), callback=picky, callbacks_propagate=propagate).get(10)


def test_other_errors_of_callbacks_are_logged_and_change_nothing(pool, caplog):
    def clumsy(_value):
        raise LookupError("the callback stumbles")

    assert pool.apply_async(tasks.square, (1,), callback=clumsy).get(10) == 1
    wait_until("the error is logged", lambda: "the callback stumbles" in caplog.text)
    assert pool.apply(tasks.square, (2,)) == 4


def test_correlation_id_stays_with_the_result(pool):
    assert pool.apply_async(tasks.square, (1,), correlation_id="request-1").correlation_id == "request-1"


def test_impossible_limits_of_a_task_are_refused_by_name(pool):
    for option in ("soft_timeout", "timeout", "lost_worker_timeout"):
        for value in (0, -1, True, float("nan"), float("inf"), "1"):
            with pytest.raises(ValueError, match=option):
                pool.apply_async(tasks.square, (1,), **{option: value})
            with pytest.raises(ValueError, match=option):
                pool.options(**{option: value})


def test_other_impossible_arguments_are_refused_by_name(pool):
    for option in ("callback", "error_callback", "accept_callback", "timeout_callback"):
        with pytest.raises(ValueError, match=option):
            pool.apply_async(tasks.square, (1,), **{option: 5})
    with pytest.raises(ValueError, match="waitforslot"):
        pool.apply_async(tasks.square, (1,), waitforslot=1)
    with pytest.raises(ValueError, match="chunksize"):
        pool.map(tasks.square, [1], chunksize=0)
    with pytest.raises(ValueError, match="max_memory"):
        pool.options(max_memory=0.5)
    for method in (pool.grow, pool.shrink):
        with pytest.raises(ValueError, match="n="):
            method(0)


def test_results_get_wait_ready_and_successful(pool):
    result = pool.apply_async(tasks.sleep_then, (0.5, "done"))
    assert not result.ready()
    with pytest.raises(ValueError, match="not ready"):
        result.successful()
    with pytest.raises(billiard.TimeoutError):
        result.get(timeout=0.01)
    with pytest.raises(TimeoutError):
        result.get(timeout=0.01)
    result.wait(0.01)
    result.wait()
    assert result.ready()
    assert result.successful()
    assert result.get() == "done"
    failed = pool.apply_async(tasks.fail, ("x",))
    failed.wait(10)
    assert failed.ready()
    assert not failed.successful()
    assert repr(failed)


def test_a_tasks_own_timeout_error_is_not_taken_for_a_wait_that_ran_out(pool):
    with pytest.raises(TimeoutError, match="the task's own"):
        pool.apply_async(tasks.fail_with, (TimeoutError("the task's own"),)).get(10)


def test_a_result_can_be_terminated(pool, tmp_path):
    note = str(tmp_path / "note")
    running = pool.apply_async(tasks.finally_writes, (note, 60))
    wait_until("the task runs", (tmp_path / "note.started").exists)
    assert running.accepted()
    assert running.worker_pids()
    running.terminate(signal.SIGTERM)
    with pytest.raises(Terminated):
        running.get(10)
    assert (tmp_path / "note").read_text() == "finally"
    assert pool.apply(tasks.square, (3,)) == 9


def test_a_queued_result_can_be_terminated(pool):
    busy = [pool.submit(tasks.sleep, 0.5) for _ in range(2)]
    queued = pool.apply_async(tasks.square, (3,))
    queued.terminate(signal.SIGKILL)
    with pytest.raises(Terminated):
        queued.get(10)
    assert [task.result(10) for task in busy] == [0.5, 0.5]


def test_close_finishes_what_was_handed_in_and_join_waits_for_the_workers():
    executor = BilliardExecutor(1)
    results = [executor.apply_async(tasks.sleep_then, (0.1, number)) for number in range(4)]
    with pytest.raises(ValueError, match="close"):
        executor.join()
    executor.close()
    for call in (executor.submit, executor.apply, executor.apply_async):
        with pytest.raises(ExecutorClosedError):
            call(tasks.pid)
    with pytest.raises(RuntimeError):
        executor.map(tasks.square, [1])
    executor.join()
    assert [result.get(0) for result in results] == [0, 1, 2, 3]
    executor.join()
    executor.close()
    executor.terminate()


def test_terminate_fails_everything_at_once(tmp_path):
    executor = BilliardExecutor(2)
    executor.apply(tasks.pid)
    results = [executor.apply_async(tasks.stubborn, (60,)) for _ in range(5)]
    start = time.monotonic()
    executor.terminate()
    executor.join()
    assert time.monotonic() - start < 5
    for result in results:
        assert isinstance(result.exception(0), Terminated)


def test_terminate_can_say_why():
    executor = BilliardExecutor(1)
    running = executor.submit(tasks.sleep, 60)
    executor.terminate(LookupError("revoked"))
    executor.join()
    with pytest.raises(LookupError, match="revoked"):
        running.result(0)


def test_abort_kills_what_runs_and_stays_in_service(pool):
    jobs = [pool.submit(tasks.stubborn, 60) for _ in range(5)]
    wait_until("two run", lambda: sum(job.running() for job in jobs) == 2)
    pids = {pid for job in jobs for pid in job.worker_pids()}
    assert pool.abort(LookupError("revoked"), timeout=10) == 5
    for job in jobs:
        with pytest.raises(LookupError, match="revoked"):
            job.result(0)
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]
    assert pool.map(tasks.square, range(4)) == [0, 1, 4, 9]
    assert pool.abort() == 0


def test_grow_and_shrink_change_the_number_of_workers(pool):
    pool.grow(2)
    wait_until("four workers are ready", lambda: len(pool.worker_pids()) == 4)
    pool.shrink()
    wait_until("three workers are left", lambda: len(pool.process_sentinels) == 3)
    pool.shrink(2)
    wait_until("one worker is left", lambda: len(pool.process_sentinels) == 1)
    assert pool.apply(tasks.square, (3,)) == 9


def test_shrink_lets_busy_workers_end_their_task_first(pool):
    pool.grow(2)
    wait_until("four workers are ready", lambda: len(pool.worker_pids()) == 4)
    busy = [pool.submit(tasks.sleep, 0.6) for _ in range(4)]
    wait_until("all are busy", lambda: all(task.worker_pids() for task in busy))
    pids = [pid for task in busy for pid in task.worker_pids()]
    pool.shrink(1)
    pool.shrink(2)
    assert [task.result(10) for task in busy] == [0.6] * 4
    wait_until("one of them is left", lambda: len(pool.process_sentinels) == 1)
    assert pool.worker_pids()[0] in pids
    assert pool.map(tasks.square, range(4)) == [0, 1, 4, 9]


def test_shrink_leaves_one_worker(pool):
    with pytest.raises(ValueError, match="1 of 5"):
        pool.shrink(5)
    wait_until("one worker is left", lambda: len(pool.process_sentinels) == 1)
    assert pool.apply(tasks.square, (3,)) == 9


def test_terminate_job_ends_the_task_of_one_worker(pool):
    job = pool.submit(tasks.sleep, 60)
    wait_until("the task runs", job.worker_pids)
    (pid,) = job.worker_pids()
    pool.terminate_job(pid)
    with pytest.raises(Terminated) as caught:
        job.result(10)
    assert caught.value.args == (signal.SIGTERM,)
    job = pool.submit(tasks.stubborn, 60)
    wait_until("the task runs", job.worker_pids)
    pool.terminate_job(job.worker_pids()[0], signal.SIGKILL)
    with pytest.raises(Terminated):
        job.result(10)
    pool.terminate_job(1)
    assert pool.map(tasks.square, range(4)) == [0, 1, 4, 9]


def test_maintain_pool_replaces_dead_workers(pool):
    victim = pool.worker_pids()[0]
    os.kill(victim, signal.SIGKILL)
    pool.maintain_pool()
    wait_until("two other workers", lambda: len(pids := pool.worker_pids()) == 2 and victim not in pids)


def test_did_start_ok_until_a_worker_ends_unasked(pool):
    assert pool.did_start_ok()
    os.kill(pool.worker_pids()[0], signal.SIGKILL)
    wait_until("the death is noticed", lambda: not pool.did_start_ok())


def test_handle_result_event_is_harmless_where_a_thread_does_it(pool):
    pool.handle_result_event()
    pool.handle_result_event(5, select.EPOLLIN)
    assert pool.apply(tasks.square, (3,)) == 9


def test_cpu_count_is_what_this_process_may_use(pool):
    assert pool.cpu_count() == len(os.sched_getaffinity(0))


def test_process_sentinels_become_readable_when_their_worker_ends(pool):
    poll = select.poll()
    sentinels = pool.process_sentinels
    for sentinel in sentinels:
        poll.register(sentinel, select.POLLIN)
    assert poll.poll(0) == []
    assert len(sentinels) == 2


def test_on_job_ready_sees_every_outcome_before_its_future_does():
    seen = []

    class Watching(BilliardExecutor):
        def on_job_ready(self, job, i, obj, inqW_fd):  # noqa: N803 - billiard's name
            seen.append((job, i, obj))

    with Watching(1) as executor:
        good = executor.apply_async(tasks.square, (3,))
        bad = executor.apply_async(tasks.fail, ("no",))
        assert good.get(30) == 9
        assert isinstance(bad.exception(10), ValueError)
        assert executor.map(tasks.square, [1, 2], chunksize=1) == [1, 4]
    assert seen[0] == (good.number, None, (True, 9))
    assert seen[1][:2] == (bad.number, None)
    assert seen[1][2][0] is False
    assert isinstance(seen[1][2][1], ValueError)
    assert [entry[1] for entry in seen[2:]] == [0, 1]


def test_an_executor_that_loses_its_last_reference_ends():
    executor = BilliardExecutor(1)
    result = executor.submit(tasks.sleep_then, 0.2, "finished")
    supervisor = executor._running
    del executor
    assert result.result(30) == "finished"
    wait_until("the supervisor has ended", supervisor.ended.is_set, 20)


def test_an_executor_cannot_be_pickled(pool):
    with pytest.raises(NotImplementedError):
        pickle.dumps(pool)


def test_callbacks_that_take_their_time_delay_no_limit(pool):
    gate = threading.Event()
    pool.apply_async(tasks.square, (1,), callback=lambda _value: gate.wait(60))
    try:
        with pytest.raises(TimeLimitExceeded):
            pool.options(timeout=0.3).submit(tasks.sleep, 60).result(20)
        assert not gate.is_set()
    finally:
        gate.set()


def test_a_callback_may_use_the_executor(pool):
    seen = []
    pool.apply_async(
        tasks.square, (3,), callback=lambda value: seen.append(pool.submit(tasks.square, value).result(10))
    )
    wait_until("the inner task is done", lambda: seen == [81], 20)


def test_lambdas_and_local_classes_fail_only_their_own_task(pool):
    class Local:
        pass

    neighbour = pool.submit(tasks.sleep_then, 0.2, "fine")
    for task in (pool.submit(lambda: 1), pool.submit(tasks.echo, Local()), pool.submit(tasks.echo, threading.Lock())):
        assert isinstance(task.exception(10), UnpicklableError)
    with pytest.raises(UnpicklableError, match="lambda"):
        pool.map(lambda x: x, [1, 2, 3])
    assert neighbour.result(10) == "fine"


def test_a_lost_worker_is_named_with_what_happened(pool):
    with pytest.raises(WorkerLostError, match="SIGKILL"):
        pool.apply(tasks.kill_self)
    with pytest.raises(WorkerLostError, match="exit code 3"):
        pool.apply(tasks.os_exit, (3,))
    with pytest.raises(WorkerLostError, match="SIGSEGV"):
        pool.apply(tasks.kill_self, (signal.SIGSEGV,))
