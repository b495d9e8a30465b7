"""Managers by name, and tasks in leases, as the queues use them."""

from __future__ import annotations

import asyncio
import threading

import pytest

from slotline.errors import InvalidOptionError
from slotline.leases import (
    LeasedExecutorManager,
    Limits,
    ManagerRegistry,
    limits_for,
    run_in_lease,
    run_in_lease_sync,
)
from tests.harness.waiting import await_until


def test_declared_managers_start_at_their_first_use_and_stop_together():
    registry = ManagerRegistry({"io": {"max_pools": 1, "name_prefix": "io"}, "own": LeasedExecutorManager(max_pools=1)})
    assert registry.names == ("io", "own")
    assert "io" in registry
    assert "cpu" not in registry
    assert not registry.declared("io").running
    manager = registry.get("io")
    assert manager is registry.get("io")
    with manager.sync.acquire() as lease:
        assert lease.sync.run(pow, 2, 3) == 8
    assert not registry.declared("own").running
    registry.stop_all()
    assert not manager.running
    registry.stop_all()
    with registry.get("io").sync.acquire():
        assert registry.get("io").leased_count == 1
    registry.stop_all(wait=False)


def test_a_manager_that_ran_before_is_left_running():
    with LeasedExecutorManager(max_pools=1) as manager:
        registry = ManagerRegistry({"shared": manager})
        assert registry.get("shared") is manager
        registry.stop_all()
        assert manager.running


@pytest.mark.parametrize("name", ["gpu", "", None, 3, []], ids=repr)
def test_an_unknown_name_is_refused_with_the_known_ones(name):
    registry = ManagerRegistry({"cpu": {"max_pools": 1}, "io": {"max_pools": 1}})
    with pytest.raises(InvalidOptionError, match=r"'cpu', 'io'") as caught:
        registry.get(name)
    assert caught.value.option == "executor"


@pytest.mark.parametrize(
    ("declarations", "message"),
    [
        ({"cpu": {}}, r"^executors\['cpu'\]={}.*max_pools"),
        ({"cpu": {"max_pools": 0}}, r"^executors\['cpu'\]\.max_pools=0 "),
        ({"cpu": {"max_pools": 1, "colour": "red"}}, r"^executors\['cpu'\]\.colour='red' "),
        ({"cpu": {"backend": "process", "max_pool": 1}}, r"^executors\['cpu'\]\.max_pool=1 .*did you mean max_pools\?"),
        ({"cpu": {3: 1}}, r"^executors\['cpu'\]={3: 1} "),
        ({"cpu": "process"}, "executors"),
        ({"": {"max_pools": 1}}, "executors"),
        ({3: {"max_pools": 1}}, "executors"),
        (["cpu"], "executors"),
    ],
)
def test_wrong_declarations_are_refused_when_they_are_made(declarations, message):
    with pytest.raises(InvalidOptionError, match=message):
        ManagerRegistry(declarations)


def test_limits_that_a_backend_cannot_enforce_are_refused():
    threads = LeasedExecutorManager(max_pools=1)
    processes = LeasedExecutorManager(backend="process", max_pools=1)
    assert limits_for(threads) == Limits()
    assert not limits_for(threads)
    assert limits_for(processes, time_limit=3) == Limits(time_limit=3.0)
    with pytest.raises(InvalidOptionError, match=r"time_limit=3 .*cannot be killed"):
        limits_for(threads, time_limit=3)
    with pytest.raises(InvalidOptionError, match=r"soft_time_limit=3 .*billiard"):
        limits_for(processes, soft_time_limit=3)
    for wrong in (0, -1, "1", True, float("nan"), float("inf")):
        with pytest.raises(InvalidOptionError, match="time_limit"):
            limits_for(processes, time_limit=wrong)


@pytest.fixture(params=["async", "sync"])
def run(request):
    """Run a task in a lease through one of the faces."""
    if request.param == "async":
        return run_in_lease

    async def blocking(*args, **options):
        return await asyncio.to_thread(run_in_lease_sync, *args, **options)

    return blocking


async def test_a_task_runs_in_a_lease_under_its_label_and_releases_it(run):
    async with LeasedExecutorManager(max_pools=1) as manager:
        look = lambda *args, **kwargs: (manager.stats()["leases"][0]["owner"], args, kwargs)  # noqa: E731 - one expression
        assert await run(manager, look, (1,), {"a": 2}, owner="task:1") == ("task:1", (1,), {"a": 2})
        with pytest.raises(ZeroDivisionError):
            await run(manager, divmod, (1, 0))
        assert manager.leased_count == 0


async def test_a_task_that_finds_no_executor_in_time_says_so(run):
    async with LeasedExecutorManager(max_pools=1) as manager, await manager.acquire():
        with pytest.raises(TimeoutError, match="No executor came free"):
            await run(manager, print, acquire_timeout=0.02)


async def test_a_task_on_a_thread_that_outlives_its_lease_still_has_its_result(run):
    go = threading.Event()
    async with LeasedExecutorManager(max_pools=1, workers_per_pool=1, lease_grace_seconds=0) as manager:
        task = asyncio.ensure_future(run(manager, go.wait, (10,), owner="slow", lease_seconds=0.4))
        await await_until("it is overdue", lambda: manager.stats()["overdue"] == 1)
        go.set()
        assert await task is True  # a thread's result is worth having, however late


async def test_cancelling_a_task_releases_its_lease():
    go = threading.Event()
    async with LeasedExecutorManager(max_pools=1) as manager:
        task = asyncio.ensure_future(run_in_lease(manager, go.wait, (10,)))
        await await_until("it runs", lambda: manager.leased_count == 1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        go.set()
        await await_until("its executor is free", lambda: manager.leased_count == 0)
