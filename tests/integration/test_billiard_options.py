"""Every option of the process pool, at work."""

import os
import signal
import subprocess
import sys
import threading
import time

import billiard
import pytest

from slotline.workers import BilliardExecutor, RestartFreqExceeded, TimeLimitExceeded
from tests.harness.waiting import wait_until
from tests.integration import billiard_tasks as tasks


def test_processes_is_the_number_of_workers():
    with BilliardExecutor(processes=3) as executor:
        wait_until("three workers are ready", lambda: len(executor.worker_pids()) == 3, 30)
        wait_until("each has a sentinel", lambda: len(executor.process_sentinels) == 3, 30)


def test_processes_defaults_to_the_usable_processors():
    with BilliardExecutor() as executor:
        count = executor.cpu_count()
        wait_until("a worker for each processor", lambda: len(executor.worker_pids()) == count, 30)


def test_the_first_options_may_be_given_by_position_as_in_the_pool():
    with BilliardExecutor(1, tasks.remember, ("by position",)) as executor:
        assert executor.apply(tasks.recall) == "by position"


def test_initializer_and_initargs_run_in_each_worker_before_its_first_task():
    with BilliardExecutor(2, initializer=tasks.remember, initargs=("hello",)) as executor:
        assert set(executor.map(tasks.recall, range(8))) == {"hello"}


def test_maxtasksperchild_replaces_a_worker_after_that_many_tasks():
    with BilliardExecutor(1, maxtasksperchild=3) as executor:
        pids = [executor.apply(tasks.pid) for _ in range(9)]
    assert [pids.count(pid) for pid in dict.fromkeys(pids)] == [3, 3, 3]


def test_timeout_kills_every_task_that_takes_longer():
    with BilliardExecutor(1, timeout=0.3) as executor:
        first = executor.apply(tasks.pid)
        with pytest.raises(TimeLimitExceeded):
            executor.apply(tasks.stubborn, (60,))
        assert executor.apply(tasks.pid) != first


def test_soft_timeout_lets_a_task_clean_up(tmp_path):
    note = tmp_path / "note"
    with BilliardExecutor(1, soft_timeout=0.2) as executor:
        first = executor.apply(tasks.pid)
        assert executor.apply(tasks.clean_up_on_soft_limit, (str(note), 60)) == "cleaned"
        assert executor.apply(tasks.pid) == first
    assert note.read_text() == "cleaned"


def test_lost_worker_timeout_is_accepted_for_the_pool_and_for_a_task():
    with BilliardExecutor(1, lost_worker_timeout=0.5) as executor:
        result = executor.apply_async(tasks.os_exit, (0,), lost_worker_timeout=0.2)
        assert result.limits.lost_worker_timeout == 0.2
        assert "exit code 0" in str(result.exception(10))


def test_max_restarts_within_max_restart_freq_ends_the_executor():
    executor = BilliardExecutor(1, initializer=tasks.die_in_initializer, max_restarts=3, max_restart_freq=60)
    try:
        result = executor.submit(tasks.square, 2)
        with pytest.raises(RestartFreqExceeded, match="3 restarts"):
            result.result(30)
        with pytest.raises(RestartFreqExceeded):
            executor.submit(tasks.square, 2)
        with pytest.raises(RestartFreqExceeded):
            executor.maintain_pool()
        assert not executor.did_start_ok()
    finally:
        executor.terminate()
        executor.join()


def test_without_max_restarts_an_initializer_that_always_fails_ends_the_executor_with_its_traceback(caplog):
    executor = BilliardExecutor(1, initializer=tasks.broken_initializer)
    try:
        with pytest.raises(RestartFreqExceeded, match="the initializer cannot work"):
            executor.apply(tasks.square, (2,))
    finally:
        executor.shutdown()
    assert "broken_initializer" in caplog.text


def test_on_process_up_and_on_process_down_see_every_worker():
    ups, downs = [], []
    with BilliardExecutor(2, on_process_up=ups.append, on_process_down=lambda *args: downs.append(args)) as executor:
        wait_until("both workers are ready", lambda: len(executor.worker_pids()) == 2, 30)
        victim = executor.worker_pids()[0]
        os.kill(victim, signal.SIGKILL)
        wait_until("the death is told", lambda: downs)
        wait_until("the replacement is told", lambda: len(ups) == 3)
    assert downs[0] == (victim, -signal.SIGKILL)
    assert victim in ups
    assert sorted({up.index for up in ups}) == [0, 1]
    assert ups[0].pid == int(ups[0])
    assert ups[0].name.startswith("SlotlineWorker-")
    assert len(downs) == 3


def test_on_process_down_may_take_the_worker_alone_as_billiards_does():
    downs = []

    def down(worker):
        downs.append((worker.pid, worker.exitcode))

    with BilliardExecutor(1, on_process_down=down) as executor:
        pid = executor.apply(tasks.pid)
    assert downs == [(pid, 0)]


def test_on_process_exit_runs_in_a_worker_that_ends_in_good_order(tmp_path, monkeypatch):
    exits = tmp_path / "exits"
    monkeypatch.setenv("SLOTLINE_TEST_EXITS", str(exits))
    with BilliardExecutor(1, maxtasksperchild=1, on_process_exit=tasks.note_exit) as executor:
        pid = executor.apply(tasks.pid)
        executor.apply(tasks.pid)
    noted = dict(line.split() for line in exits.read_text().splitlines())
    assert noted[str(pid)] == "155"


def test_on_timeout_set_and_on_timeout_cancel_frame_a_task_with_limits():
    seen = []
    with BilliardExecutor(
        1,
        on_timeout_set=lambda job, soft, hard: seen.append(("set", job, soft, hard)),
        on_timeout_cancel=lambda job: seen.append(("cancel", job)),
    ) as executor:
        limited = executor.apply_async(tasks.square, (3,), soft_timeout=8, timeout=9)
        assert limited.get(30) == 9
        assert executor.apply(tasks.square, (4,)) == 16
    assert seen == [("set", limited, 8, 9), ("cancel", limited)]


def test_threads_false_leaves_the_work_to_those_who_wait():
    before = set(threading.enumerate())
    executor = BilliardExecutor(2, threads=False)
    try:
        assert executor.submit(tasks.square, 5).result(30) == 25
        assert executor.map(tasks.square, range(20)) == [x * x for x in range(20)]
        assert sorted(executor.imap_unordered(tasks.square, range(20))) == sorted(x * x for x in range(20))
        with pytest.raises(TimeLimitExceeded):
            executor.options(timeout=0.2).submit(tasks.sleep, 60).result(30)
        seen = []
        result = executor.apply_async(
            tasks.gadget, (1,), callback=lambda _: seen.append(executor.apply(tasks.square, (2,)))
        )
        assert result.get(30) == tasks.Gadget(1)
        assert executor.apply_async(tasks.fail, ("no",), error_callback=seen.append).exception(30) is not None
        executor.handle_result_event()
        assert [type(entry) for entry in seen] == [int, ValueError]
        assert set(threading.enumerate()) == before
    finally:
        executor.shutdown()


def test_callbacks_of_a_pool_without_threads_may_use_it():
    seen = []

    def on_timeout_set(job, soft, hard):
        seen.append(executor.apply(tasks.square, (hard,)))

    executor = BilliardExecutor(2, threads=False, on_timeout_set=on_timeout_set)
    try:
        assert executor.options(timeout=9).submit(tasks.square, 3).result(30) == 9
        executor.handle_result_event()
        assert seen == [81]
    finally:
        executor.shutdown()


def test_threads_false_can_be_driven_by_an_event_loop():
    import select

    executor = BilliardExecutor(1, threads=False)
    try:
        results = [executor.submit(tasks.square, number) for number in range(10)]
        deadline = time.monotonic() + 30
        while not all(result.done() for result in results):
            assert time.monotonic() < deadline
            select.select([executor.fileno()], [], [], 1)
            executor.handle_result_event(executor.fileno(), select.EPOLLIN)
            executor.maintain_pool()
        assert [result.result(0) for result in results] == [x * x for x in range(10)]
        assert executor.did_start_ok()
    finally:
        executor.shutdown()


class CountingSemaphore:
    def __init__(self, value):
        self.inner = threading.Semaphore(value)
        self.taken = self.released = 0

    def acquire(self, blocking=True):
        self.taken += 1
        return self.inner.acquire(blocking)

    def release(self):
        self.released += 1
        self.inner.release()


def test_a_semaphore_bounds_the_unfinished_tasks_that_wait_for_a_slot():
    semaphore = CountingSemaphore(1)
    with BilliardExecutor(2, semaphore=semaphore) as executor:
        executor.apply(tasks.pid)
        assert semaphore.taken == 0
        first = executor.apply_async(tasks.sleep_then, (0.4, "first"), waitforslot=True)
        second = executor.apply_async(tasks.square, (2,), waitforslot=True)
        assert semaphore.released >= 1
        assert (first.get(10), second.get(10)) == ("first", 4)
        wait_until("every place is given back", lambda: semaphore.taken == semaphore.released == 2)


def test_putlocks_makes_every_task_wait_for_a_place():
    with BilliardExecutor(1, putlocks=True) as executor:
        executor.apply(tasks.pid)
        began = time.monotonic()
        executor.submit(tasks.sleep, 0.4)
        running = executor.submit(tasks.sleep, 60)
        assert time.monotonic() - began > 0.4
        executor.apply_async(tasks.square, (1,), waitforslot=False)
        assert not running.done()
        executor.terminate()


def test_a_place_is_given_back_by_a_task_that_is_killed_cancelled_or_unpicklable():
    with BilliardExecutor(1, putlocks=True) as executor:
        for _ in range(3):
            with pytest.raises(Exception, match="lost"):
                executor.apply(tasks.os_exit, (1,))
            assert executor.submit(lambda: None).exception(10) is not None
        running = executor.apply_async(tasks.sleep, (0.3,), waitforslot=False)
        executor.apply_async(tasks.square, (2,), waitforslot=True).cancel()
        assert running.get(10) == 0.3
        assert executor.submit(tasks.square, 3).result(10) == 9


def test_allow_restart_lets_the_workers_be_replaced():
    with BilliardExecutor(2, allow_restart=True) as executor:
        wait_until("both workers are ready", lambda: len(executor.worker_pids()) == 2, 30)
        before = set(executor.worker_pids())
        busy = executor.submit(tasks.sleep_then, 0.5, "finished")
        executor.restart()
        assert busy.result(10) == "finished"
        wait_until("two new workers", lambda: len(pids := set(executor.worker_pids())) == 2 and not pids & before)


def test_restart_without_allow_restart_is_refused():
    with BilliardExecutor(1) as executor, pytest.raises(RuntimeError, match="allow_restart=True"):
        executor.restart()


def test_synack_has_every_worker_ask_before_it_starts_a_task():
    asked, gate, answers = threading.Event(), threading.Event(), []

    class Recording(BilliardExecutor):
        def send_ack(self, response, job, i, fd):
            answers.append(response)
            super().send_ack(response, job, i, fd)

    def accept(pid, when):
        asked.set()
        gate.wait(10)

    with Recording(1, synack=True) as executor:
        blocked = executor.apply_async(tasks.pid, accept_callback=accept)
        assert asked.wait(30)
        gate.set()
        assert blocked.get(10)
        assert executor.apply(tasks.square, (3,)) == 9
        assert answers == [0, 0]


def test_synack_does_not_start_a_task_that_was_cancelled_in_a_workers_hands(tmp_path):
    path = tmp_path / "ran"
    hold, held = threading.Event(), threading.Event()

    def hold_the_callbacks(_value):
        held.set()
        hold.wait(10)

    with BilliardExecutor(1, synack=True) as executor:
        executor.apply_async(tasks.square, (1,), callback=hold_the_callbacks)
        assert held.wait(30)
        asked = executor.submit(tasks.touch_and_sleep, str(path), 0)
        wait_until("a worker has the task", lambda: asked.member is not None)
        assert asked.cancel()
        hold.set()
        assert executor.apply(tasks.square, (2,)) == 4
    assert asked.cancelled()
    assert not path.exists()


def test_an_accept_callback_that_fails_under_synack_keeps_the_task_from_starting(tmp_path):
    path = tmp_path / "ran"

    def refuse(pid, when):
        raise LookupError("not this one")

    with BilliardExecutor(1, synack=True) as executor:
        result = executor.apply_async(tasks.touch_and_sleep, (str(path), 0), accept_callback=refuse)
        with pytest.raises(LookupError, match="not this one"):
            result.get(30)
        assert executor.apply(tasks.square, (2,)) == 4
    assert not path.exists()


@pytest.mark.leaves("processes", reason="billiard's fork server serves its process to the end")
@pytest.mark.parametrize("method", ["spawn", "forkserver", "fork"])
def test_context_chooses_how_the_first_process_is_started(method):
    with BilliardExecutor(1, context=billiard.get_context(method)) as executor:
        assert executor.apply(tasks.square, (6,)) == 36
        executor.submit(tasks.os_exit, 3).exception(10)
        assert executor.apply(tasks.square, (7,)) == 49


def test_context_may_be_a_name_or_a_context_of_the_standard_library():
    import multiprocessing

    for context in ("spawn", multiprocessing.get_context("spawn")):
        with BilliardExecutor(1, context=context) as executor:
            assert executor.apply(tasks.square, (6,)) == 36


def test_max_memory_per_child_replaces_a_worker_that_has_grown():
    with BilliardExecutor(1, max_memory_per_child=120_000) as executor:
        first = executor.apply(tasks.pid)
        assert executor.apply(tasks.pid) == first
        assert executor.apply(tasks.allocate, (200,)) == 200 * 1024 * 1024
        assert executor.apply(tasks.pid) != first


def test_max_memory_of_a_task_is_a_memory_error_in_it():
    with BilliardExecutor(1) as executor:
        first = executor.apply(tasks.pid)
        with pytest.raises(MemoryError):
            executor.options(max_memory=100_000).submit(tasks.allocate, 300).result(30)
        assert executor.apply(tasks.allocate, (300,)) == 300 * 1024 * 1024
        assert executor.apply(tasks.pid) == first


def test_enable_timeouts_is_accepted_and_limits_work_without_it():
    for given in (True, False):
        with BilliardExecutor(1, enable_timeouts=given) as executor:
            executor.apply(tasks.pid)
            with pytest.raises(TimeLimitExceeded):
                executor.apply_async(tasks.sleep, (60,), timeout=0.2).get(30)


UNDER_GEVENT = """
from gevent import monkey

monkey.patch_all()
from slotline.errors import UnsupportedBackendError
from slotline.workers import BilliardExecutor

try:
    BilliardExecutor(1)
except UnsupportedBackendError as error:
    print(error)
"""


def test_under_gevent_making_one_says_what_to_use_there():
    done = subprocess.run([sys.executable, "-c", UNDER_GEVENT], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.startswith("BilliardExecutor does not run under gevent"), done.stderr
    assert "'process' backend" in done.stdout
