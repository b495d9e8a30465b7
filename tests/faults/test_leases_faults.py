"""Workers and owners of leased processes die in every way there is; nothing outlives them, nobody waits for ever."""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import os
import random
import re
import signal
import subprocess
import sys
import time
from concurrent.futures.process import BrokenProcessPool

import billiard
import psutil
import pytest

from slotline.errors import LeaseExpiredError
from slotline.leases import LeasedExecutorManager
from tests.harness.leaks import measure
from tests.harness.processes import alive
from tests.harness.waiting import await_until, wait_until
from tests.integration.billiard_tasks import start_children, touch_and_sleep

OWNER = """
import os, re, subprocess, sys, time
from slotline.leases import LeasedExecutorManager

def start_a_child():
    child = subprocess.Popen(["sleep", "600"])
    os.write(1, b"pid %d\\n" % os.getpid())
    os.write(1, b"pid %d\\n" % child.pid)
    {busy}

if __name__ == "__main__":
    manager = LeasedExecutorManager(backend="process", max_pools=2, workers_per_pool=2, mp_context={method!r})
    with manager:
        first, second = manager.sync.acquire(), manager.sync.acquire()
        os.write(1, b"pid %d\\n" % first.sync.run(os.getpid))
        if os.fork() == 0:  # a stranger that holds copies of the owner's descriptors
            os.write(1, b"stranger %d\\n" % os.getpid())
            time.sleep(600)
        second.sync.run(start_a_child)
        time.sleep(600)
"""

BUSY = {
    "sleeping": "time.sleep(600)",
    "never letting go of the interpreter lock": "re.match('(a+)+$', 'a' * 64 + 'b')",
    "idle": "return None",
}


def cmdline(process):
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def workers_of(pid, *strangers):
    """The living processes under an owner, without multiprocessing's own helpers and what is named otherwise."""
    no_workers = ("resource_tracker", "forkserver", *strangers)
    under = psutil.Process(pid).children(recursive=True)
    return {child.pid for child in under if not any(word in cmdline(child) for word in no_workers)}


def stuck():
    """Run for ever without ever letting another thread run."""
    re.match("(a+)+$", "a" * 64 + "b")


def wait_for(path):
    """Run until there is a file."""
    wait_until(f"{path} is there", path.exists, 60)


@pytest.mark.parametrize(
    ("method", "busy"),
    [
        ("spawn", "sleeping"),
        ("spawn", "idle"),
        ("spawn", "never letting go of the interpreter lock"),
        ("fork", "sleeping"),
        ("forkserver", "sleeping"),
    ],
)
def test_no_worker_and_no_child_of_one_outlives_an_owner_that_is_killed(method, busy, tmp_path):
    script = tmp_path / "owner.py"
    script.write_text(OWNER.format(method=method, busy=BUSY[busy]))
    owner = subprocess.Popen(
        [sys.executable, "-W", "ignore", script], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    pids, strangers = [], []
    try:
        for line in owner.stdout:
            kind, pid = line.split()
            (strangers if kind == "stranger" else pids).append(int(pid))
            if len(pids) == 3 and strangers:
                break
        doomed = sorted({*pids, *workers_of(owner.pid)} - set(strangers))
        assert len(doomed) >= 3
        owner.kill()
        wait_until("all are dead", lambda: not any(map(alive, doomed)), timeout=15)
    finally:
        for pid in [owner.pid, *pids, *strangers]:
            if alive(pid):
                os.kill(pid, signal.SIGKILL)
        owner.wait()
        owner.stdout.close()


def test_no_worker_outlives_an_owner_that_is_killed_while_they_start(tmp_path):
    script = tmp_path / "owner.py"
    script.write_text(OWNER.format(method="spawn", busy=BUSY["sleeping"]))
    for delay in (0.2, 0.3, 0.4):
        owner = subprocess.Popen([sys.executable, script], stdout=subprocess.DEVNULL, start_new_session=True)
        deadline, workers = time.monotonic() + delay, set()
        while time.monotonic() < deadline:
            workers |= workers_of(owner.pid, script.name)
        owner.kill()
        owner.wait()
        try:
            wait_until("all are dead", lambda seen=workers: not any(map(alive, seen)), timeout=15)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(owner.pid, signal.SIGKILL)  # the stranger, where the owner came so far


def hold_a_lease(manager, connection):
    """Keep a worker busy, in a daemonic child."""
    lease = manager.sync.acquire()
    connection.send(lease.sync.run(os.getpid))
    lease.sync.run(time.sleep, 600)


@pytest.mark.parametrize("backend", ["process", "billiard"])
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_no_worker_outlives_a_daemonic_child_that_is_killed(backend):
    manager = LeasedExecutorManager(backend=backend, max_pools=1, workers_per_pool=1)
    ours, theirs = multiprocessing.Pipe()
    with manager:
        child = billiard.get_context("fork").Process(target=hold_a_lease, args=(manager, theirs), daemon=True)
        child.start()
        assert ours.poll(60)
        worker = ours.recv()
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        wait_until("its worker is dead", lambda: not alive(worker), timeout=15)


async def test_a_worker_killed_under_a_lease_fails_its_work_and_is_replaced(call, tmp_path):
    async with LeasedExecutorManager(backend="process", max_pools=1, workers_per_pool=1) as manager:
        async with call.using(await call(manager, "acquire")) as lease:
            pid = await call(lease, "run", os.getpid)
            running = lease.executor.submit(touch_and_sleep, str(tmp_path / "begun"), 600)
            await await_until("it has begun", (tmp_path / "begun").exists, timeout=30)
            os.kill(pid, signal.SIGKILL)
            with pytest.raises(BrokenProcessPool):
                await asyncio.wait_for(asyncio.wrap_future(running), 30)
            assert await call(lease, "run", pow, 2, 3) == 8
        assert manager.leased_count == 0


@pytest.mark.parametrize("state", ["stopped", "never letting go of the interpreter lock"])
async def test_revocation_kills_a_worker_that_answers_to_nothing(state):
    async with LeasedExecutorManager(backend="process", max_pools=1, workers_per_pool=1) as manager:
        lease = await manager.acquire()
        pid = await lease.run(os.getpid)
        running = lease.executor.submit(time.sleep if state == "stopped" else stuck, *([600] * (state == "stopped")))
        await asyncio.sleep(0.1)
        if state == "stopped":
            os.kill(pid, signal.SIGSTOP)
        await lease.revoke("was taken back")
        assert not alive(pid)
        with pytest.raises(LeaseExpiredError, match="was taken back"):
            running.result(5)
        async with await manager.acquire(timeout=30) as second:
            assert await second.run(pow, 2, 3) == 8


async def test_killing_a_worker_that_is_being_sent_a_large_argument_leaves_nobody_waiting():
    async with LeasedExecutorManager(backend="process", max_pools=1, workers_per_pool=1) as manager:
        lease = await manager.acquire()
        pid = await lease.run(os.getpid)
        os.kill(pid, signal.SIGSTOP)
        futures = [lease.executor.submit(len, b"x" * 10_000_000) for _ in range(3)]
        await asyncio.sleep(0.1)
        await lease.revoke()
        for future in futures:
            assert isinstance(future.exception(10), LeaseExpiredError)
        async with await manager.acquire(timeout=30) as second:
            assert await second.run(pow, 2, 3) == 8


@pytest.mark.parametrize("moment", ["idle", "receiving", "running", "sending"])
async def test_a_worker_killed_at_any_moment_costs_only_what_it_ran(tmp_path, moment):
    over = tmp_path / "over"

    def kill_soon(pid):
        time.sleep(0.01)
        os.kill(pid, signal.SIGKILL)

    async with (
        LeasedExecutorManager(backend="process", max_pools=1, workers_per_pool=2) as manager,
        await manager.acquire() as lease,
    ):
        neighbour = lease.executor.submit(wait_for, over)
        await await_until("the neighbour runs", neighbour.running)
        pid = await lease.run(os.getpid)
        begun = tmp_path / "begun"
        calls = {
            "receiving": (len, b"x" * 200_000_000),
            "running": (touch_and_sleep, str(begun), 600),
            "sending": (bytes, 200_000_000),
        }
        if moment in calls:
            future = lease.executor.submit(*calls[moment])
            await await_until("it has begun", lambda: moment != "running" or begun.exists())
            await asyncio.to_thread(kill_soon, pid)
            error = await asyncio.to_thread(future.exception, 30)
            assert error is not None or moment != "running"
            assert error is None or f"of {calls[moment][0].__name__} was lost: it was killed by signal 9" in str(error)
        else:
            os.kill(pid, signal.SIGKILL)
        await await_until("it is dead", lambda: not alive(pid))
        over.touch()
        assert neighbour.result(10) is None
        assert await asyncio.gather(*(lease.run(pow, 2, 3) for _ in range(4))) == [8, 8, 8, 8]


async def test_all_workers_killed_at_once_fail_their_own_calls_and_are_all_replaced(tmp_path):
    async with (
        LeasedExecutorManager(backend="process", max_pools=1, workers_per_pool=3) as manager,
        await manager.acquire() as lease,
    ):
        paths = [tmp_path / str(number) for number in range(3)]
        running = [lease.executor.submit(start_children, str(path), 600) for path in paths]
        waiting = [lease.executor.submit(pow, 2, number) for number in range(6)]
        await await_until("all run", lambda: all(path.exists() for path in paths), timeout=60)
        workers = {psutil.Process(int(path.read_text().split()[0])).ppid() for path in paths}
        assert len(workers) == 3
        for pid in workers:
            os.kill(pid, signal.SIGKILL)
        errors = [await asyncio.to_thread(one.exception, 30) for one in running]
        assert all(isinstance(error, BrokenProcessPool) and "SIGKILL" in str(error) for error in errors)
        assert [await asyncio.wrap_future(one) for one in waiting] == [1, 2, 4, 8, 16, 32]
        for path in paths:
            plain, apart, daemon = map(int, path.read_text().split())
            await await_until("what stayed in the worker's group is dead", lambda pid=plain: not alive(pid))
            for pid in (apart, daemon):  # these have left it, and nobody but a launcher would find them
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


async def test_under_random_kills_and_revocations_every_call_is_answered_and_nothing_leaks():
    dice = random.Random(11)
    answered = []

    async def caller(manager, number):
        async with await manager.acquire(owner=f"caller:{number}") as lease:
            try:
                answered.append(await lease.run(pow, 2, number))
            except (BrokenProcessPool, LeaseExpiredError) as error:
                answered.append(error)
            if dice.random() < 0.05:
                await lease.revoke()
            if dice.random() < 0.1:
                kill_one()

    def kill_one():
        spawned = [child for child in psutil.Process().children() if "spawn_main" in cmdline(child)]
        if spawned:
            os.kill(dice.choice(spawned).pid, signal.SIGKILL)

    async with (
        LeasedExecutorManager(backend="process", max_pools=2, workers_per_pool=1) as manager,
        await manager.acquire() as lease,
    ):
        await lease.run(pow, 2, 1)
    before = measure()
    async with LeasedExecutorManager(backend="process", max_pools=2, workers_per_pool=1) as manager:
        await asyncio.wait_for(asyncio.gather(*(caller(manager, number) for number in range(100))), 100)
        await await_until("every executor is free", lambda: manager.leased_count == 0)
    assert len(answered) == 100
    assert sum(isinstance(answer, int) for answer in answered) > 10
    await await_until(
        "descriptors and threads are back",
        lambda: (after := measure()).fds <= before.fds + 1 and after.threads <= before.threads,
    )
