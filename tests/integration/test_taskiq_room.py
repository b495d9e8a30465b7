"""Messages over their limit wait in the room, in real ``taskiq worker`` processes, on real brokers."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import redis

from slotline import Pool
from tests.harness.waiting import await_until, wait_until
from tests.harness.workers import TaskiqWorker
from tests.integration.taskiq_room_app import events, info_of, most_at_once, parked, results, started, write_app

pytestmark = pytest.mark.leaves("keys", reason="the broker's own queue, and the history that the tasks write")


@pytest.mark.parametrize("kind", ["list", "stream", "rabbitmq"])
async def test_a_backlog_over_its_limit_delays_nobody_and_runs_once_each(
    kind: str,
    app_module: Callable[[str], str],
    taskiq_worker: Callable[..., TaskiqWorker],
    redis_client: redis.Redis,
    request: pytest.FixtureRequest,
) -> None:
    app = write_app(kind, app_module, request)
    worker = taskiq_worker(f"{app}:broker", workers=2, args=("--max-async-tasks", "4"))
    async with started(app) as module:
        pool = Pool("api", 2, store=module.store)
        held = [await pool.acquire() for _ in range(2)]
        sent = [await (module.limited if x % 2 else module.limited_sync).kiq(x) for x in range(300)]
        behind = [await module.unlimited.kiq(x) for x in range(20)]
        assert await results(behind) == list(range(20))
        assert events(redis_client, "limited") == []
        for slot in held:
            await pool.release(slot)
        await await_until("limited ones run", lambda: events(redis_client, "limited"))
        beside = [await module.unlimited.kiq(x) for x in range(20)]
        assert await results(beside) == list(range(20))
        finished = sum(event[1] == "out" for event in events(redis_client, "limited"))
        assert finished < 300, "the unlimited tasks waited for the limited ones"
        assert await results(sent) == list(range(300))
        ran = sorted(event[2] for event in events(redis_client, "limited") if event[1] == "in")
        assert ran == list(range(300))
        assert most_at_once(redis_client, "limited") <= 2
        assert {event[3] for event in events(redis_client, "limited")} == set(worker.children())
        info = await info_of(module, "api")
        assert (info.used, info.waiting) == (0, 0)


async def test_retries_and_requeues_see_nothing_of_the_wait(
    app_module: Callable[[str], str],
    taskiq_worker: Callable[..., TaskiqWorker],
    redis_client: redis.Redis,
    request: pytest.FixtureRequest,
) -> None:
    app = write_app("stream", app_module, request)
    taskiq_worker(f"{app}:broker", workers=1, args=("--ack-type", "when_executed"))
    async with started(app) as module:
        gate = await module.gated.kiq(0)
        await await_until("it runs", lambda: events(redis_client, "gated"))
        sent = [await module.flaky.kiq(1), await module.requeued.kiq(2), await module.requeued.kiq(3)]
        await parked(module, "one", 3)
        redis_client.set("go", 1, ex=60)
        assert await results([gate, *sent]) == [0, 1, 2, 3]
        assert [event[2] for event in events(redis_client, "flaky")] == [0, 1, 2]
        assert sorted(event[2] for event in events(redis_client, "requeued")) == [2, 2, 3, 3]
        assert (await info_of(module, "one")).used == 0


@pytest.mark.needs("taskiq>=0.13", reason="older process pools run no plain function: they try to pickle its context")
async def test_functions_in_a_process_pool_are_parked_like_others(
    app_module: Callable[[str], str],
    taskiq_worker: Callable[..., TaskiqWorker],
    redis_client: redis.Redis,
    request: pytest.FixtureRequest,
) -> None:
    app = write_app("stream", app_module, request)
    args = ("--use-process-pool", "--max-process-pool-processes", "4", "--ack-type", "when_received")
    worker = taskiq_worker(f"{app}:broker", workers=1, args=args)
    async with started(app) as module:
        sent = [await module.limited_sync.kiq(x) for x in range(30)]
        assert await results(sent) == list(range(30))
    seen = events(redis_client, "limited")
    assert sorted(event[2] for event in seen if event[1] == "in") == list(range(30))
    assert {event[3] for event in seen}.isdisjoint(worker.children())
    assert most_at_once(redis_client, "limited") <= 2
    assert "is parked" in worker.log


@pytest.mark.parametrize(
    ("kind", "ack_type"),
    [
        ("list", "when_received"),
        ("stream", "when_executed"),
        pytest.param("rabbitmq", "when_saved", marks=pytest.mark.rabbitmq),
    ],
)
async def test_sigterm_ends_what_runs_and_waits_here_and_leaves_the_rest_to_the_next_worker(
    kind: str,
    ack_type: str,
    app_module: Callable[[str], str],
    taskiq_worker: Callable[..., TaskiqWorker],
    redis_client: redis.Redis,
    request: pytest.FixtureRequest,
) -> None:
    app = write_app(kind, app_module, request)
    args = ("--ack-type", ack_type, "--max-async-tasks", "3")
    first = taskiq_worker(f"{app}:broker", workers=1, args=args)
    async with started(app) as module:
        sent = [await module.gated.kiq(0)]
        await await_until("it runs", lambda: events(redis_client, "gated"))
        sent += [await module.gated.kiq(x) for x in range(1, 5)]
        await parked(module, "one", 4)
        sent.append(await module.gated.kicker().with_labels(pool_on_full="wait").kiq(5))
        await parked(module, "one", 5)
        first.terminate(timeout=None)
        first.wait_log("Stopping prefetching messages")
        # What Redis sends to a read that is being broken off is lost, with or without a limit.
        wait_until("it reads no more", lambda: not any("b" in one["flags"] for one in redis_client.client_list()))
        unread = [await module.unlimited.kiq(x) for x in range(3)]
        redis_client.set("go", 1, ex=60)
        wait_until("the worker has ended", lambda: not first.processes(), timeout=20)
        assert [event[1:3] for event in events(redis_client, "gated")] == [["in", 0], ["out", 0], ["in", 5], ["out", 5]]
        info = await info_of(module, "one")
        assert (info.used, info.waiting) == (0, 4)
        taskiq_worker(f"{app}:broker", workers=1, args=args)
        assert await results([*sent, *unread]) == [*range(6), *range(3)]
    assert sorted(event[2] for event in events(redis_client, "gated") if event[1] == "in") == list(range(6))
    assert most_at_once(redis_client, "gated") == 1


async def test_a_run_from_the_room_that_a_stopping_worker_does_not_wait_for_runs_again(
    app_module: Callable[[str], str],
    taskiq_worker: Callable[..., TaskiqWorker],
    redis_client: redis.Redis,
    request: pytest.FixtureRequest,
) -> None:
    app = write_app("list", app_module, request)
    first = taskiq_worker(f"{app}:broker", workers=1, args=("--wait-tasks-timeout", "0.2"))
    async with started(app) as module:
        held = await Pool("one", 1, store=module.store).acquire()
        sent = await module.gated.kiq(0)
        await parked(module, "one", 1)
        await Pool("one", 1, store=module.store).release(held)
        await await_until("it runs", lambda: events(redis_client, "gated"))
        first.terminate()
        assert [event[1] for event in events(redis_client, "gated")] == ["in"]
        taskiq_worker(f"{app}:broker", workers=1)
        await await_until("it runs again", lambda: len(events(redis_client, "gated")) == 2, timeout=20)
        redis_client.set("go", 1, ex=60)
        assert await results([sent]) == [0]
        assert (await info_of(module, "one")).waiting == 0
