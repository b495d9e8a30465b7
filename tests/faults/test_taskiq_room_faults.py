"""Workers are killed around the waiting room, and its store restarts: nothing is lost, nothing runs twice at once."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
import redis

from tests.harness.redis_server import RedisServer
from tests.harness.waiting import await_until
from tests.harness.workers import TaskiqWorker
from tests.integration.taskiq_room_app import events, info_of, most_at_once, parked, results, started, write_app

pytestmark = pytest.mark.leaves("keys", reason="the broker's own queue, and the history that the tasks write")


async def no_message_left(module: Any, pool: str) -> None:
    async def empty() -> bool:
        info = await info_of(module, pool)
        return (info.used, info.waiting) == (0, 0)

    await await_until("the pool and its room are empty", empty, timeout=20)


def runs_of(client: redis.Redis, kind: str, x: int) -> list[str]:
    return [event[1] for event in events(client, kind) if event[2] == x]


async def test_a_worker_is_killed_and_another_added_while_a_backlog_is_parked(
    app_module: Callable[[str], str],
    taskiq_worker: Callable[..., TaskiqWorker],
    redis_client: redis.Redis,
    request: pytest.FixtureRequest,
) -> None:
    app = write_app("list", app_module, request)
    workers = [taskiq_worker(f"{app}:broker", workers=1) for _ in range(2)]
    async with started(app) as module:
        sent = [await module.limited.kiq(x, 0.02) for x in range(160)]

        async def all_arrived() -> bool:
            done = sum(event[1] == "in" for event in events(redis_client, "limited"))
            return (await info_of(module, "api")).waiting + done >= 160 and done > 30

        await await_until("all messages are parked or have run", all_arrived, timeout=30)
        (pid,) = workers[0].children()
        workers[0].kill_all()
        killed = {pid: time.time()}
        taskiq_worker(f"{app}:broker", workers=1)
        assert await results(sent) == list(range(160))
        await no_message_left(module, "api")
    assert most_at_once(redis_client, "limited", killed) <= 2
    begun = [event[2] for event in events(redis_client, "limited") if event[1] == "in"]
    assert set(begun) == set(range(160))
    assert len(begun) <= 162, "more messages ran again than the killed worker had begun"


async def test_a_worker_killed_between_parking_and_the_brokers_acknowledgement_costs_no_second_run(
    app_module: Callable[[str], str],
    taskiq_worker: Callable[..., TaskiqWorker],
    redis_client: redis.Redis,
    request: pytest.FixtureRequest,
) -> None:
    app = write_app("impatient stream", app_module, request)
    taskiq_worker(f"{app}:broker", workers=1)
    async with started(app) as module:
        sent = [await module.gated.kiq(0)]
        await await_until("it runs", lambda: events(redis_client, "gated"))
        redis_client.set("die before the broker has its acknowledgement", 1)
        sent.append(await module.gated.kiq(1))
        await await_until(
            "the worker is dead", lambda: not redis_client.exists("die before the broker has its acknowledgement")
        )

        async def all_acknowledged() -> bool:
            # Looked for before the next nudge is sent, which is itself unacknowledged for a moment.
            pending = redis_client.xpending("work", "taskiq")["pending"]
            if runs_of(redis_client, "gated", 1) == ["in"] and pending == 0:
                return True
            await module.nudge.kiq()
            return False

        await await_until("the parked message runs and its copy is acknowledged", all_acknowledged, 30, 0.3)
        redis_client.set("go", 1, ex=60)
        assert await results(sent) == [0, 1]
        await no_message_left(module, "one")
    assert runs_of(redis_client, "gated", 0) == ["in", "in", "out"]
    assert runs_of(redis_client, "gated", 1) == ["in", "out"]


async def test_a_worker_killed_between_a_run_and_its_acknowledgement_runs_the_message_once_more(
    app_module: Callable[[str], str],
    taskiq_worker: Callable[..., TaskiqWorker],
    redis_client: redis.Redis,
    request: pytest.FixtureRequest,
) -> None:
    app = write_app("list", app_module, request)
    taskiq_worker(f"{app}:broker", workers=1)
    async with started(app) as module:
        first = await module.gated.kiq(0)
        await await_until("it runs", lambda: events(redis_client, "gated"))
        second = await module.gated.kicker().with_task_id("second").kiq(1)
        await parked(module, "one", 1)
        redis_client.set("die after the run of second", 1)
        redis_client.set("go", 1, ex=60)
        assert await results([first, second]) == [0, 1]
        await await_until("it has run again", lambda: len(runs_of(redis_client, "gated", 1)) == 4, timeout=30)
        await no_message_left(module, "one")
    assert runs_of(redis_client, "gated", 1) == ["in", "out", "in", "out"]


async def test_what_is_parked_runs_after_its_store_has_restarted_with_its_data(
    app_module: Callable[[str], str],
    taskiq_worker: Callable[..., TaskiqWorker],
    redis_client: redis.Redis,
    make_redis: Callable[..., RedisServer],
    request: pytest.FixtureRequest,
) -> None:
    server = make_redis(keep_data=True)
    app = write_app("stream", app_module, request, server.url)
    taskiq_worker(f"{app}:broker", workers=2)
    async with started(app) as module:
        sent = [await module.limited.kiq(x, 0.05) for x in range(60)]
        await await_until("some have run", lambda: len(events(redis_client, "limited")) > 20, timeout=20)
        server.kill()
        server.restart()
        free = [await module.unlimited.kiq(x) for x in range(5)]
        assert await results(free) == list(range(5))
        assert await results(sent) == list(range(60))
        await no_message_left(module, "api")
    assert most_at_once(redis_client, "limited") <= 2
    begun = [event[2] for event in events(redis_client, "limited") if event[1] == "in"]
    assert set(begun) == set(range(60))
