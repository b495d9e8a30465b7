"""Leased work in real ``taskiq worker`` processes: its limits, and what is left of it when workers end."""

from __future__ import annotations

import importlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import redis

from tests.harness.processes import gone
from tests.harness.waiting import await_until, wait_until
from tests.harness.workers import TaskiqWorker

pytestmark = pytest.mark.leaves("keys", reason="the broker's own queue, and the pids that the tasks write")

APP = """
import os, re, signal, subprocess, time
import redis
from typing import Annotated
from taskiq import TaskiqDepends
from taskiq_redis import ListQueueBroker, RedisAsyncResultBackend
from slotline.leases import ExecutorLease
from taskiq_ext import ExecutorMiddleware, executor_lease

URL = "{url}"
broker = ListQueueBroker(URL, queue_name="work", socket_timeout=None).with_result_backend(
    RedisAsyncResultBackend(URL, result_ex_time=60, socket_timeout=None)
)
executors = {{name: {{"backend": name, "max_pools": 2, "workers_per_pool": 1}} for name in ("process", "billiard")}}
broker.add_middlewares(ExecutorMiddleware(executors))


def note(pid):
    with redis.Redis.from_url(URL) as client:
        client.rpush("pids", pid)


@broker.task
def hang(how: str, seconds: float = 60) -> str:
    note(os.getpid())
    note(subprocess.Popen(["sleep", "600"]).pid)
    if how == "deaf":
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            signal.signal(number, signal.SIG_IGN)
        time.sleep(seconds)
    if how == "greedy":  # C code that lets go of the interpreter's lock for nobody
        re.match("(a+)+$", "a" * 64 + "b")
    time.sleep(seconds)
    return "slept"


@broker.task
def quick(number: int) -> int:
    return number * 2


@broker.task
async def fan_out(
    first: Annotated[ExecutorLease, TaskiqDepends(executor_lease("process"))],
    second: Annotated[ExecutorLease, TaskiqDepends(executor_lease("billiard"))],
) -> None:
    for lease in (first, second):
        note(await lease.run(os.getpid))
        lease.executor.submit(time.sleep, 600)
    await second.run(time.sleep, 600)
"""


@pytest.fixture
def name(app_module: Callable[[str], str], redis_url: str) -> str:
    return app_module(APP.format(url=redis_url))


@asynccontextmanager
async def started(name: str) -> AsyncIterator[Any]:
    module = importlib.import_module(name)
    await module.broker.startup()
    try:
        yield module
    finally:
        await module.broker.shutdown()


async def result(sent: Any) -> Any:
    return await sent.wait_result(check_interval=0.02, timeout=60)


def pids(client: redis.Redis) -> list[int]:
    return [int(pid) for pid in client.lrange("pids", 0, -1)]


async def test_a_blocking_task_of_a_minute_with_a_limit_of_a_second_is_dead_and_the_next_one_runs(
    name: str, taskiq_worker: Callable[..., TaskiqWorker], redis_client: redis.Redis
) -> None:
    taskiq_worker(f"{name}:broker", workers=1)
    async with started(name) as module:
        for backend, error in (("process", "WorkTimeLimitError"), ("billiard", "TimeLimitExceeded")):
            for how in ("sleeping", "deaf", "greedy"):
                case = f"{backend}, {how}"
                redis_client.delete("pids")
                limited = module.hang.kicker().with_labels(executor=backend, time_limit=1)
                ended = await result(await limited.kiq(how))
                assert error in repr(ended.error), f"{case}: {ended.error!r}"
                assert ended.execution_time < 30, f"{case}: it would have slept for a minute"
                hung = pids(redis_client)
                assert len(hung) == 2, case
                await await_until(f"{case}: process and child are dead", lambda pids=hung: gone(*pids))
                again = module.quick.kicker().with_labels(executor=backend)
                assert (await result(await again.kiq(21))).return_value == 42


async def test_a_worker_that_is_asked_to_end_finishes_what_it_may_and_kills_the_rest(
    name: str, taskiq_worker: Callable[..., TaskiqWorker], redis_client: redis.Redis
) -> None:
    worker = taskiq_worker(f"{name}:broker", workers=1, args=("--wait-tasks-timeout", "4"))
    async with started(name) as module:
        for backend in ("process", "billiard"):
            assert (await result(await module.quick.kicker().with_labels(executor=backend).kiq(1))).return_value == 2
        short = [
            await module.hang.kicker().with_labels(executor=backend).kiq("sleeping", 1.0)
            for backend in ("process", "billiard")
        ]
        for backend in ("process", "billiard"):
            await module.hang.kicker().with_labels(executor=backend).kiq("sleeping", 600)
        await await_until("all run", lambda: len(pids(redis_client)) == 8, timeout=60)
        worker.terminate()
        assert [(await result(one)).return_value for one in short] == ["slept", "slept"]
        wait_until("no process is left", lambda: not worker.processes() and gone(*pids(redis_client)), 40)


@pytest.mark.parametrize("killed", ["the command", "the worker process"])
async def test_no_leased_process_outlives_what_was_killed(
    name: str, taskiq_worker: Callable[..., TaskiqWorker], redis_client: redis.Redis, killed: str
) -> None:
    worker = taskiq_worker(f"{name}:broker", workers=2, args=("--wait-tasks-timeout", "2"))
    async with started(name) as module:
        await module.fan_out.kiq()
        for backend in ("process", "billiard"):
            await module.hang.kicker().with_labels(executor=backend).kiq("sleeping")
        await await_until("all run", lambda: len(pids(redis_client)) == 6, timeout=60)
        if killed == "the command":
            worker.kill()
            wait_until("its workers have ended, too", lambda: not worker.processes(), 60)
        else:
            for child in worker.children():
                worker.kill_child(child)
        wait_until("the leased processes are dead", lambda: gone(*pids(redis_client)), 20)
