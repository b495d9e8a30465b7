"""Threads that wait for tasks read the answers themselves; whatever comes in between, nobody waits for ever."""

import asyncio
import contextlib
import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor, wait

import psutil
import pytest

from slotline.workers import BilliardExecutor, WorkerLostError
from tests.harness.waiting import wait_until
from tests.integration import billiard_tasks as tasks

HABIT = 300
"""So many tasks handed in and waited for make it certain that a worker is kept in between."""


class AlarmError(Exception):
    pass


@pytest.fixture
def executor():
    with BilliardExecutor(2) as running:
        yield running


@pytest.fixture
def alone():
    with BilliardExecutor(1) as running:
        running.submit(tasks.pid).result(30)
        yield running


@contextlib.contextmanager
def alarm(handler, seconds):
    """Call ``handler`` in this thread after so many seconds."""
    before = signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def raise_alarm(*_):
    raise AlarmError


def get_into_the_habit(executor):
    for n in range(HABIT):
        assert executor.submit(tasks.square, n).result(30) == n * n


def lent(executor):
    return executor._supervisor().dispatcher.loans


def test_a_thread_that_always_waits_keeps_its_worker(executor):
    def loans():
        get_into_the_habit(executor)
        return lent(executor)

    wait_until("a worker is kept", loans, 60)
    wait_until("it is given back when nobody uses it", lambda: not lent(executor))


def test_a_task_that_nobody_waits_for_is_noticed_when_all_before_it_were_waited_for(executor):
    for _ in range(3):
        get_into_the_habit(executor)
        told = threading.Event()
        executor.submit(tasks.square, 2).add_done_callback(lambda _, told=told: told.set())
        assert told.wait(30)
        get_into_the_habit(executor)
        assert not wait([executor.submit(tasks.square, 3)], 30).not_done


def test_what_a_thread_in_the_habit_leaves_is_read_for_another(executor):
    get_into_the_habit(executor)
    job = executor.submit(tasks.sleep_then, 0.05, "done")
    with ThreadPoolExecutor(2) as others:
        assert [other.result(30) for other in [others.submit(job.result, 20) for _ in range(2)]] == ["done"] * 2


def test_many_threads_that_wait_and_some_that_do_not_all_get_their_own(executor):
    def patient(start):
        return [executor.submit(tasks.square, n).result(60) for n in range(start, start + 150)]

    def hasty(start):
        futures = [executor.submit(tasks.echo, [n, b"x" * 70_000]) for n in range(start, start + 30)]
        assert not wait(futures, 60).not_done
        return [future.result(0)[0] for future in futures]

    with ThreadPoolExecutor(6) as threads:
        squares = [threads.submit(patient, n) for n in range(4)]
        numbers = [threads.submit(hasty, n) for n in range(2)]
        assert [f.result(90) for f in squares] == [[n * n for n in range(s, s + 150)] for s in range(4)]
        assert [f.result(90) for f in numbers] == [list(range(s, s + 30)) for s in range(2)]


def test_a_time_out_leaves_the_task_to_whoever_waits_next(alone):
    job = alone.submit(tasks.sleep_then, 0.3, "done")
    with pytest.raises(TimeoutError):
        job.result(0.02)
    with pytest.raises(TimeoutError):
        job.get(0)
    assert not wait([job], 30).not_done
    assert job.result(0) == "done"


def test_a_task_that_is_taken_back_while_somebody_waits_for_it_runs_elsewhere():
    with BilliardExecutor(1, allow_restart=True) as executor:
        pid = executor.submit(tasks.pid).result(30)
        os.kill(pid, signal.SIGSTOP)
        wait_until("it stands still", lambda: psutil.Process(pid).status() == psutil.STATUS_STOPPED)
        job = executor.submit(tasks.pid)
        with ThreadPoolExecutor(1) as other:
            waiting = other.submit(job.result, 60)
            wait_until("it is waited for", lambda: job.member is not None and job.member.reader is not None)
            executor.restart()
            os.kill(pid, signal.SIGCONT)
            assert waiting.result(60) != pid


def test_a_worker_that_dies_while_somebody_waits_fails_the_task_and_nothing_else(alone, tmp_path):
    get_into_the_habit(alone)
    begun = tmp_path / "begun"
    job = alone.submit(tasks.touch_and_sleep, str(begun), 60)
    with ThreadPoolExecutor(1) as other:
        waiting = other.submit(job.exception, 60)
        wait_until("the task has begun", begun.exists, 30)
        wait_until("it is waited for", lambda: job.member is not None and job.member.reader is not None)
        os.kill(job.worker_pids()[0], signal.SIGKILL)
        assert isinstance(waiting.result(30), WorkerLostError)
    assert alone.submit(tasks.square, 3).result(30) == 9


def test_a_signal_handler_that_raises_while_its_thread_waits_leaves_the_task_alone(alone):
    job = alone.submit(tasks.sleep_then, 0.5, "done")
    with alarm(raise_alarm, 0.1), pytest.raises(AlarmError):
        job.result(30)
    assert job.result(30) == "done"
    assert alone.submit(tasks.square, 3).result(30) == 9


def test_a_signal_handler_may_wait_for_a_task_of_its_own(executor):
    answers = []
    job = executor.submit(tasks.sleep_then, 0.5, "done")
    with alarm(lambda *_: answers.append(executor.submit(tasks.square, 5).result(30)), 0.1):
        assert job.result(30) == "done"
    assert answers == [25]
    assert executor.submit(tasks.square, 3).result(30) == 9


def test_an_answer_whose_handling_is_interrupted_fails_its_task_and_its_worker_is_replaced(alone, monkeypatch):
    pid = alone.submit(tasks.pid).result(30)
    dispatcher = alone._supervisor().dispatcher
    refill = dispatcher.refill

    def interrupted(member):
        monkeypatch.setattr(dispatcher, "refill", refill)
        raise AlarmError

    job = alone.submit(tasks.sleep_then, 0.3, 1)
    monkeypatch.setattr(dispatcher, "refill", interrupted)
    with pytest.raises(AlarmError):
        job.result(30)
    with pytest.raises(WorkerLostError, match="interrupted"):
        job.result(30)
    assert alone.submit(tasks.pid).result(30) != pid


def test_who_waits_for_a_result_rebuilds_it(alone):
    assert alone.submit(tasks.result_that_tells).result(30).thread is threading.current_thread()
    assert isinstance(alone.submit(tasks.fail, "no luck").exception(30), ValueError)


def test_rebuilding_a_result_that_is_interrupted_fails_its_task_alone(alone):
    pid = alone.submit(tasks.pid).result(30)
    job = alone.submit(tasks.result_that_tells, interrupt=True, seconds=0.3)  # so that it is waited for by then
    with pytest.raises(KeyboardInterrupt):
        job.result(30)
    assert isinstance(job.exception(30), WorkerLostError)
    assert alone.submit(tasks.pid).result(30) == pid


def test_rebuilding_a_result_that_nobody_waits_for_fails_its_task_alone_where_it_is_interrupted(alone, caplog):
    pid = alone.submit(tasks.pid).result(30)
    job = alone.submit(tasks.result_that_tells, interrupt=True)
    wait_until("the task is over", job.done, 30)
    with pytest.raises(WorkerLostError, match="KeyboardInterrupt"):
        job.result(0)
    job = alone.submit(tasks.result_that_tells)
    wait_until("the next is over", job.done, 30)
    assert job.result(0).thread is not threading.current_thread()
    assert alone.submit(tasks.pid).result(30) == pid
    assert "wanted to end its thread" in caplog.text


def test_a_callback_that_takes_its_time_does_not_hold_up_who_waits(alone):
    go_on = threading.Event()
    job = alone.submit(tasks.sleep_then, 0.1, "done")
    job.add_done_callback(lambda _: go_on.wait(30))
    try:
        assert job.result(30) == "done"
        assert not go_on.is_set()
    finally:
        go_on.set()


async def test_an_event_loop_does_not_wait_for_a_callback_that_takes_its_time(alone):
    go_on, called = threading.Event(), threading.Event()
    alone.submit(tasks.square, 2).add_done_callback(lambda _: called.set() or go_on.wait(60))
    assert await asyncio.to_thread(called.wait, 30)
    try:
        assert await asyncio.wait_for(asyncio.wrap_future(alone.submit(tasks.square, 3)), 30) == 9
    finally:
        go_on.set()


def test_a_forked_child_takes_no_answer_away_from_its_parent(alone):
    job = alone.submit(tasks.sleep_then, 0.5, "done")
    child = os.fork()
    if child == 0:
        code = 1
        with contextlib.suppress(BaseException):
            job.result(1)
        if not job.done():
            code = 0
        os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert job.result(30) == "done"


def test_shutdown_waits_for_a_last_result_that_is_long_and_then_ends(executor):
    job = executor.submit(tasks.sleep_then, 0.2, b"x" * (8 << 20))
    ending = threading.Thread(target=executor.shutdown, daemon=True)
    ending.start()
    ending.join(60)
    assert not ending.is_alive()
    assert len(job.result(0)) == 8 << 20


def test_shutdown_ends_while_somebody_waits_for_the_last_result(executor):
    get_into_the_habit(executor)
    job = executor.submit(tasks.sleep_then, 0.2, "done")
    with ThreadPoolExecutor(2) as others:
        waiting = others.submit(job.result, 60)
        ending = others.submit(executor.shutdown)
        assert waiting.result(60) == "done"
        ending.result(60)
