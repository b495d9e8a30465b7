"""What bad work does to itself, and to nothing else, on the backends that run work in processes."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import os
import signal
import time
from concurrent.futures import BrokenExecutor
from pathlib import Path

import pytest

from slotline.errors import LeaseExpiredError, WorkExitedError
from slotline.leases import LeasedExecutorManager, limits_for, run_in_lease, run_in_lease_sync
from slotline.workers import UnpicklableError, WorkerLostError
from tests.harness.processes import gone
from tests.harness.waiting import await_until
from tests.integration import billiard_tasks as tasks

PROCESSES = ["process", "billiard"]
LOST = (BrokenExecutor, WorkerLostError)


def leases(backend, **options):
    return LeasedExecutorManager(
        **{"backend": backend, "max_pools": 1, "workers_per_pool": 2, "lease_grace_seconds": 0, **options}
    )


class Local:
    """A class that is found by its name, unlike one made in a function."""


def local_object():
    class Inner:
        pass

    return Inner()


BAD = [
    pytest.param(lambda: 1, (), UnpicklableError, "lambda", id="a lambda"),
    pytest.param(tasks.echo, (local_object(),), UnpicklableError, "Inner", id="an object of a local class"),
    pytest.param(local_object, (), UnpicklableError, "result .*Inner", id="a result of a local class"),
    pytest.param(tasks.echo, (tasks.PicklesNowhere(),), UnpicklableError, "stays where", id="an unpicklable argument"),
    pytest.param(tasks.echo, (tasks.BreaksWhenRebuilt(),), UnpicklableError, "rebuil", id="an argument that breaks"),
    pytest.param(tasks.return_unpicklable, (), UnpicklableError, "stays where", id="an unpicklable result"),
    pytest.param(tasks.return_broken, (), UnpicklableError, "rebuil", id="a result that breaks"),
    pytest.param(tasks.raise_unrebuildable, (), UnpicklableError, "said: 1 and 2", id="an exception that breaks"),
    pytest.param(tasks.raise_with_unpicklable_inside, (), UnpicklableError, "ValueError", id="one that cannot travel"),
    pytest.param(tasks.exit_with, (3,), WorkExitedError, r"SystemExit\(3\)", id="sys.exit"),
    pytest.param(tasks.interrupt, (), WorkExitedError, "KeyboardInterrupt", id="KeyboardInterrupt"),
    pytest.param(tasks.os_exit, (0,), LOST, "exit code 0", id="os._exit(0)"),
    pytest.param(tasks.os_exit, (7,), LOST, "exit code 7", id="os._exit(7)"),
    pytest.param(tasks.kill_self, (), LOST, "SIGKILL", id="SIGKILL"),
    pytest.param(tasks.close_every_descriptor, (), LOST, "closed file descriptors", id="closed descriptors"),
]


@pytest.mark.parametrize("backend", PROCESSES)
async def test_bad_work_fails_alone_with_an_error_that_says_what_happened(backend):
    async with leases(backend) as manager, await manager.acquire() as lease:
        assert await lease.run(tasks.square, 3) == 9
        neighbours = []
        for case in BAD:
            fn, args, kind, words = case.values
            neighbour = lease.executor.submit(tasks.sleep_then, 0.3, case.id)
            with pytest.raises(kind, match=words):
                await asyncio.wait_for(asyncio.wrap_future(lease.executor.submit(fn, *args)), 30)
            neighbours.append(neighbour)
        assert [neighbour.result(30) for neighbour in neighbours] == [case.id for case in BAD]
        assert await lease.run(tasks.square, 4) == 16


@pytest.mark.parametrize("backend", PROCESSES)
async def test_work_that_closes_the_standard_streams_harms_no_later_work(backend):
    async with leases(backend, workers_per_pool=1) as manager, await manager.acquire() as lease:
        first = await lease.run(os.getpid)
        assert await lease.run(tasks.close_standard_streams) == "closed"
        assert await lease.run(tasks.print_something) == "printed"
        assert await lease.run(os.getpid) != first


@pytest.mark.parametrize("backend", PROCESSES)
async def test_work_that_forks_and_returns_twice_answers_once(backend):
    async with leases(backend) as manager, await manager.acquire() as lease:
        for _ in range(5):
            assert await lease.run(tasks.fork_and_both_return) == "parent"
        numbers = await asyncio.gather(*(lease.run(tasks.square, number) for number in range(20)))
        assert numbers == [number * number for number in range(20)]


@pytest.mark.leaves("processes", reason="a daemon that has ended its worker is out of the process backend's reach")
@pytest.mark.parametrize("backend", PROCESSES)
async def test_work_that_daemonises_itself_fails_at_once(backend, tmp_path):
    path = tmp_path / "daemon"
    async with leases(backend) as manager, await manager.acquire() as lease:
        with pytest.raises(LOST, match="exit code 0"):
            await asyncio.wait_for(lease.run(tasks.daemonise, str(path)), 60)
        assert await lease.run(tasks.square, 3) == 9
    if path.exists():
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(path.read_text()), signal.SIGKILL)


@pytest.mark.parametrize("backend", PROCESSES)
async def test_revoking_kills_all_that_the_work_has_started_daemons_too(backend, tmp_path):
    path = tmp_path / "pids"
    async with leases(backend) as manager:
        lease = await manager.acquire()
        running = lease.executor.submit(tasks.start_children, str(path), 600)
        await await_until("its children run", path.exists, timeout=30)
        pids = [int(pid) for pid in path.read_text().split()]
        assert len(pids) == 3
        assert not any(map(gone, pids))
        await lease.revoke()
        await await_until("they are gone", lambda: gone(*pids))
        assert isinstance(running.exception(5), LeaseExpiredError)


@pytest.mark.parametrize("backend", PROCESSES)
async def test_work_without_the_memory_for_its_arguments_or_its_result_fails_alone(backend):
    async with leases(backend, workers_per_pool=1) as manager, await manager.acquire() as lease:
        for call in ((len, b"x" * 100_000_000), (bytes, 100_000_000)):
            await lease.run(tasks.cap_address_space, 50_000_000)
            with pytest.raises((MemoryError, UnpicklableError), match=r"MemoryError|^$"):
                await lease.run(*call)
            assert await lease.run(tasks.square, 3) == 9


@pytest.mark.parametrize("backend", PROCESSES)
@pytest.mark.parametrize("face", ["async", "sync"])
async def test_importing_a_tasks_module_does_not_count_towards_its_time_limit(backend, face, tmp_path, monkeypatch):
    source = "import os, time\nif os.getpid() != {pid}:\n    time.sleep(1.5)\ndef quick():\n    return 'quick'\n"
    (tmp_path / f"heavy_{backend}_{face}.py").write_text(source.format(pid=os.getpid()))
    monkeypatch.syspath_prepend(tmp_path)
    module = importlib.import_module(f"heavy_{backend}_{face}")
    async with leases(backend) as manager:
        limits = limits_for(manager, time_limit=1)
        if face == "async":
            assert await run_in_lease(manager, module.quick, limits=limits) == "quick"
        else:
            assert await asyncio.to_thread(run_in_lease_sync, manager, module.quick, limits=limits) == "quick"


@pytest.mark.parametrize("backend", PROCESSES)
async def test_what_cannot_be_sent_is_named_under_a_time_limit_too(backend):
    async with leases(backend) as manager:
        limits = limits_for(manager, time_limit=30)
        with pytest.raises(UnpicklableError, match="lambda"):
            await run_in_lease(manager, lambda: 1, limits=limits)
        with pytest.raises(LOST, match="exit code 3"):
            await run_in_lease(manager, tasks.os_exit, (3,), limits=limits)


@pytest.mark.soak
@pytest.mark.parametrize("backend", ["thread", *PROCESSES])
async def test_an_argument_and_a_result_of_a_gigabyte_arrive(backend):
    big = bytes(1 << 30)
    async with leases(backend, workers_per_pool=1) as manager, await manager.acquire() as lease:
        assert await lease.run(len, big) == 1 << 30
        assert len(await lease.run(bytes, 1 << 30)) == 1 << 30
        assert await lease.run(tasks.square, 3) == 9


@pytest.mark.parametrize("backend", ["thread", *PROCESSES])
async def test_what_cannot_travel_need_not_travel_between_threads(backend):
    async with leases(backend) as manager, await manager.acquire() as lease:
        assert isinstance(await lease.run(Local), Local)
        if backend == "thread":
            assert await lease.run(lambda: 1) == 1
            with pytest.raises(tasks.NeedsTwoArgumentsError, match="1 and 2"):
                await lease.run(tasks.raise_unrebuildable)


@pytest.mark.parametrize("backend", PROCESSES)
async def test_an_initializer_that_fails_is_named_by_the_work_that_needed_it(backend, tmp_path):
    options = {"initializer": fail_until, "initargs": (str(tmp_path / "go"),), "workers_per_pool": 1}
    async with leases(backend, **options) as manager, await manager.acquire() as lease:
        with pytest.raises(Exception, match="not yet"):
            await asyncio.wait_for(lease.run(tasks.square, 3), 60)
        (tmp_path / "go").touch()
        assert await lease.run(tasks.square, 4) == 16


@pytest.mark.parametrize("backend", PROCESSES)
async def test_a_worker_killed_before_it_has_begun_costs_nobody_a_call(backend, tmp_path):
    note = tmp_path / "pid"
    options = {"initializer": hang_once, "initargs": (str(note),), "workers_per_pool": 1}
    async with leases(backend, **options) as manager, await manager.acquire() as lease:
        waiting = lease.executor.submit(tasks.square, 3)
        await await_until("the first worker is starting", lambda: note.exists() and note.read_text(), timeout=60)
        os.kill(int(note.read_text()), signal.SIGKILL)
        assert await asyncio.wait_for(asyncio.wrap_future(waiting), 60) == 9
        os.kill(await lease.run(os.getpid), signal.SIGKILL)
        assert await lease.run(tasks.square, 4) == 16


def hang_once(path):
    if not Path(path).exists():
        Path(path).write_text(str(os.getpid()))
        time.sleep(600)


def fail_until(path):
    if not Path(path).exists():
        raise RuntimeError("not yet")
