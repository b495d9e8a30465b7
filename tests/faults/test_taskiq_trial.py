"""A day in production: a long line before a limit, other tasks behind it, a worker that dies and one that comes."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable

import pytest
import redis

from tests.harness.waiting import await_until
from tests.harness.workers import TaskiqWorker
from tests.integration.taskiq_room_app import events, info_of, most_at_once, results, started, write_app

LIMITED, FREE, SECONDS = 300, 20, 0.03


@pytest.mark.leaves("keys", reason="the broker's own queue, and the history that the tasks write")
@pytest.mark.parametrize("kind", ["impatient stream", pytest.param("rabbitmq", marks=pytest.mark.rabbitmq)])
async def test_a_line_before_a_limit_survives_its_workers(
    kind: str,
    app_module: Callable[[str], str],
    taskiq_worker: Callable[..., TaskiqWorker],
    redis_client: redis.Redis,
    request: pytest.FixtureRequest,
) -> None:
    def of(what: str) -> list[int]:
        return [event[2] for event in events(redis_client, "limited") if event[1] == what]

    app = write_app(kind, app_module, request)
    doomed, _ = [taskiq_worker(f"{app}:broker", workers=2) for _ in range(2)]
    async with started(app) as module:
        limited = [await module.limited.kiq(x, SECONDS) for x in range(LIMITED)]
        sent = time.time()
        free = [await module.unlimited.kiq(x) for x in range(FREE)]
        assert await results(free) == list(range(FREE))
        await await_until("a third has run", lambda: len(of("out")) > LIMITED / 3, timeout=60)
        pids = doomed.children()
        doomed.kill_all()
        killed = dict.fromkeys(pids, time.time())
        finished = len(of("out"))
        assert finished < LIMITED - 20, "the worker was killed at the end and not in the middle"
        taskiq_worker(f"{app}:broker", workers=2)

        async def nothing_is_left() -> bool:
            await module.nudge.kiq()
            info = await info_of(module, "api")
            return (info.used, info.waiting) == (0, 0) and set(of("out")) == set(range(LIMITED))

        await await_until("all have run", nothing_is_left, timeout=60, interval=0.3)
        assert await results(limited) == list(range(LIMITED))
    assert most_at_once(redis_client, "limited", killed) == 2
    begun, ended = Counter(of("in")), Counter(of("out"))
    again = {x for x in begun if begun[x] > 1 and begun[x] == ended[x]}
    assert len(again) <= 4, "more than what had ended and was not acknowledged when its worker was killed ran again"
    last_free = max(event[4] for event in events(redis_client, "unlimited"))
    meanwhile = [
        event for event in events(redis_client, "limited") if event[1] == "out" and sent < event[4] < last_free
    ]
    assert len(meanwhile) < LIMITED / 3, "the unlimited tasks waited for the limited ones"
    assert sorted(event[2] for event in events(redis_client, "unlimited")) == list(range(FREE))
