"""The billiard backend: limits for each task, and a lost worker that costs only its own task."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time

import pytest

from slotline.errors import InvalidOptionError, LeaseExpiredError
from slotline.leases import LeasedExecutorManager, limits_for, run_in_lease, run_in_lease_sync
from slotline.workers import SoftTimeLimitExceeded, TimeLimitExceeded, WorkerLostError
from tests.harness.processes import gone
from tests.harness.waiting import await_until


def billiards(**options):
    return LeasedExecutorManager(
        **{"backend": "billiard", "max_pools": 1, "workers_per_pool": 2, "lease_grace_seconds": 0, **options}
    )


def log_and_return(text):
    logging.getLogger("worker.code").warning(text)
    return os.getpid()


def set_variable(name, value):
    os.environ[name] = value


def fail():
    raise RuntimeError("no worker today")


async def test_work_runs_in_other_processes_and_errors_come_back(call):
    async with billiards() as manager, call.using(await call(manager, "acquire")) as lease:
        pid = await call(lease, "run", os.getpid)
        assert pid != os.getpid()
        with pytest.raises(ZeroDivisionError):
            await call(lease, "run", divmod, 1, 0)
    await await_until("the worker is gone", lambda: gone(pid))


async def test_a_worker_that_dies_costs_only_its_own_task():
    async with billiards() as manager, await manager.acquire() as lease:
        other = lease.executor.submit(time.sleep, 0.3)
        with pytest.raises(WorkerLostError):
            await lease.run(os._exit, 0)
        assert other.result(30) is None
        assert await lease.run(pow, 2, 3) == 8


async def test_a_callback_that_takes_its_time_holds_up_no_other_work_and_no_limit():
    go_on, called = threading.Event(), threading.Event()
    async with billiards(timeout=2) as manager, await manager.acquire() as lease:
        lease.executor.submit(pow, 2, 2).add_done_callback(lambda _: called.set() or go_on.wait(60))
        await await_until("the callback runs", called.is_set)
        try:
            assert await asyncio.wait_for(lease.run(pow, 2, 3), 30) == 8
            with pytest.raises(TimeLimitExceeded):
                await asyncio.wait_for(lease.run(time.sleep, 60), 30)
        finally:
            go_on.set()


async def test_revoking_kills_the_work_and_says_what_ran():
    async with billiards() as manager:
        lease = await manager.acquire(owner="me")
        pid = await lease.run(os.getpid)
        futures = [lease.executor.submit(time.sleep, 600) for _ in range(4)]
        await await_until("two run", lambda: sum(future.running() for future in futures) == 2)
        await lease.revoke("was taken back")
        assert gone(pid)
        reasons = [str(future.exception(5)) for future in futures]
        assert all(isinstance(future.exception(5), LeaseExpiredError) for future in futures)
        assert sorted("did not run" in reason for reason in reasons) == [False, False, True, True]
        async with await manager.acquire(timeout=30) as second:
            assert await second.run(pow, 2, 3) == 8


async def test_single_tasks_of_a_lease_have_limits_of_their_own():
    async with billiards() as manager, await manager.acquire() as lease:
        with pytest.raises(TimeLimitExceeded):
            lease.executor.options(timeout=0.3).submit(time.sleep, 600).result(30)
        with pytest.raises(SoftTimeLimitExceeded):
            lease.executor.options(timeout=30, soft_timeout=0.3).submit(time.sleep, 600).result(30)
        for limit in ("timeout", "soft_timeout", "max_memory"):
            for value in (0, -1, float("nan"), float("inf"), True, "1"):
                with pytest.raises(InvalidOptionError, match=f"^{limit}="):
                    lease.executor.options(**{limit: value})
        assert await lease.run(pow, 2, 3) == 8


@pytest.mark.parametrize("face", ["async", "sync"])
async def test_the_limits_of_a_task_are_those_of_the_executor(face):
    async def run(manager, *args, **options):
        if face == "async":
            return await run_in_lease(manager, *args, **options)
        return await asyncio.to_thread(run_in_lease_sync, manager, *args, **options)

    async with billiards() as manager:
        with pytest.raises(TimeLimitExceeded):
            await run(manager, time.sleep, (600,), limits=limits_for(manager, time_limit=0.3))
        with pytest.raises(SoftTimeLimitExceeded):
            await run(manager, time.sleep, (600,), limits=limits_for(manager, soft_time_limit=0.3, time_limit=30))
        assert await run(manager, pow, (2, 3), limits=limits_for(manager, time_limit=30)) == 8
        with pytest.raises(InvalidOptionError, match="less than time_limit"):
            limits_for(manager, soft_time_limit=3, time_limit=3)


async def test_a_cancelled_task_with_limits_is_killed():
    async with billiards() as manager:
        pid = await run_in_lease(manager, os.getpid)
        limits = limits_for(manager, time_limit=500)
        task = asyncio.ensure_future(run_in_lease(manager, time.sleep, (600,), limits=limits))
        await await_until("it runs", lambda: [lease["jobs"] for lease in manager.stats()["leases"]] == [1])
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await await_until("its executor is free", lambda: manager.leased_count == 0)
        assert gone(pid)


async def test_records_of_workers_and_the_initializer_work_as_on_the_process_backend(caplog):
    options = {"initializer": set_variable, "initargs": ("GREETING", "hello"), "forward_process_logs": True}
    async with billiards(**options) as manager, await manager.acquire() as lease:
        assert await lease.run(os.getenv, "GREETING") == "hello"
        pid = await lease.run(log_and_return, "from afar")
        await await_until("it came", lambda: "from afar" in caplog.text)
    (record,) = [record for record in caplog.records if record.getMessage() == "from afar"]
    assert (record.name, record.process) == ("worker.code", pid)


async def test_options_of_the_executor_reach_it_and_unknown_ones_are_refused():
    async with billiards(maxtasksperchild=1, workers_per_pool=1) as manager, await manager.acquire() as lease:
        assert await lease.run(os.getpid) != await lease.run(os.getpid)
    for option in ("colour", "processes"):
        with pytest.raises(InvalidOptionError) as caught:
            billiards(**{option: 3})
        assert caught.value.option == option


async def test_an_executor_that_gave_up_is_replaced():
    async with (
        billiards(initializer=fail, workers_per_pool=1, max_restarts=1) as manager,
        await manager.acquire() as lease,
    ):
        for _ in range(2):
            with pytest.raises(Exception, match="no worker today"):
                await lease.run(pow, 2, 3)
