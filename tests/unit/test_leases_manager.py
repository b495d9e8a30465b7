"""Who gets an executor, and when."""

from __future__ import annotations

import asyncio
import inspect
import os
import random
import threading
import time
from fractions import Fraction

import pytest

from slotline.errors import LeaseExpiredError, LeaseUnavailableError, ManagerClosedError
from slotline.leases import ExecutorLease, LeasedExecutorManager
from slotline.leases.lease import SyncExecutorLease
from slotline.leases.manager import SyncLeasedExecutorManager
from tests.harness.waiting import await_until


def threads_of(prefix):
    return [thread for thread in threading.enumerate() if thread.name.startswith(prefix)]


@pytest.mark.parametrize(
    ("face", "blocking"),
    [(LeasedExecutorManager, SyncLeasedExecutorManager), (ExecutorLease, SyncExecutorLease)],
)
def test_the_blocking_face_has_every_coroutine_method_with_the_same_signature(face, blocking):
    def public(cls, predicate):
        found = inspect.getmembers(cls, predicate)
        return {name: inspect.signature(method) for name, method in found if not name.startswith("_")}

    assert public(face, inspect.iscoroutinefunction) == public(blocking, inspect.isfunction)


async def test_a_manager_that_was_not_started_or_was_stopped_grants_nothing(call):
    manager = LeasedExecutorManager(max_pools=1)
    with pytest.raises(ManagerClosedError, match="start it first"):
        await call(manager, "acquire")
    await call(manager, "start")
    lease = await call(manager, "acquire")
    await call(lease, "release")
    await call(manager, "stop")
    with pytest.raises(ManagerClosedError):
        await call(manager, "acquire")


async def test_starting_and_stopping_twice_is_harmless_and_a_stopped_manager_starts_again(call):
    manager = LeasedExecutorManager(max_pools=1, name_prefix="again")
    for _ in range(2):
        await call(manager, "start")
        await call(manager, "start")
        async with call.using(await call(manager, "acquire")) as lease:
            assert await call(lease, "run", pow, 2, 5) == 32
        await call(manager, "stop")
        await call(manager, "stop")
        assert not threads_of("again")


async def test_no_thread_runs_before_there_is_work_but_the_checker():
    async with LeasedExecutorManager(max_pools=4, min_pools=4, name_prefix="idle") as manager:
        assert [thread.name for thread in threads_of("idle")] == ["idle-checker"]
        assert (manager.total_count, manager.available_count, manager.leased_count) == (4, 4, 0)


async def test_executors_are_added_as_needed_and_never_more_than_max_pools(call):
    async with LeasedExecutorManager(max_pools=3) as manager:
        assert manager.total_count == 1
        leases = [await call(manager, "acquire") for _ in range(3)]
        assert (manager.total_count, manager.available_count, manager.leased_count) == (3, 0, 3)
        with pytest.raises(LeaseUnavailableError, match="All 3"):
            await call(manager, "acquire", wait=False)
        for lease in leases:
            await call(lease, "release")
        assert (manager.available_count, manager.leased_count) == (3, 0)


async def test_max_pools_bounds_each_manager_by_itself(call):
    async with LeasedExecutorManager(max_pools=1) as one, LeasedExecutorManager(max_pools=2) as other:
        leases = [await call(manager, "acquire", wait=False) for manager in (one, other, other)]
        for manager in (one, other):
            with pytest.raises(LeaseUnavailableError):
                await call(manager, "acquire", wait=False)
        for lease in leases:
            await call(lease, "release")


async def test_a_timeout_ends_the_wait_with_the_built_in_error(call):
    async with LeasedExecutorManager(max_pools=1) as manager:
        lease = await call(manager, "acquire")
        for timeout in (0, 0.02):
            with pytest.raises(TimeoutError):
                await call(manager, "acquire", timeout=timeout)
        assert manager.stats()["waiting"] == 0
        await call(lease, "release")
        await call(await call(manager, "acquire", timeout=0), "release")


async def test_waiters_of_both_kinds_are_served_in_the_order_in_which_they_came():
    order = []
    async with LeasedExecutorManager(max_pools=1) as manager:
        first = await manager.acquire()

        async def by_await(number):
            async with await manager.acquire():
                order.append(number)

        def by_thread(number):
            with manager.sync.acquire():
                order.append(number)

        waiting = []
        for number in range(10):
            work = by_await(number) if number % 2 else asyncio.to_thread(by_thread, number)
            waiting.append(asyncio.ensure_future(work))
            await await_until("it stands in line", lambda n=number: manager.stats()["waiting"] == n + 1)
        await first.release()
        await asyncio.gather(*waiting)
    assert order == list(range(10))


def test_loops_in_several_threads_share_one_manager():
    counts, lock, most = [0], threading.Lock(), []

    def body():
        with lock:
            counts[0] += 1
            most.append(counts[0])
        time.sleep(0.001)
        with lock:
            counts[0] -= 1

    async def caller(manager):
        for _ in range(20):
            async with await manager.acquire() as lease:
                await lease.run(body)

    async def callers(manager):
        await asyncio.gather(*(caller(manager) for _ in range(4)))

    with LeasedExecutorManager(max_pools=2, workers_per_pool=1) as manager:
        loops = [threading.Thread(target=lambda: asyncio.run(callers(manager))) for _ in range(4)]
        for thread in loops:
            thread.start()
        for thread in loops:
            thread.join()
        assert manager.leased_count == 0
    assert len(most) == 320
    assert max(most) <= 2


async def test_a_cancelled_waiter_leaves_the_line():
    async with LeasedExecutorManager(max_pools=1) as manager:
        lease = await manager.acquire()
        task = asyncio.ensure_future(manager.acquire())
        await await_until("it stands in line", lambda: manager.stats()["waiting"] == 1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await lease.release()
        assert (manager.leased_count, manager.stats()["waiting"]) == (0, 0)


async def test_a_waiter_cancelled_after_it_was_served_passes_its_lease_on():
    async with LeasedExecutorManager(max_pools=1) as manager:
        lease = await manager.acquire()
        served, behind = asyncio.ensure_future(manager.acquire()), asyncio.ensure_future(manager.acquire())
        await asyncio.sleep(0)
        await lease.release()  # the first has its lease now, but has not run yet
        served.cancel()
        with pytest.raises(asyncio.CancelledError):
            await served
        await (await behind).release()
        assert manager.leased_count == 0


async def test_cancelling_at_any_moment_never_leaks_a_lease():
    dice = random.Random(7)

    async def caller(manager):
        try:
            async with await manager.acquire(timeout=dice.choice([None, 0.001, 5])) as lease:
                await lease.run(time.sleep, dice.random() / 1000)
        except TimeoutError:
            pass

    async with LeasedExecutorManager(max_pools=3, workers_per_pool=2) as manager:
        tasks = []
        for _ in range(400):
            tasks.append(asyncio.ensure_future(caller(manager)))
            if dice.random() < 0.5:
                dice.choice(tasks).cancel()
            if dice.random() < 0.3:
                await asyncio.sleep(0)
        await asyncio.gather(*tasks, return_exceptions=True)
        await await_until("every executor is free", lambda: manager.leased_count == 0)
        assert manager.stats()["waiting"] == 0
        assert manager.total_count <= 3


def test_a_waiter_whose_loop_was_closed_is_skipped():
    with LeasedExecutorManager(max_pools=1) as manager:
        lease = manager.sync.acquire()
        loop = asyncio.new_event_loop()
        lost = loop.create_task(manager.acquire())
        loop.run_until_complete(asyncio.sleep(0))
        assert manager.stats()["waiting"] == 1
        loop.close()
        lost._log_destroy_pending = False  # it is abandoned on purpose
        lease.sync.release()
        with manager.sync.acquire(timeout=5):
            assert manager.leased_count == 1
        lost.get_coro().close()


async def test_those_who_wait_when_the_manager_stops_are_told(call):
    manager = LeasedExecutorManager(max_pools=1)
    await manager.start()
    lease = await manager.acquire()
    waiter = asyncio.ensure_future(call(manager, "acquire"))
    await await_until("it stands in line", lambda: manager.stats()["waiting"] == 1)
    await manager.stop()
    with pytest.raises(ManagerClosedError, match="stopped while"):
        await waiter
    with pytest.raises(LeaseExpiredError, match="manager was stopped"):
        await lease.run(print)


async def test_stopping_lets_work_end_that_leases_have_taken():
    manager = LeasedExecutorManager(max_pools=1, workers_per_pool=1)
    await manager.start()
    lease = await manager.acquire()
    futures = [lease.executor.submit(time.sleep, 0.02) for _ in range(3)]
    await manager.stop()
    assert all(future.done() and future.exception() is None for future in futures)


async def test_stopping_without_waiting_fails_what_was_not_started():
    manager = LeasedExecutorManager(max_pools=1, workers_per_pool=1)
    await manager.start()
    lease, go = await manager.acquire(), threading.Event()
    running = lease.executor.submit(go.wait, 10)
    queued = lease.executor.submit(print)
    await await_until("it runs", running.running)
    await manager.stop(wait=False)
    with pytest.raises(LeaseExpiredError, match="did not run"):
        queued.result(5)
    go.set()
    assert running.result(5) is True


async def test_stats_tell_who_holds_what(call):
    async with LeasedExecutorManager(max_pools=2, workers_per_pool=3, default_lease_seconds=50) as manager:
        lease = await call(manager, "acquire", owner="request:123", lease_seconds=30)
        stats = manager.stats()
        assert {name: value for name, value in stats.items() if name != "leases"} == {
            "backend": "thread",
            "desired": 1,
            "max_pools": 2,
            "min_pools": 1,
            "available": 0,
            "leased": 1,
            "total": 1,
            "waiting": 0,
            "overdue": 0,
            "workers_per_pool": 3,
        }
        (held,) = stats["leases"]
        assert (held["lease_id"], held["owner"], held["state"], held["jobs"]) == (
            lease.lease_id,
            "request:123",
            "active",
            0,
        )
        assert 20 < held["seconds_until_soft_expiry"] <= 30
        assert 35 < held["seconds_until_hard_expiry"] <= 45
        await call(lease, "release")


async def test_a_manager_releases_leases_by_object_or_id_and_knows_no_others(call):
    async with LeasedExecutorManager(max_pools=2) as manager:
        one, two = await call(manager, "acquire"), await call(manager, "acquire")
        await call(manager, "release", one)
        await call(manager, "release", two.lease_id)
        assert manager.leased_count == 0
        for unknown in (two.lease_id, "nobody"):
            with pytest.raises(LeaseExpiredError, match="No active lease"):
                await call(manager, "release", unknown)


@pytest.mark.parametrize(
    ("units", "count"), [(0, 2), (1, 2), (20, 2), (21, 3), (35.5, 4), (Fraction(71, 2), 4), (10_000, 5)]
)
async def test_executors_follow_the_number_of_units(units, count):
    async with LeasedExecutorManager(min_pools=2, max_pools=5, size_provider=lambda: units) as manager:
        assert manager.desired_executor_count() == count
        assert manager.total_count == count


async def test_a_change_of_scale_takes_effect_at_once_and_spares_what_is_leased(call):
    units = [50]
    async with LeasedExecutorManager(max_pools=5, size_provider=lambda: units[0]) as manager:
        assert manager.total_count == 5
        lease = await call(manager, "acquire")
        units[0] = 0
        manager.notify_scale_changed()
        await await_until("the idle ones are retired", lambda: manager.total_count == 1)
        assert await call(lease, "run", pow, 2, 2) == 4
        units[0] = 30
        manager.notify_scale_changed()
        await await_until("they are back", lambda: manager.total_count == 3)
        await call(lease, "release")


async def test_the_number_of_units_is_asked_every_check_interval():
    asked = []
    async with LeasedExecutorManager(
        max_pools=2, check_interval=0.02, size_provider=lambda: len(asked.append(1) or [])
    ):
        await await_until("it was asked again and again", lambda: len(asked) >= 4)


@pytest.mark.parametrize(
    "answer",
    [-1, float("nan"), float("inf"), 10**400, "5", None, True, [5], 5j, ZeroDivisionError("no units"), SystemExit(3)],
    ids=lambda answer: repr(answer)[:30],
)
async def test_a_size_provider_that_fails_or_answers_nonsense_counts_as_no_units_and_is_logged(answer, caplog):
    def provider():
        if isinstance(answer, BaseException):
            raise answer
        return answer

    async with LeasedExecutorManager(
        min_pools=2, max_pools=5, size_provider=provider, lease_grace_seconds=0
    ) as manager:
        assert manager.total_count == 2
        caplog.clear()
        manager.notify_scale_changed()  # in the background thread, which it must not end
        await await_until("it was asked again", lambda: "size_provider" in caplog.text)
        lease = await manager.acquire(lease_seconds=0.01)
        await await_until("leases still expire", lambda: not lease.active)


async def test_idle_executors_beyond_the_wanted_number_go_at_the_next_check():
    async with LeasedExecutorManager(max_pools=3, check_interval=0.05) as manager:
        leases = [await manager.acquire() for _ in range(3)]
        for lease in leases:
            await lease.release()
        await await_until("one is left", lambda: manager.total_count == 1)


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_a_manager_made_before_a_fork_starts_anew_in_the_child():
    with LeasedExecutorManager(max_pools=1, workers_per_pool=2) as manager:
        lease = manager.sync.acquire(owner="parent")
        assert lease.sync.run(pow, 2, 3) == 8
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            verdict = b"failed"
            try:
                with pytest.raises(LeaseExpiredError, match="forked"):
                    lease.sync.run(pow, 2, 3)
                with manager.sync.acquire(timeout=5, owner="child") as own:
                    assert own.sync.run(os.getpid) == os.getpid()
                manager.sync.stop()
                verdict = b"fine"
            finally:
                os.write(write, verdict)
                os._exit(0)
        os.close(write)
        with os.fdopen(read, "rb") as pipe:
            assert pipe.read() == b"fine"
        os.waitpid(child, 0)
        assert lease.sync.run(pow, 2, 4) == 16
        lease.sync.release()
