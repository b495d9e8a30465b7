"""The process backend with real worker processes."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import BrokenExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import billiard
import pytest

from slotline.errors import LeaseExpiredError, WorkExitedError, WorkTimeLimitError
from slotline.leases import (
    LeasedExecutorManager,
    ManagerRegistry,
    WorkGrinder,
    limits_for,
    run_in_lease,
    run_in_lease_sync,
)
from tests.harness.processes import gone
from tests.harness.waiting import await_until, wait_until
from tests.integration.billiard_tasks import touch_and_sleep


def processes(**options):
    return LeasedExecutorManager(
        **{"backend": "process", "max_pools": 1, "workers_per_pool": 1, "lease_grace_seconds": 0, **options}
    )


def start_a_child(path):
    """Start a process that outlives this call, and say which."""
    child = subprocess.Popen(["sleep", "600"])
    Path(path).write_text(str(child.pid))
    time.sleep(600)


def set_variable(name, value):
    os.environ[name] = value


async def test_work_runs_in_other_processes_and_errors_come_back(call):
    async with processes(workers_per_pool=2) as manager:
        assert manager.killable
        async with call.using(await call(manager, "acquire")) as lease:
            assert await call(lease, "run", os.getpid) != os.getpid()
            with pytest.raises(ZeroDivisionError):
                await call(lease, "run", divmod, 1, 0)
            assert list(lease.executor.map(abs, [-1, -2, -3])) == [1, 2, 3]
            pid = await call(lease, "run", os.getpid)
        async with call.using(await call(manager, "acquire")) as lease:
            assert await call(lease, "run", os.getppid) == os.getpid()
    await await_until("the workers are gone", lambda: gone(pid))


async def test_work_that_cannot_be_sent_fails_alone():
    async with processes() as manager, await manager.acquire() as lease:
        for unsendable in (lambda: 1, threading.Lock().acquire):
            with pytest.raises(Exception, match=r"pickle|local object"):
                await lease.run(unsendable)
        with pytest.raises(Exception, match="pickle"):
            await lease.run(threading.Lock)
        assert await lease.run(pow, 2, 3) == 8


@pytest.mark.parametrize(
    ("leave", "how"), [(sys.exit, "SystemExit"), (signal.default_int_handler, "KeyboardInterrupt")]
)
async def test_work_that_tries_to_end_its_process_politely_fails_alone(leave, how):
    arguments = (3,) if leave is sys.exit else (2, None)
    async with processes() as manager, await manager.acquire() as lease:
        with pytest.raises(WorkExitedError, match=how):
            await lease.run(leave, *arguments)
        assert await lease.run(pow, 2, 3) == 8


async def test_an_executor_that_breaks_is_replaced_within_the_same_lease(call):
    async with processes() as manager, call.using(await call(manager, "acquire")) as lease:
        for _ in range(2):
            with pytest.raises(BrokenProcessPool):
                await call(lease, "run", os._exit, 0)
            assert await call(lease, "run", pow, 2, 3) == 8


async def test_an_executor_that_broke_while_idle_is_replaced():
    async with processes() as manager:
        async with await manager.acquire() as lease:
            pid = await lease.run(os.getpid)
        os.kill(pid, signal.SIGKILL)
        await await_until("the worker is dead", lambda: gone(pid))
        async with await manager.acquire() as lease:
            try:
                assert await lease.run(pow, 2, 3) == 8
            except BrokenExecutor:  # the work was sent before the executor noticed
                assert await lease.run(pow, 2, 3) == 8


async def test_the_work_of_an_expired_lease_is_dead_before_its_place_passes_on(tmp_path):
    async with processes(workers_per_pool=2) as manager:
        lease = await manager.acquire(lease_seconds=600, owner="job:7")
        pids = await asyncio.gather(lease.run(os.getpid), lease.run(os.getpid))
        running = lease.executor.submit(start_a_child, str(tmp_path / "pid"))
        others = [lease.executor.submit(time.sleep, 600) for _ in range(6)]
        await await_until("its child runs", lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text())
        await lease.renew(0.1)
        async with await manager.acquire(timeout=30) as second:
            assert all(gone(pid) for pid in {*pids, int((tmp_path / "pid").read_text())})
            assert await second.run(pow, 2, 3) == 8
        with pytest.raises(LeaseExpiredError, match=r"of 'job:7' expired .*start_a_child, was killed"):
            running.result(5)
        reasons = [str(other.exception(5)) for other in others]
        assert all("of 'job:7' expired" in reason for reason in reasons)
        assert "did not run" in reasons[-1]
        assert manager.stats()["overdue"] == 0


async def test_revoking_returns_when_the_work_is_dead(call):
    async with processes() as manager:
        lease = await call(manager, "acquire")
        pid = await call(lease, "run", os.getpid)
        future = lease.executor.submit(time.sleep, 600)
        await await_until("it runs", future.running)
        await call(lease, "revoke", "was taken back")
        assert gone(pid)
        with pytest.raises(LeaseExpiredError, match="was taken back: its work, sleep, was killed"):
            future.result(5)


async def test_an_expired_lease_without_work_leaves_its_executor_alone():
    async with processes() as manager:
        lease = await manager.acquire(lease_seconds=30)
        pid = await lease.run(os.getpid)
        await lease.revoke()
        async with await manager.acquire() as second:
            assert await second.run(os.getpid) == pid


async def test_stopping_without_waiting_kills_what_runs():
    manager = processes()
    await manager.start()
    lease = await manager.acquire()
    pid = await lease.run(os.getpid)
    future = lease.executor.submit(time.sleep, 600)
    await manager.stop(wait=False)
    assert gone(pid)
    with pytest.raises(LeaseExpiredError, match="manager was stopped"):
        future.result(5)


@pytest.mark.parametrize("face", ["async", "sync"])
async def test_a_task_that_runs_into_its_time_limit_is_killed(face):
    async with processes() as manager:
        pid = await run_in_lease(manager, os.getpid)
        options = {"limits": limits_for(manager, time_limit=0.5), "owner": "task:1"}
        begun = time.monotonic()
        if face == "async":
            task = run_in_lease(manager, time.sleep, (600,), **options)
        else:
            task = asyncio.to_thread(run_in_lease_sync, manager, time.sleep, (600,), **options)
        with pytest.raises(WorkTimeLimitError, match=r"sleep was killed.*0\.5 s") as caught:
            await task
        assert isinstance(caught.value, TimeoutError)
        assert time.monotonic() - begun < 20
        assert gone(pid)
        assert await run_in_lease(manager, pow, (2, 3), **options) == 8


async def test_a_cancelled_task_is_killed(tmp_path):
    async with processes() as manager:
        pid = await run_in_lease(manager, os.getpid)
        task = asyncio.ensure_future(run_in_lease(manager, touch_and_sleep, (str(tmp_path / "began"), 600)))
        await await_until("it runs", (tmp_path / "began").exists)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert gone(pid)


@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
@pytest.mark.parametrize("as_context", [False, True])
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
@pytest.mark.leaves("processes", reason="multiprocessing keeps its own fork server and resource tracker")
async def test_every_start_method_works(method, as_context):
    context = multiprocessing.get_context(method) if as_context else method
    async with processes(mp_context=context) as manager, await manager.acquire() as lease:
        assert await lease.run(pow, 2, 3) == 8


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
async def test_a_context_of_billiard_works_and_its_workers_are_watched_too():
    async with processes(mp_context=billiard.get_context("fork")) as manager:
        lease = await manager.acquire()
        pid = await lease.run(os.getpid)
        lease.executor.submit(time.sleep, 600)
        await lease.revoke()
        assert gone(pid)


async def test_initializer_initargs_and_max_tasks_per_child_reach_the_executor():
    options = {"initializer": set_variable, "initargs": ("GREETING", "hello"), "max_tasks_per_child": 1}
    async with processes(**options) as manager, await manager.acquire() as lease:
        assert await lease.run(os.getenv, "GREETING") == "hello"
        assert await lease.run(os.getpid) != await lease.run(os.getpid)


async def test_the_grinder_grinds_in_processes():
    async with (
        processes(workers_per_pool=2) as manager,
        WorkGrinder(executor_manager=manager, batch_size_threshold=5) as grinder,
    ):
        futures = [await grinder.enqueue(pow, 2, exponent) for exponent in range(10)]
        futures[3].cancel()
        assert await asyncio.gather(*futures[:3], *futures[4:]) == [1, 2, 4, 16, 32, 64, 128, 256, 512]


def use_leases(registry, connection):
    """Use a process backend in a daemonic child process, and report."""
    try:
        with registry.get("cpu").sync.acquire(timeout=60) as lease:
            answer = lease.sync.run(pow, 2, 10)
            pid = lease.sync.run(os.getpid)
        registry.stop_all()
        connection.send((answer, gone(pid)))
    except BaseException as error:
        connection.send(repr(error))


@pytest.mark.parametrize("backend", ["process", "thread"])
@pytest.mark.parametrize("package", [multiprocessing, billiard], ids=lambda package: package.__name__)
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_managers_declared_before_a_fork_work_in_daemonic_children(package, backend):
    registry = ManagerRegistry({"cpu": {"backend": backend, "max_pools": 1, "workers_per_pool": 1}})
    with registry.get("cpu").sync.acquire() as lease:
        assert lease.sync.run(pow, 2, 3) == 8
    ours, theirs = multiprocessing.Pipe()
    child = package.get_context("fork").Process(target=use_leases, args=(registry, theirs), daemon=True)
    child.start()
    try:
        assert ours.poll(60)
        assert ours.recv() == (1024, backend == "process")
    finally:
        child.join(30)
        registry.stop_all()
    wait_until("the child has ended", lambda: not child.is_alive())


UNSTOPPED = """
import sys, threading, time
from slotline.leases import LeasedExecutorManager

if __name__ == "__main__":
    manager = LeasedExecutorManager(backend={backend!r}, max_pools=2, workers_per_pool=1, lease_grace_seconds=0)
    manager.sync.start()
    lease = manager.sync.acquire()
    lease.executor.submit(print, "first", flush=True)
    lease.executor.submit(time.sleep, 0.2)
    lease.executor.submit(print, "last", flush=True)
    if {backend!r} == "thread":
        overdue = manager.sync.acquire()
        overdue.executor.submit(threading.Event().wait)
        time.sleep(0.1)
        overdue.sync.revoke()
"""


@pytest.mark.parametrize("backend", ["thread", "process", "billiard"])
def test_an_interpreter_that_ends_without_a_stop_finishes_its_work_and_leaves_what_is_overdue(backend, tmp_path):
    script = tmp_path / "unstopped.py"
    script.write_text(UNSTOPPED.format(backend=backend))
    ended = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=60, check=True)
    assert ended.stdout.split() == ["first", "last"]
    assert "Traceback" not in ended.stderr
