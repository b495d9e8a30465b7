"""What an owner can do with a lease, and what happens when it expires."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
import gc
import threading
import time
import weakref

import pytest

from slotline.errors import InvalidOptionError, LeaseError, LeaseExpiredError, WorkExitedError
from slotline.leases import LeasedExecutorManager
from tests.harness.waiting import await_until, wait_until

number = contextvars.ContextVar("number", default=0)


@pytest.fixture
async def manager():
    async with LeasedExecutorManager(max_pools=1, workers_per_pool=2, lease_grace_seconds=0) as made:
        yield made


async def test_work_returns_its_value_or_raises_its_error(call, manager):
    async with call.using(await call(manager, "acquire")) as lease:
        assert await call(lease, "run", dict, [("a", 1)], b=2) == {"a": 1, "b": 2}
        with pytest.raises(ZeroDivisionError):
            await call(lease, "run", divmod, 1, 0)
        with pytest.raises(TypeError, match="can be called"):
            await call(lease, "run", "no function")
    assert manager.leased_count == 0


async def test_work_sees_the_context_variables_of_its_caller(manager):
    number.set(7)
    async with await manager.acquire() as lease:
        assert await lease.run(number.get) == 7
        await lease.run(number.set, 8)
        assert await lease.run(number.get) == 7
        assert lease.executor.submit(number.get).result(5) == 7


async def test_the_executor_of_a_lease_is_an_executor_like_any_other(manager):
    async with await manager.acquire() as lease:
        executor = lease.executor
        assert isinstance(executor, concurrent.futures.Executor)
        assert executor.submit(pow, 2, 3).result(5) == 8
        assert list(executor.map(abs, [-1, -2])) == [1, 2]
        assert await asyncio.get_running_loop().run_in_executor(executor, pow, 2, 4) == 16
        futures = [executor.submit(pow, 2, exponent) for exponent in range(5)]
        assert {future.result() for future in concurrent.futures.as_completed(futures, 5)} == {1, 2, 4, 8, 16}


async def test_the_executor_of_a_lease_refuses_to_be_shut_down(manager):
    async with await manager.acquire() as lease:
        with pytest.raises(LeaseError, match="cannot be shut down"):
            lease.executor.shutdown()
        with pytest.raises(LeaseError, match="cannot be shut down"), lease.executor:
            pass
        assert await lease.run(pow, 2, 3) == 8


async def test_single_limits_are_refused_where_the_backend_has_none(manager):
    async with await manager.acquire() as lease:
        with pytest.raises(LeaseError, match="thread backend"):
            lease.executor.options(timeout=1)


async def test_a_released_lease_takes_no_more_work(call, manager):
    lease = await call(manager, "acquire", owner="me")
    await call(lease, "release")
    await call(lease, "release")
    for attempt in (lambda: call(lease, "run", pow, 2, 3), lambda: call(lease, "renew", 5)):
        with pytest.raises(LeaseExpiredError, match="of 'me' was released"):
            await attempt()
    with pytest.raises(LeaseExpiredError):
        lease.executor.submit(pow, 2, 3)
    assert (lease.active, lease.remaining) == (False, 0.0)


async def test_a_released_lease_drains_before_its_executor_is_lent_again(manager):
    go = threading.Event()
    lease = await manager.acquire()
    futures = [lease.executor.submit(go.wait, 10) for _ in range(4)]
    await lease.release()
    with pytest.raises(TimeoutError):
        await manager.acquire(timeout=0.05)
    assert manager.stats()["leases"][0]["state"] == "draining"
    go.set()
    async with await manager.acquire(timeout=10):
        assert all(future.result(5) for future in futures)


async def test_the_work_of_one_lease_runs_on_as_many_threads_as_the_executor_has(manager):
    meeting = threading.Barrier(2)
    async with await manager.acquire() as lease:
        await asyncio.gather(lease.run(meeting.wait, 10), lease.run(meeting.wait, 10))
        threads = {thread.name for thread in threading.enumerate() if thread.name.startswith("leasepool_")}
        assert threads == {"leasepool_0", "leasepool_1"}


async def test_cancelling_a_call_drops_queued_work_and_lets_running_work_run_on(manager):
    go, ran = threading.Event(), []
    lease = await manager.acquire()
    running = [asyncio.ensure_future(lease.run(go.wait, 10)) for _ in range(2)]
    queued = asyncio.ensure_future(lease.run(ran.append, 1))
    await asyncio.sleep(0.05)
    for task in (running[0], queued):
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    await lease.release()
    assert manager.leased_count == 1  # the cancelled call's thread is still at it
    go.set()
    assert await running[1] is True
    async with await manager.acquire(timeout=10):
        assert ran == []


async def test_cancelling_a_future_drops_queued_work(manager):
    go = threading.Event()
    async with await manager.acquire() as lease:
        running = [lease.executor.submit(go.wait, 10) for _ in range(2)]
        queued = lease.executor.submit(print)
        await await_until("both run", lambda: all(future.running() for future in running))
        assert not running[0].cancel()
        assert queued.cancel()
        assert queued.cancel()
        assert queued.cancelled()
        assert concurrent.futures.wait([queued], 5).done == {queued}
        go.set()


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt, GeneratorExit, asyncio.CancelledError])
async def test_work_that_tries_to_end_its_thread_fails_alone(call, manager, kind):
    def leave():
        raise kind("bye")

    async with call.using(await call(manager, "acquire")) as lease:
        with pytest.raises(WorkExitedError, match=rf"{kind.__name__}\(bye\)"):
            await call(lease, "run", leave)
        assert await call(lease, "run", pow, 2, 3) == 8


async def test_work_that_raises_stop_iteration_does_not_end_its_caller(manager):
    async with await manager.acquire() as lease:
        with pytest.raises(RuntimeError, match="StopIteration"):
            await lease.run(next, iter(()))


async def test_arguments_and_results_are_let_go(manager):
    class Thing:
        pass

    thing = Thing()
    seen = weakref.ref(thing)
    async with await manager.acquire() as lease:
        await lease.run(lambda given: given, thing)
        del thing
        gc.collect()
        await await_until("it is gone", lambda: seen() is None)


async def test_a_lease_says_when_it_expires(manager):
    before = time.monotonic()
    async with await manager.acquire(lease_seconds=30, owner="me") as lease:
        assert before + 30 <= lease.expires_at == lease.soft_expires_at == lease.hard_expires_at
        assert 29 < lease.remaining <= 30
        assert (lease.owner, lease.lease_seconds, lease.grace_seconds) == ("me", 30, 0)
        assert lease.leased_at >= before
        assert "of 'me', active" in repr(lease)


async def test_a_lease_lives_for_default_lease_seconds_unless_its_caller_says_otherwise(call):
    async with LeasedExecutorManager(max_pools=2, default_lease_seconds=50) as manager:
        for given, expected in (({}, 50), ({"lease_seconds": None}, 50), ({"lease_seconds": 0.5}, 0.5)):
            async with call.using(await call(manager, "acquire", **given)) as lease:
                assert lease.lease_seconds == expected


async def test_renewing_counts_from_now(call, manager):
    async with call.using(await call(manager, "acquire", lease_seconds=0.6)) as lease:
        for _ in range(8):
            await asyncio.sleep(0.1)
            assert await call(lease, "renew") == lease.expires_at
        await call(lease, "renew", 60)
        assert 59 < lease.remaining <= 60
        for wrong in (0, -1, "5", True, float("nan")):
            with pytest.raises(InvalidOptionError, match="seconds"):
                await call(lease, "renew", wrong)


def test_an_expired_lease_is_warned_of_once_works_through_its_grace_and_is_then_revoked(caplog):
    with LeasedExecutorManager(max_pools=1, lease_grace_seconds=1.2) as manager:
        lease = manager.sync.acquire(lease_seconds=0.05, owner="sleeper")
        wait_until("its expiry is in the log", lambda: "'sleeper' expired after 0.05 s" in caplog.text)
        assert lease.sync.run(pow, 2, 3) == 8
        wait_until("it is revoked", lambda: not lease.active)
        with pytest.raises(LeaseExpiredError, match=r"expired 1\.25 s after it was granted"):
            lease.sync.run(pow, 2, 3)
        assert manager.leased_count == 0
    assert caplog.text.count("expired after 0.05 s") == 1


async def test_a_lease_that_expires_while_others_wait_goes_to_the_next():
    async with LeasedExecutorManager(max_pools=1, lease_grace_seconds=0, check_interval=1000) as manager:
        await manager.acquire(lease_seconds=0.05)
        async with await manager.acquire(timeout=10) as lease:
            assert await lease.run(pow, 2, 3) == 8


async def test_overdue_threads_run_on_beside_a_new_executor_and_are_counted_and_named(manager, caplog):
    go = threading.Event()

    def stubborn():
        return go.wait(10)

    lease = await manager.acquire(owner="job:7")
    running = [asyncio.ensure_future(lease.run(stubborn)) for _ in range(2)]
    await await_until("both are taken", lambda: manager.stats()["leases"][0]["jobs"] == 2)
    queued = lease.executor.submit(print)
    await lease.renew(0.05)
    async with await manager.acquire(timeout=10) as second:
        assert await second.run(pow, 2, 3) == 8
        assert manager.stats()["overdue"] == 2
        assert manager.total_count == 1
        with pytest.raises(LeaseExpiredError, match=r"of 'job:7' expired .* before this work was started"):
            queued.result(5)
        assert "'job:7'" in caplog.text
        assert "2 of its calls cannot be killed and run on" in caplog.text
        assert "stubborn" in caplog.text
        go.set()
        assert await asyncio.gather(*running) == [True, True]
        await await_until("none is overdue", lambda: manager.stats()["overdue"] == 0)


async def test_held_overdue_threads_keep_their_place_until_they_end():
    go = threading.Event()
    async with LeasedExecutorManager(max_pools=1, lease_grace_seconds=0, hold_overdue=True) as manager:
        lease = await manager.acquire()
        running = lease.executor.submit(go.wait, 10)
        await await_until("it runs", running.running)
        await lease.renew(0.05)
        await await_until("it was revoked", lambda: not lease.active)
        with pytest.raises(TimeoutError):
            await manager.acquire(timeout=0.05)
        assert manager.stats()["overdue"] == 1
        assert manager.stats()["leases"][0]["state"] == "held"
        go.set()
        async with await manager.acquire(timeout=10):
            assert running.result(5) is True
        assert manager.stats()["overdue"] == 0


async def test_a_draining_lease_past_its_life_gives_its_place_up(manager):
    go = threading.Event()
    lease = await manager.acquire()
    running = lease.executor.submit(go.wait, 10)
    await await_until("it runs", running.running)
    await lease.renew(0.2)
    await lease.release()
    async with await manager.acquire(timeout=10):
        assert not running.done()
        go.set()
        assert running.result(5) is True


async def test_a_lease_can_be_revoked_at_once_with_a_reason(call, manager):
    lease = await call(manager, "acquire", owner="me")
    await call(lease, "revoke", "was taken back")
    await call(lease, "revoke")
    with pytest.raises(LeaseExpiredError, match="of 'me' was taken back: it takes no more work"):
        await call(lease, "run", print)
    assert manager.leased_count == 0


@pytest.mark.parametrize("hold", [False, True])
async def test_the_stop_of_a_manager_does_not_wait_for_what_is_overdue(hold):
    go = threading.Event()
    manager = LeasedExecutorManager(max_pools=1, lease_grace_seconds=0, hold_overdue=hold, name_prefix=f"hold{hold}")
    await manager.start()
    lease = await manager.acquire()
    running = lease.executor.submit(go.wait, 10)
    await await_until("it runs", running.running)
    await lease.renew(0.05)
    await manager.stop()
    assert not running.done()
    assert manager.total_count == 0
    async with manager, await manager.acquire(timeout=5) as second:
        assert await second.run(pow, 2, 3) == 8
        go.set()
        assert running.result(5) is True
    names = lambda: [thread.name for thread in threading.enumerate() if thread.name.startswith(f"hold{hold}")]  # noqa: E731 - one expression
    await await_until("its threads have ended", lambda: not names())


async def test_a_thread_executor_with_an_initializer_runs_it_in_each_thread():
    ready = threading.local()
    options = {"initializer": setattr, "initargs": (ready, "value", 5)}
    async with LeasedExecutorManager(max_pools=1, workers_per_pool=1, **options) as manager:
        number.set(3)
        async with await manager.acquire() as lease:
            assert await lease.run(lambda: ready.value) == 5
            assert await lease.run(number.get) == 3


async def test_a_thread_executor_that_its_initializer_broke_fails_its_work_and_is_replaced():
    failures = [RuntimeError("not yet")]

    def initializer():
        if failures:
            raise failures.pop()

    async with LeasedExecutorManager(max_pools=1, workers_per_pool=1, initializer=initializer) as manager:
        lease = await manager.acquire()
        with pytest.raises(concurrent.futures.BrokenExecutor):
            await lease.run(print)
        assert await lease.run(pow, 2, 3) == 8
