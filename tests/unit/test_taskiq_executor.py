"""Tasks in leased executors, in one process."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import AsyncIterator
from typing import Annotated, Any

import pytest
from billiard.exceptions import SoftTimeLimitExceeded, TimeLimitExceeded
from taskiq import AsyncTaskiqTask, InMemoryBroker, TaskiqDepends, TaskiqMessage, TaskiqResult

from slotline.errors import InvalidOptionError, WorkTimeLimitError
from slotline.leases import ExecutorLease, LeasedExecutorManager
from taskiq_ext import CacheMiddleware, ExecutorMiddleware, executor, executor_lease
from tests.harness.processes import gone


@pytest.fixture
def middleware() -> ExecutorMiddleware:
    threads = LeasedExecutorManager(max_pools=1, workers_per_pool=1, name_prefix="leased")
    processes = {"backend": "process", "max_pools": 1, "workers_per_pool": 1}
    return ExecutorMiddleware({"cpu": threads, "process": processes, "billiard": {**processes, "backend": "billiard"}})


@pytest.fixture
async def broker(middleware: ExecutorMiddleware) -> AsyncIterator[InMemoryBroker]:
    broker = InMemoryBroker().with_middlewares(middleware)
    yield broker
    await broker.shutdown()


BAD_SECONDS: list[Any] = [0, -1, True, "soon", float("nan"), float("inf")]


async def result_of(sent: Any) -> TaskiqResult[Any]:
    return await sent.wait_result(check_interval=0.01, timeout=60)


async def test_a_labelled_function_runs_in_a_lease_and_others_do_not(
    broker: InMemoryBroker, middleware: ExecutorMiddleware
) -> None:
    @broker.task(executor="cpu")
    def leased() -> str:
        return threading.current_thread().name

    @broker.task
    def plain() -> str:
        return threading.current_thread().name

    assert (await result_of(await leased.kiq())).return_value.startswith("leased")
    assert not (await result_of(await plain.kiq())).return_value.startswith("leased")
    assert (await result_of(await plain.kicker().with_labels(executor="cpu").kiq())).return_value.startswith("leased")
    assert middleware.managers.declared("cpu").leased_count == 0


async def test_leases_bound_what_runs_at_once(broker: InMemoryBroker) -> None:
    lock, running, most = threading.Lock(), 0, 0

    @broker.task(executor="cpu")
    def work() -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.005)
        with lock:
            running -= 1

    for one in [await work.kiq() for _ in range(10)]:
        assert (await result_of(one)).error is None
    assert most == 1


def process_id(x: int) -> tuple[int, int]:
    return x, os.getpid()


def sleep_long() -> None:
    time.sleep(60)


async def test_a_function_runs_in_another_process(broker: InMemoryBroker) -> None:
    task = broker.register_task(process_id, executor="process")
    x, pid = (await result_of(await task.kiq("3"))).return_value  # type: ignore[arg-type] # parsed on arrival
    assert x == 3
    assert pid != os.getpid()


def sleep_in_pieces() -> str:
    try:
        for _ in range(600):
            time.sleep(0.1)
    except SoftTimeLimitExceeded:
        return "wound up"
    return "slept"


def fill_memory() -> int:
    return len(bytearray(512 * 1024 * 1024))


async def test_a_memory_limit_ends_the_function_and_nothing_else(broker: InMemoryBroker) -> None:
    task = broker.register_task(fill_memory, executor="billiard", max_memory=200_000)
    assert isinstance((await result_of(await task.kiq())).error, MemoryError)
    following = broker.register_task(process_id, executor="billiard")
    assert (await result_of(await following.kiq(1))).return_value[0] == 1


def exit_at_once() -> None:
    os._exit(3)


@pytest.mark.parametrize(("backend", "error"), [("process", WorkTimeLimitError), ("billiard", TimeLimitExceeded)])
async def test_a_time_limit_kills_the_function(broker: InMemoryBroker, backend: str, error: type[Exception]) -> None:
    task = broker.register_task(sleep_long, task_name=backend, executor=backend, time_limit=0.5)
    following = broker.register_task(process_id, executor=backend)
    assert isinstance((await result_of(await task.kiq())).error, error)
    assert (await result_of(await following.kiq(1))).return_value[0] == 1


async def test_a_soft_time_limit_lets_the_function_wind_up(broker: InMemoryBroker) -> None:
    first = broker.register_task(process_id, executor="billiard")
    assert (await result_of(await first.kiq(1))).return_value[0] == 1  # the process has imported this module now
    task = broker.register_task(sleep_in_pieces, executor="billiard", soft_time_limit=0.5, time_limit=30)
    assert (await result_of(await task.kiq())).return_value == "wound up"


@pytest.mark.parametrize("backend", ["process", "billiard"])
async def test_a_function_that_ends_its_process_fails_alone(broker: InMemoryBroker, backend: str) -> None:
    task = broker.register_task(exit_at_once, task_name=backend, executor=backend)
    following = broker.register_task(process_id, executor=backend)
    assert (await result_of(await task.kiq())).is_err
    assert (await result_of(await following.kiq(1))).return_value[0] == 1


@pytest.mark.parametrize("backend", ["process", "billiard"])
async def test_a_function_that_cannot_be_shipped_fails_alone(broker: InMemoryBroker, backend: str) -> None:
    local = broker.register_task(lambda: 1, task_name=backend, executor=backend)
    following = broker.register_task(process_id, executor=backend)
    assert (await result_of(await local.kiq())).is_err
    assert (await result_of(await following.kiq(1))).return_value[0] == 1


async def test_errors_arguments_and_dependencies_are_those_of_the_function(broker: InMemoryBroker) -> None:
    @broker.task(executor="cpu")
    def work(x: int, y: Annotated[int, TaskiqDepends(seven)]) -> int:
        if x < 0:
            raise ValueError(x)
        return x + y

    assert (await result_of(await work.kiq("1"))).return_value == 8  # type: ignore[call-arg,arg-type] # dependency, parsed
    error = (await result_of(await work.kiq(-1))).error  # type: ignore[call-arg] # a dependency
    assert isinstance(error, ValueError)
    assert work(1, 2) == 3


def seven() -> int:
    return 7


async def test_the_timeout_label_ends_a_leased_task(broker: InMemoryBroker, middleware: ExecutorMiddleware) -> None:
    go = threading.Event()

    @broker.task(executor="cpu", timeout=0.05)
    def work() -> None:
        go.wait(20)

    assert isinstance((await result_of(await work.kiq())).error, TimeoutError)
    go.set()


async def test_the_default_manager_takes_plain_functions_only(middleware: ExecutorMiddleware) -> None:
    broker = InMemoryBroker().with_middlewares(ExecutorMiddleware(middleware.managers, default="cpu"))

    @broker.task
    def plain() -> str:
        return threading.current_thread().name

    @broker.task
    async def coroutine() -> str:
        return threading.current_thread().name

    assert (await result_of(await plain.kiq())).return_value.startswith("leased")
    assert (await result_of(await coroutine.kiq())).return_value == threading.current_thread().name
    await broker.shutdown()


async def test_a_cached_task_runs_once_in_its_lease(middleware: ExecutorMiddleware) -> None:
    broker = InMemoryBroker().with_middlewares(CacheMiddleware(), middleware)
    ran = []

    @broker.task(executor="cpu", cache_ttl=60)
    def work() -> str:
        ran.append(1)
        return threading.current_thread().name

    for _ in range(2):
        assert (await result_of(await work.kiq())).return_value.startswith("leased")
    assert len(ran) == 1
    await broker.shutdown()


async def test_a_dependency_hands_the_task_its_lease(broker: InMemoryBroker, middleware: ExecutorMiddleware) -> None:
    @broker.task
    async def fan_out(
        lease: Annotated[ExecutorLease, TaskiqDepends(executor_lease("cpu", lease_seconds=30))],
    ) -> list[str]:
        assert lease.lease_seconds == 30
        return list(await asyncio.gather(*(lease.run(lambda: threading.current_thread().name) for _ in range(3))))

    @broker.task
    async def manage(manager: Annotated[LeasedExecutorManager, TaskiqDepends(executor("cpu"))]) -> bool:
        return manager is middleware.managers.declared("cpu")

    names = (await result_of(await fan_out.kiq())).return_value  # type: ignore[call-arg] # a dependency
    assert all(name.startswith("leased") for name in names)
    assert (await result_of(await manage.kiq())).return_value is True  # type: ignore[call-arg] # a dependency
    assert middleware.managers.declared("cpu").leased_count == 0


async def test_a_dependency_on_an_unknown_manager_is_the_tasks_error(broker: InMemoryBroker) -> None:
    @broker.task
    async def work(lease: Annotated[ExecutorLease, TaskiqDepends(executor_lease("gpu"))]) -> None: ...

    error = (await result_of(await work.kiq())).error  # type: ignore[call-arg] # a dependency
    assert isinstance(error, InvalidOptionError)
    assert "cpu" in str(error)


async def test_managers_start_with_the_first_task_and_stop_with_the_broker(
    broker: InMemoryBroker, middleware: ExecutorMiddleware
) -> None:
    task = broker.register_task(process_id, executor="process")
    manager = middleware.managers.declared("process")
    assert not manager.running
    _, pid = (await result_of(await task.kiq(1))).return_value
    assert manager.running
    await broker.shutdown()
    assert not manager.running
    assert gone(pid)


async def test_a_manager_of_someone_else_is_left_running() -> None:
    async with LeasedExecutorManager(max_pools=1) as manager:
        broker = InMemoryBroker().with_middlewares(ExecutorMiddleware({"cpu": manager}))

        @broker.task(executor="cpu")
        def work() -> int:
            return 1

        assert (await result_of(await work.kiq())).return_value == 1
        await broker.shutdown()
        assert manager.running


async def test_labels_that_cannot_be_are_refused_when_a_task_is_registered_and_when_it_is_sent(
    broker: InMemoryBroker,
) -> None:
    ran = []

    async def coroutine() -> None:
        ran.append(1)

    def plain() -> None:
        ran.append(1)

    bad = [
        (coroutine, {"executor": "cpu"}, "executor_lease"),
        (coroutine, {"time_limit": 3}, "event loop"),
        (plain, {"executor": "gpu"}, "'cpu'"),
        (plain, {"executor": "cpu", "time_limit": 3}, "cannot be killed"),
        *((plain, {"executor": "process", "time_limit": value}, "time_limit") for value in BAD_SECONDS),
        *((plain, {"executor": "billiard", "soft_time_limit": value}, "soft_time_limit") for value in BAD_SECONDS),
        *((plain, {"executor": "billiard", "max_memory": value}, "max_memory") for value in (*BAD_SECONDS, 1.5)),
    ]
    for function, labels, says in bad:
        with pytest.raises(InvalidOptionError, match=says):
            broker.register_task(function, task_name="bad", **labels)
    tasks = {one: broker.register_task(one, task_name=one.__name__) for one in (coroutine, plain)}
    for function, labels, says in bad:
        with pytest.raises(InvalidOptionError, match=says):
            await tasks[function].kicker().with_labels(**labels).kiq()
    assert ran == []


async def test_a_message_that_arrives_with_an_unknown_executor_ends_with_that_error(broker: InMemoryBroker) -> None:
    task = broker.register_task(process_id, executor="process")
    message = TaskiqMessage(task_id="bad", task_name=task.task_name, labels={"executor": "gpu"}, args=[1], kwargs={})
    await broker.kick(broker.formatter.dumps(message))
    error = (await AsyncTaskiqTask("bad", broker.result_backend).wait_result(check_interval=0.01, timeout=30)).error
    assert isinstance(error, InvalidOptionError)
    assert error.option == "executor"


@pytest.mark.parametrize(
    "options",
    [
        {"managers": ["cpu"]},
        {"managers": {"cpu": 3}},
        {"managers": {"": {"max_pools": 1}}},
        {"managers": {"cpu": {"max_pool": 1}}},
        {"managers": {"cpu": {"max_pools": 1}}, "default": "gpu"},
        {"managers": {}, "default": True},
    ],
)
def test_a_bad_argument_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InvalidOptionError):
        ExecutorMiddleware(**options)


@pytest.mark.parametrize(
    "arguments", [{"name": ""}, {"name": "cpu", "lease_seconds": -1}, {"name": "cpu", "timeout": float("nan")}]
)
def test_a_bad_lease_dependency_is_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(InvalidOptionError):
        executor_lease(**arguments)
