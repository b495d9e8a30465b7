"""The grinder: batches that do not wait for one another, and the rules of who may call what."""

from __future__ import annotations

import asyncio
import contextvars
import threading
import time

import pytest

from slotline.errors import LeaseExpiredError, ManagerClosedError, WorkExitedError
from slotline.leases import LeasedExecutorManager, WorkGrinder
from tests.harness.waiting import await_until

number = contextvars.ContextVar("number", default=0)


@pytest.fixture
async def manager():
    async with LeasedExecutorManager(max_pools=2, workers_per_pool=2) as made:
        yield made


@pytest.fixture
async def grinder(manager):
    async with WorkGrinder(executor_manager=manager, batch_size_threshold=2, max_wait_seconds=0.05) as made:
        yield made


async def test_results_and_errors_reach_whoever_submitted_the_item(grinder):
    answers = await asyncio.gather(
        grinder.submit(pow, 2, 3), grinder.submit(divmod, 1, 0), grinder.submit(dict, a=1), return_exceptions=True
    )
    assert answers[0] == 8
    assert isinstance(answers[1], ZeroDivisionError)
    assert answers[2] == {"a": 1}


async def test_the_owner_of_an_item_is_the_grinders_and_not_the_functions(grinder):
    assert await grinder.submit(dict, a=1, owner="customer:7") == {"a": 1}


async def test_a_full_batch_starts_at_once_and_a_thin_one_when_its_oldest_item_is_old_enough(manager):
    async with WorkGrinder(executor_manager=manager, batch_size_threshold=3, max_wait_seconds=2.0) as grinder:
        begun = time.monotonic()
        full = [await grinder.enqueue(time.monotonic) for _ in range(3)]
        thin = await grinder.enqueue(time.monotonic)
        assert max(await asyncio.gather(*full)) < begun + 2.0 <= await thin


async def test_one_lease_of_lease_seconds_serves_one_batch_and_is_named_by_owner_prefix(manager):
    def look():
        lease = manager.stats()["leases"][0]
        return lease["owner"], 110 < lease["seconds_until_soft_expiry"] <= 120

    options = {"batch_size_threshold": 5, "owner_prefix": "mill", "lease_seconds": 120}
    async with WorkGrinder(executor_manager=manager, **options) as grinder:
        seen = await asyncio.gather(*(grinder.submit(look) for _ in range(10)))
        assert seen == [("mill:1", True)] * 5 + [("mill:2", True)] * 5


async def test_a_slow_item_delays_neither_its_batch_nor_later_ones(manager):
    go = threading.Event()
    async with WorkGrinder(executor_manager=manager, batch_size_threshold=3) as grinder:
        slow = await grinder.enqueue(go.wait, 10)
        quick = [await grinder.enqueue(pow, 2, exponent) for exponent in range(8)]
        assert await asyncio.wait_for(asyncio.gather(*quick), 5) == [2**exponent for exponent in range(8)]
        assert not slow.done()
        go.set()
        assert await slow is True


async def test_batches_that_find_no_executor_wait_in_line(manager):
    async with WorkGrinder(executor_manager=manager, batch_size_threshold=1) as grinder:
        held = [await manager.acquire() for _ in range(2)]
        futures = [await grinder.enqueue(pow, 2, exponent) for exponent in range(4)]
        assert grinder.stats()["waiting_batches"] == 4
        for lease in held:
            await lease.release()
        assert await asyncio.gather(*futures) == [1, 2, 4, 8]


async def test_whoever_outruns_the_grinder_waits_for_room(manager):
    held = [await manager.acquire() for _ in range(2)]
    async with WorkGrinder(executor_manager=manager, batch_size_threshold=2, max_pending=4) as grinder:
        futures = [await grinder.enqueue(pow, 2, exponent) for exponent in range(4)]
        fifth = asyncio.ensure_future(grinder.enqueue(pow, 2, 4))
        sixth = asyncio.ensure_future(asyncio.to_thread(grinder.submit_from_thread, pow, 2, 5))
        gone = asyncio.ensure_future(grinder.submit(print))
        await asyncio.sleep(0.05)
        assert not fifth.done()
        assert not sixth.done()
        assert grinder.stats()["pending"] == 4
        gone.cancel()
        with pytest.raises(asyncio.CancelledError):
            await gone
        for lease in held:
            await lease.release()
        futures += [await fifth, asyncio.wrap_future(await sixth)]
        assert await asyncio.wait_for(asyncio.gather(*futures), 5) == [1, 2, 4, 8, 16, 32]
        assert grinder.stats()["pending"] == 0


async def test_items_of_other_threads_are_ground_too(grinder):
    def outside():
        number.set(5)
        futures = [grinder.submit_from_thread(pow, 2, exponent, owner="outside") for exponent in range(5)]
        futures.append(grinder.submit_from_thread(number.get))
        failing = grinder.submit_from_thread(divmod, 1, 0)
        assert isinstance(failing.exception(10), ZeroDivisionError)
        assert grinder.stats_from_thread(timeout=10)["started"]
        return [future.result(10) for future in futures]

    assert await asyncio.to_thread(outside) == [1, 2, 4, 8, 16, 5]


async def test_work_sees_the_context_variables_of_whoever_submitted_it(grinder):
    number.set(9)
    assert await asyncio.gather(grinder.submit(number.get), grinder.submit(number.get)) == [9, 9]


async def test_a_cancelled_item_is_not_run(manager):
    ran = []
    async with WorkGrinder(executor_manager=manager, batch_size_threshold=10) as grinder:
        task = asyncio.ensure_future(grinder.submit(ran.append, "cancelled"))
        kept = await grinder.enqueue(ran.append, "kept")
        await asyncio.sleep(0)
        task.cancel()
        outside = await asyncio.to_thread(grinder.submit_from_thread, ran.append, "cancelled outside")
        assert outside.cancel()
    assert await kept is None
    assert ran == ["kept"]


async def test_an_item_that_tries_to_end_its_thread_fails_alone(grinder):
    def leave():
        raise SystemExit(3)

    answers = await asyncio.gather(grinder.submit(leave), grinder.submit(pow, 2, 3), return_exceptions=True)
    assert isinstance(answers[0], WorkExitedError)
    assert answers[1] == 8


async def test_items_of_a_batch_whose_lease_expires_say_so():
    go = threading.Event()
    async with (
        LeasedExecutorManager(max_pools=1, workers_per_pool=1, lease_grace_seconds=0) as manager,
        WorkGrinder(executor_manager=manager, batch_size_threshold=2, lease_seconds=0.5) as grinder,
    ):
        running, queued = [await grinder.enqueue(go.wait, 10) for _ in range(2)]
        with pytest.raises(LeaseExpiredError, match="did not run"):
            await queued
        go.set()
        assert await running is True


async def test_stopping_grinds_what_is_left(manager):
    grinder = WorkGrinder(executor_manager=manager, batch_size_threshold=100)
    await grinder.start()
    futures = [await grinder.enqueue(pow, 2, exponent) for exponent in range(5)]
    await grinder.stop()
    assert [future.result() for future in futures] == [1, 2, 4, 8, 16]
    await grinder.stop()


async def test_a_stop_that_is_given_up_can_be_waited_for_again(manager):
    go = threading.Event()
    grinder = WorkGrinder(executor_manager=manager, batch_size_threshold=1)
    await grinder.start()
    running = await grinder.enqueue(go.wait, 10)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(grinder.stop(), 0.05)
    with pytest.raises(RuntimeError, match="not running"):
        await grinder.submit(print)
    again = asyncio.ensure_future(grinder.stop())
    await asyncio.sleep(0)
    go.set()
    await again
    assert await running is True
    assert not grinder.stats()["started"]


async def test_stopping_can_cancel_what_no_worker_has_begun(manager):
    go = threading.Event()
    grinder = WorkGrinder(executor_manager=manager, batch_size_threshold=1, max_pending=3)
    await grinder.start()
    held = await manager.acquire()
    running = await grinder.enqueue(go.wait, 10)
    waiting = [await grinder.enqueue(print) for _ in range(3)]
    outside = asyncio.ensure_future(asyncio.to_thread(grinder.submit_from_thread, print))
    turned_away = asyncio.ensure_future(grinder.submit(print))
    await asyncio.sleep(0.05)
    stopping = asyncio.ensure_future(grinder.stop(cancel_pending=True))
    await await_until("the queue is cancelled", lambda: all(future.cancelled() for future in waiting))
    assert not running.done()
    go.set()
    await stopping
    assert await running is True
    for refused in (outside, turned_away):
        with pytest.raises(RuntimeError, match="not running"):
            await refused
    await held.release()
    assert manager.leased_count == 0


async def test_items_fail_when_the_manager_is_stopped_before_their_batch():
    manager = LeasedExecutorManager(max_pools=1)
    await manager.start()
    async with WorkGrinder(executor_manager=manager, batch_size_threshold=1) as grinder:
        lease = await manager.acquire()
        waiting = await grinder.enqueue(print)
        await manager.stop()
        late = await grinder.enqueue(print)
        for future in (waiting, late):
            with pytest.raises(ManagerClosedError):
                await future
        await lease.release()


async def test_a_grinder_that_was_not_started_takes_nothing(manager):
    grinder = WorkGrinder(executor_manager=manager)
    for attempt in (grinder.submit(print), grinder.enqueue(print)):
        with pytest.raises(RuntimeError, match="not running"):
            await attempt
    for blocking in (lambda: grinder.submit_from_thread(print), grinder.stats_from_thread):
        with pytest.raises(RuntimeError, match="not running"):
            await asyncio.to_thread(blocking)
    assert not grinder.stats()["started"]


async def test_coroutine_methods_belong_to_the_loop_that_started_the_grinder(grinder):
    def elsewhere(make):
        async def attempt():
            await make()

        with pytest.raises(RuntimeError, match="belongs to the event loop that started it"):
            asyncio.run(attempt())

    calls = [
        lambda: grinder.submit(print),
        lambda: grinder.enqueue(print),
        grinder.stop,
        grinder.astats,
        grinder.start,
    ]
    for make in calls:
        await asyncio.to_thread(elsewhere, make)
    with pytest.raises(RuntimeError, match="belongs to the event loop"):
        await asyncio.to_thread(grinder.stats)
    assert (await grinder.astats())["started"]


async def test_thread_methods_refuse_the_loop_that_they_would_block(grinder):
    for blocking in (lambda: grinder.submit_from_thread(print), grinder.stats_from_thread):
        with pytest.raises(RuntimeError, match="would block the event loop"):
            blocking()


async def test_stats_tell_how_much_waits_and_how_long(manager):
    async with WorkGrinder(executor_manager=manager, lease_seconds=7) as grinder:
        assert grinder.stats()["oldest_wait_seconds"] == 0.0
        await grinder.enqueue(print)
        await asyncio.sleep(0.02)
        stats = grinder.stats()
        assert stats.pop("oldest_wait_seconds") >= 0.02
        assert stats == {
            "started": True,
            "stopping": False,
            "pending": 1,
            "unfinished": 1,
            "waiting_batches": 0,
            "max_pending": 10_000,
            "batch_size_threshold": 20,
            "max_wait_seconds": 10.0,
            "lease_seconds": 7.0,
        }
    assert not grinder.stats()["started"]


async def test_a_grinder_starts_again_after_a_stop(manager):
    grinder = WorkGrinder(executor_manager=manager, batch_size_threshold=1)
    for _ in range(2):
        await grinder.start()
        await grinder.start()
        assert await grinder.submit(pow, 2, 3) == 8
        await grinder.stop()
