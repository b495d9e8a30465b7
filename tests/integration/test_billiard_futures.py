"""The process pool as a ``concurrent.futures`` executor, and its maps."""

import asyncio
import itertools
import os
import threading
from concurrent.futures import ALL_COMPLETED, FIRST_COMPLETED, CancelledError, Executor, Future, as_completed, wait

import billiard
import pytest

from slotline.workers import BilliardExecutor, MapResult, Terminated, TimeLimitExceeded
from tests.harness.waiting import wait_until
from tests.integration import billiard_tasks as tasks


@pytest.fixture
def executor():
    with BilliardExecutor(2) as running:
        yield running


def test_it_is_an_executor_and_hands_out_futures(executor):
    assert isinstance(executor, Executor)
    future = executor.submit(tasks.keywords, 1, a=2)
    assert isinstance(future, Future)
    assert future.result(30) == ((1,), {"a": 2})


def test_submit_passes_keywords_named_like_its_own_parameters(executor):
    assert executor.submit(tasks.keywords, fn=1, self=2).result(30) == ((), {"fn": 1, "self": 2})


def test_an_error_keeps_its_type_and_carries_the_remote_traceback(executor):
    error = executor.submit(tasks.fail, "no luck").exception(30)
    assert type(error) is ValueError
    assert error.args == ("no luck",)
    assert "billiard_tasks.py" in str(error.__cause__)
    assert "raise ValueError(message)" in str(error.__cause__)


def test_a_queued_future_can_be_cancelled_and_a_running_one_cannot(executor):
    executor.submit(tasks.pid).result(30)
    busy = [executor.submit(tasks.sleep, 0.5) for _ in range(2)]
    queued = executor.submit(tasks.square, 2)
    told = []
    queued.add_done_callback(told.append)
    wait_until("both run", lambda: all(future.running() for future in busy))
    assert not busy[0].cancel()
    assert queued.cancel()
    assert queued.cancel()
    assert queued.cancelled()
    assert told == [queued]
    with pytest.raises(CancelledError):
        queued.result(0)
    assert wait([queued], 1).done == {queued}
    queued.wait(0)
    assert not queued.successful()
    assert [future.result(10) for future in busy] == [0.5, 0.5]
    assert not busy[0].cancel()


def test_wait_and_as_completed_take_its_futures(executor):
    slow, quick = executor.submit(tasks.sleep_then, 0.6, "slow"), executor.submit(tasks.sleep_then, 0.1, "quick")
    assert wait([slow, quick], 30, FIRST_COMPLETED).done == {quick}
    assert [future.result() for future in as_completed([slow, quick], 30)] == ["quick", "slow"]
    assert not wait([slow, quick], 30, ALL_COMPLETED).not_done


def test_done_callbacks_run_with_the_future(executor):
    told = []
    future = executor.submit(tasks.sleep_then, 0.1, 5)
    future.add_done_callback(lambda done: told.append((done.result(), threading.current_thread())))
    future.result(30)
    wait_until("the callback has run", lambda: told)
    assert told[0][0] == 5
    assert told[0][1].name != "slotline-supervisor"
    future.add_done_callback(lambda done: told.append("at once"))
    assert told[1] == "at once"


async def test_a_coroutine_awaits_its_futures(executor):
    loop = asyncio.get_running_loop()
    assert await loop.run_in_executor(executor, tasks.square, 7) == 49
    assert await asyncio.gather(*(asyncio.wrap_future(executor.submit(tasks.square, n)) for n in range(50))) == [
        n * n for n in range(50)
    ]
    with pytest.raises(TimeLimitExceeded):
        await loop.run_in_executor(executor.options(timeout=0.2), tasks.sleep, 60)


def test_shutdown_waits_for_the_work():
    executor = BilliardExecutor(1)
    futures = [executor.submit(tasks.sleep_then, 0.1, n) for n in range(3)]
    executor.shutdown(wait=True)
    assert [future.result(0) for future in futures] == [0, 1, 2]
    with pytest.raises(RuntimeError):
        executor.submit(tasks.pid)
    executor.shutdown()


def test_shutdown_without_wait_returns_at_once_and_the_work_is_finished():
    executor = BilliardExecutor(1)
    future = executor.submit(tasks.sleep_then, 2, "finished")
    executor.shutdown(wait=False)
    assert not future.done()
    assert future.result(30) == "finished"
    executor.join()


def test_shutdown_can_cancel_what_has_not_begun():
    executor = BilliardExecutor(1)
    executor.submit(tasks.pid).result(30)
    running = executor.submit(tasks.sleep_then, 0.4, "finished")
    queued = [executor.submit(tasks.square, n) for n in range(20)]
    wait_until("the first runs", running.running)
    executor.shutdown(wait=True, cancel_futures=True)
    assert running.result(0) == "finished"
    assert all(future.cancelled() for future in queued)


def test_a_with_block_that_fails_still_waits_for_the_work():
    futures = []

    def fails():
        with BilliardExecutor(1) as executor:
            futures.append(executor.submit(tasks.sleep_then, 0.1, "finished"))
            raise LookupError

    with pytest.raises(LookupError):
        fails()
    assert futures[0].result(0) == "finished"


def test_options_limit_a_task_and_leave_the_executor_as_it_is(executor):
    quick = executor.options(timeout=0.2, soft_timeout=None)
    with pytest.raises(TimeLimitExceeded):
        quick.submit(tasks.sleep, 60).result(30)
    assert executor.submit(tasks.sleep, 0.4).result(30) == 0.4
    with BilliardExecutor(1, timeout=0.2) as strict:
        assert strict.options(timeout=None).submit(tasks.sleep, 0.5).result(30) == 0.5


def test_a_view_offers_every_way_to_hand_in_work_and_cannot_end_the_executor(executor):
    view = executor.options(timeout=30)
    assert view.apply(tasks.square, (2,)) == 4
    assert view.apply_async(tasks.square, (3,)).get(30) == 9
    assert view.map(tasks.square, [1, 2]) == [1, 4]
    assert view.starmap(tasks.add, [(1, 2)]) == [3]
    assert list(view.imap(tasks.square, [1, 2])) == [1, 4]
    with view as same:
        assert same is view
    with pytest.raises(RuntimeError, match="shut"):
        view.shutdown()
    assert executor.apply(tasks.square, (2,)) == 4


# Maps.


def test_map_returns_the_list_of_results_in_order(executor):
    results = executor.map(tasks.square, range(100))
    assert results == [n * n for n in range(100)]
    assert isinstance(results, list)
    assert executor.map(tasks.square, []) == []
    assert executor.map(tasks.square, (n for n in range(5))) == [0, 1, 4, 9, 16]


def test_map_takes_the_pools_chunksize_by_position_and_by_name(executor):
    assert executor.map(tasks.square, range(10), 3) == [n * n for n in range(10)]
    assert executor.map(tasks.square, range(10), chunksize=100) == [n * n for n in range(10)]
    for size in (0, -1, 1.5, True, "3"):
        with pytest.raises(ValueError, match="chunksize"):
            executor.map(tasks.square, range(10), chunksize=size)


def test_map_takes_several_iterables_and_a_timeout_as_executors_do(executor):
    results = executor.map(tasks.add, range(5), itertools.count(10), timeout=30, chunksize=2)
    assert results == [10, 12, 14, 16, 18]
    assert next(results) == 10
    assert next(results) == 12
    with pytest.raises(TimeoutError):
        executor.map(tasks.sleep, [60] * 4, timeout=0.2)
    executor.abort()


def test_map_raises_the_first_error(executor):
    with pytest.raises(ValueError, match="is odd"):
        executor.map(tasks.odd_fails, range(10))


def test_map_under_a_time_limit_limits_each_call(executor):
    quick = executor.options(timeout=1.5)
    assert quick.map(tasks.sleep, [0.3] * 12, chunksize=12) == [0.3] * 12
    with pytest.raises(TimeLimitExceeded):
        quick.map(tasks.sleep, [0.01, 60, 0.01])


def test_starmap_unpacks_each_item(executor):
    assert executor.starmap(tasks.add, [(1, 2), (3, 4)]) == [3, 7]
    assert executor.starmap(tasks.add, zip(range(10), range(10), strict=True), 4) == [2 * n for n in range(10)]


def test_map_async_is_one_result_with_callbacks(executor):
    values, errors = [], []
    result = executor.map_async(tasks.square, range(10), 2, callback=values.append, error_callback=errors.append)
    assert isinstance(result, MapResult)
    assert isinstance(result, Future)
    assert result.get(30) == [n * n for n in range(10)]
    assert result.successful()
    assert result.accepted()
    wait_until("the callback has run", lambda: values == [[n * n for n in range(10)]])
    failed = executor.map_async(tasks.odd_fails, range(10), callback=values.append, error_callback=errors.append)
    with pytest.raises(ValueError, match="odd"):
        failed.get(30)
    wait_until("the error callback has run", lambda: len(errors) == 1)
    assert type(errors[0]) is ValueError
    assert len(values) == 1
    assert executor.map_async(tasks.square, []).get(1) == []


def test_starmap_async_is_one_result(executor):
    values = []
    result = executor.starmap_async(tasks.add, [(1, 2), (3, 4)], 1, values.append)
    assert result.get(30) == [3, 7]
    wait_until("the callback has run", lambda: values == [[3, 7]])


def test_a_map_can_be_terminated_and_cancelled(executor):
    executor.apply(tasks.pid)
    running = executor.map_async(tasks.sleep, [60] * 6, 1)
    wait_until("two parts run", lambda: len(running.worker_pids()) == 2)
    assert not running.cancel()
    assert not running.accepted()
    with pytest.raises(billiard.TimeoutError):
        running.get(0.01)
    running.terminate(9)
    with pytest.raises(Terminated):
        running.get(10)
    wait_until("every part is done", lambda: all(part.done() for part in running.parts))
    busy = [executor.submit(tasks.sleep, 0.4) for _ in range(2)]
    queued = executor.map_async(tasks.square, range(10))
    assert queued.cancel()
    assert queued.cancelled()
    assert [future.result(10) for future in busy] == [0.4, 0.4]
    assert executor.map(tasks.square, [3]) == [9]


def test_imap_yields_in_order_and_goes_on_after_an_error(executor):
    iterator = executor.imap(tasks.odd_fails, range(6))
    assert next(iterator) == 0
    with pytest.raises(ValueError, match="1 is odd"):
        next(iterator)
    assert iterator.next(timeout=30) == 2
    with pytest.raises(ValueError, match="3 is odd"):
        next(iterator)
    assert next(iterator) == 4
    with pytest.raises(ValueError, match="5 is odd"):
        next(iterator)
    with pytest.raises(StopIteration):
        next(iterator)
    assert list(executor.imap(tasks.square, range(20), chunksize=3)) == [n * n for n in range(20)]
    assert list(executor.imap(tasks.square, [])) == []


def test_imap_reads_an_endless_iterable_only_as_far_as_needed(executor):
    read = []

    def endless():
        for number in itertools.count():
            read.append(number)
            yield number

    iterator = executor.imap(tasks.square, endless())
    assert list(itertools.islice(iterator, 30)) == [n * n for n in range(30)]
    assert len(read) < 60


def test_imap_says_when_a_result_is_not_there_in_time(executor):
    iterator = executor.imap(tasks.sleep, [0.5])
    with pytest.raises(billiard.TimeoutError):
        iterator.next(timeout=0.01)
    assert iterator.next(timeout=30) == 0.5
    unordered = executor.imap_unordered(tasks.sleep, [0.5])
    with pytest.raises(TimeoutError):
        unordered.next(timeout=0.01)
    assert unordered.next(timeout=30) == 0.5


def test_imap_raises_what_its_iterable_raises_in_its_place(executor):
    def breaks():
        yield 1
        yield 2
        raise LookupError("no more")

    iterator = executor.imap(tasks.square, breaks())
    assert [next(iterator), next(iterator)] == [1, 4]
    with pytest.raises(LookupError, match="no more"):
        next(iterator)


def test_imap_unordered_yields_what_is_done_first(executor):
    executor.map(tasks.pid, range(8))
    assert list(executor.imap_unordered(tasks.sleep, [0.8, 0.05])) == [0.05, 0.8]
    assert sorted(executor.imap_unordered(tasks.square, range(20), chunksize=4)) == sorted(n * n for n in range(20))


def test_short_tasks_do_not_wait_behind_a_long_one(executor):
    executor.map(tasks.square, range(200), chunksize=1)
    blockers = []
    futures = []
    for round_number in range(300):
        if round_number == 150:
            blockers.append(executor.submit(tasks.sleep, 60))
        futures.append(executor.submit(tasks.square, round_number))
    assert [future.result(30) for future in futures] == [n * n for n in range(300)]
    assert not blockers[0].done()
    executor.terminate()


def test_large_payloads_travel_in_both_directions(executor):
    for size in (65_000, 65_536, 66_000, 1 << 20, 9 << 20):
        data = os.urandom(1024) * (size // 1024)
        assert executor.submit(tasks.echo, data).result(60) == data
    assert executor.map(tasks.echo, [b"x" * 300_000] * 8) == [b"x" * 300_000] * 8
    many = [os.urandom(300) * 1000 for _ in range(40)]
    assert [future.result(60) for future in [executor.submit(tasks.echo, data) for data in many]] == many
    assert executor.submit(tasks.echo, tasks.Gadget(list(range(50_000)))).result(60) == tasks.Gadget(
        list(range(50_000))
    )
    assert type(executor.submit(tasks.echo, bytearray(b"z" * 200_000)).result(30)) is bytearray
    big_error = executor.submit(tasks.fail, "e" * 300_000).exception(30)
    assert len(str(big_error)) == 300_000


def test_many_threads_share_an_executor(executor):
    results = {}

    def work(number):
        results[number] = [executor.submit(tasks.square, n).result(60) for n in range(50)]

    threads = [threading.Thread(target=work, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(results) == 16
    assert all(result == [n * n for n in range(50)] for result in results.values())


def test_a_forked_child_gets_workers_of_its_own_and_leaves_the_parents_alone(executor):
    parents = set(executor.map(tasks.pid, range(20)))
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            mine = {executor.submit(tasks.pid).result(60) for _ in range(5)}
            executor.shutdown()
            os.write(write, b"apart" if not mine & parents else b"shared")
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as answer:
        assert answer.read() == b"apart"
    os.waitpid(pid, 0)
    assert set(executor.map(tasks.pid, range(20))) <= set(executor.worker_pids())
    assert set(executor.worker_pids()) >= parents & set(executor.worker_pids()) != set()
