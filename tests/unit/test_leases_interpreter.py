"""The interpreter backend: refused before Python 3.14, and driven by a stand-in for what came with it."""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
import pickle
import threading
from concurrent.futures import BrokenExecutor, ThreadPoolExecutor

import pytest

from slotline.errors import InvalidOptionError, LeaseError, LeaseExpiredError, UnsupportedBackendError, WorkExitedError
from slotline.leases import LeasedExecutorManager, WorkGrinder, limits_for, run_in_lease
from tests.harness.waiting import await_until

gates: dict[str, threading.Event] = {}


class InterpreterPoolExecutor(ThreadPoolExecutor):
    """Has the signature of Python 3.14's, and like it shares no object between caller and work: all is pickled."""

    made: list[tuple[int | None, str]] = []  # noqa: RUF012 - emptied by the fixture
    break_next = False

    def __init__(self, max_workers=None, thread_name_prefix="", initializer=None, initargs=()):
        super().__init__(max_workers, thread_name_prefix, initializer, initargs)
        self.made.append((max_workers, thread_name_prefix))

    def submit(self, fn, /, *args, **kwargs):
        if InterpreterPoolExecutor.break_next:
            InterpreterPoolExecutor.break_next, self._broken = False, "its initializer failed"
        return super().submit(_apart, pickle.dumps((fn, args, kwargs)))


def _apart(call):
    fn, args, kwargs = pickle.loads(call)
    return pickle.loads(pickle.dumps(fn(*args, **kwargs)))


def wait_at(name):
    return gates[name].wait(10)


def leave():
    raise SystemExit(3)


@pytest.fixture
def interpreters(monkeypatch):
    monkeypatch.setattr(concurrent.futures, "InterpreterPoolExecutor", InterpreterPoolExecutor, raising=False)
    InterpreterPoolExecutor.made.clear()

    def make(**options):
        return LeasedExecutorManager(
            **{"backend": "interpreter", "max_pools": 1, "workers_per_pool": 2, "lease_grace_seconds": 0, **options}
        )

    return make


@pytest.fixture
def gate(request):
    gates[request.node.name] = event = threading.Event()
    yield request.node.name, event
    event.set()
    del gates[request.node.name]


@pytest.mark.skipif(
    hasattr(concurrent.futures, "InterpreterPoolExecutor"),
    reason="this Python has interpreter pools: nothing to refuse",
)
def test_the_interpreter_backend_says_which_python_it_needs():
    with pytest.raises(UnsupportedBackendError, match=r"Python 3\.14"):
        LeasedExecutorManager(backend="interpreter", max_pools=1)


@pytest.mark.skipif(
    not hasattr(concurrent.futures, "InterpreterPoolExecutor"), reason="this Python has no interpreter pools"
)
async def test_work_runs_in_real_interpreters():
    async with LeasedExecutorManager(backend="interpreter", max_pools=1) as manager, await manager.acquire() as lease:
        assert await lease.run(pow, 2, 3) == 8
        assert await lease.run(os.getpid) == os.getpid()
        with pytest.raises(ZeroDivisionError):
            await lease.run(divmod, 1, 0)


async def test_work_runs_on_interpreter_pools_with_the_managers_options(call, interpreters):
    async with interpreters(name_prefix="i") as manager:
        assert (manager.killable, manager.takes_limits, manager.backend) == (False, False, "interpreter")
        async with call.using(await call(manager, "acquire")) as lease:
            assert await call(lease, "run", pow, 2, 3) == 8
            assert lease.executor.submit(pow, 2, 4).result(10) == 16
            with pytest.raises(ZeroDivisionError):
                await call(lease, "run", divmod, 1, 0)
            with pytest.raises(WorkExitedError, match="SystemExit"):
                await call(lease, "run", leave)
            assert await call(lease, "run", pow, 2, 5) == 32
        assert manager.leased_count == 0
    assert InterpreterPoolExecutor.made == [(2, "i")]


async def test_what_cannot_travel_to_an_interpreter_fails_alone(interpreters):
    async with interpreters() as manager, await manager.acquire() as lease:
        with pytest.raises(Exception, match=r"pickle|local object"):
            await lease.run(lambda: 1)
        assert await lease.run(pow, 2, 3) == 8
    assert manager.leased_count == 0


async def test_interpreters_of_a_revoked_lease_run_on_beside_a_new_executor(interpreters, gate, caplog):
    name, event = gate
    async with interpreters() as manager:
        lease = await manager.acquire(owner="job:7")
        running = [lease.executor.submit(wait_at, name) for _ in range(2)]
        await await_until("both run", lambda: all(one.running() for one in running))
        queued = lease.executor.submit(pow, 2, 3)
        await lease.revoke("was taken back")
        with pytest.raises(LeaseExpiredError, match=r"of 'job:7' was taken back .* did not run"):
            queued.result(5)
        assert manager.stats()["overdue"] == 2
        assert "'job:7' was taken back; 2 of its calls cannot be killed and run on: wait_at" in caplog.text
        async with await manager.acquire(timeout=10) as second:
            assert await second.run(pow, 2, 4) == 16
        event.set()
        assert [one.result(10) for one in running] == [True, True]
        await await_until("none is overdue", lambda: manager.stats()["overdue"] == 0)
    assert len(InterpreterPoolExecutor.made) == 2


async def test_held_overdue_interpreters_keep_their_place_until_they_end(interpreters, gate):
    name, event = gate
    async with interpreters(hold_overdue=True) as manager:
        lease = await manager.acquire()
        running = lease.executor.submit(wait_at, name)
        await await_until("it runs", running.running)
        await lease.revoke()
        with pytest.raises(TimeoutError):
            await manager.acquire(timeout=0.05)
        event.set()
        async with await manager.acquire(timeout=10):
            assert running.result(5) is True
    assert len(InterpreterPoolExecutor.made) == 1


async def test_a_released_lease_drains_and_queued_work_can_be_cancelled(interpreters, gate):
    name, event = gate
    async with interpreters(workers_per_pool=1) as manager:
        lease = await manager.acquire()
        running = lease.executor.submit(wait_at, name)
        await await_until("it runs", running.running)
        queued = lease.executor.submit(pow, 2, 3)
        assert queued.cancel()
        await lease.release()
        assert manager.stats()["leases"][0]["state"] == "draining"
        event.set()
        async with await manager.acquire(timeout=10):
            assert running.result(5) is True


async def test_a_broken_interpreter_pool_is_replaced(interpreters):
    async with interpreters() as manager, await manager.acquire() as lease:
        assert await lease.run(pow, 2, 3) == 8
        InterpreterPoolExecutor.break_next = True  # it refuses the work, which goes to its successor
        assert await lease.run(pow, 2, 3) == 8
        assert len(InterpreterPoolExecutor.made) == 2
    async with interpreters(initializer=os.stat, initargs=("/nowhere",)) as manager, await manager.acquire() as lease:
        for _ in range(2):
            with pytest.raises(BrokenExecutor):
                await lease.run(pow, 2, 3)


async def test_a_grinder_grinds_in_interpreters(interpreters):
    async with (
        interpreters() as manager,
        WorkGrinder(executor_manager=manager, batch_size_threshold=4) as grinder,
    ):
        assert await asyncio.gather(*(grinder.submit(pow, 2, n) for n in range(8))) == [2**n for n in range(8)]


async def test_limits_and_log_forwarding_are_refused_on_interpreters(interpreters):
    with pytest.raises(InvalidOptionError, match="forward_process_logs"):
        interpreters(forward_process_logs=True)
    for option in ("colour", "max_workers", "thread_name_prefix"):
        with pytest.raises(InvalidOptionError, match=f"^{option}="):
            interpreters(**{option: 3})
    async with interpreters() as manager, await manager.acquire() as lease:
        with pytest.raises(InvalidOptionError, match="time_limit"):
            limits_for(manager, time_limit=3)
        with pytest.raises(LeaseError, match="interpreter backend"):
            lease.executor.options(timeout=3)
    async with interpreters() as manager:
        assert await run_in_lease(manager, pow, (2, 3)) == 8
