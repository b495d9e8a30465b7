"""What becomes of slots and held tasks when parts of a worker die."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from billiard.exceptions import TimeLimitExceeded, WorkerLostError

from tests.harness.processes import gone
from tests.harness.proxy import TcpProxy
from tests.harness.redis_server import RedisServer
from tests.harness.waiting import wait_until
from tests.integration.celery_apps import Deployment

LEASE = 2.0


@pytest.fixture
def deployment(own_redis: RedisServer, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Deployment]:
    late = getattr(request, "param", False)
    made = Deployment(tmp_path, own_redis, lease=LEASE, acks_late=late)
    yield made
    made.close()


@pytest.mark.lowest
def test_a_hard_time_limit_frees_the_slot_once_its_process_is_gone(deployment: Deployment) -> None:
    app = deployment.module
    with deployment.worker("prefork", concurrency=2):
        sent = [app.hard.delay(30), app.hard.delay(0)]
        with pytest.raises(TimeLimitExceeded):
            sent[0].get(timeout=20)
        sent[1].get(timeout=20)
        first = int(deployment.list("hard")[0])
        assert gone(first)
        deployment.wait_free("hard")


@pytest.mark.lowest
@pytest.mark.parametrize("deployment", [False, True], indirect=True, ids=["acks_early", "acks_late"])
def test_a_killed_child_frees_its_slot(deployment: Deployment) -> None:
    app = deployment.module
    with deployment.worker("prefork", concurrency=2):
        lost = app.die.delay("kill")
        with pytest.raises(WorkerLostError):
            lost.get(timeout=30)
        assert app.die.delay("return").get(timeout=20) == "return"
        deployment.wait_free("die")


def test_a_terminated_task_frees_its_slot(deployment: Deployment) -> None:
    app = deployment.module
    with deployment.worker("prefork", concurrency=2):
        running = app.one.delay("terminate", 60)
        wait_until("it runs", lambda: deployment.list("started:terminate"), 10)
        running.revoke(terminate=True, signal="SIGKILL")
        assert app.one.delay("terminate", 0).get(timeout=30) == "one:terminate"
        deployment.wait_free("one:terminate")


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_a_killed_worker_frees_its_slots_within_the_lease(deployment: Deployment, pool: str) -> None:
    app = deployment.module
    with deployment.worker(pool, concurrency=2) as first:
        app.one.delay("killed", 60)
        wait_until("it runs", lambda: deployment.list("started:killed"), 10)
        first.kill_all()
    assert deployment.holders("one:killed") == 1
    deployment.wait_free("one:killed", LEASE + 3)


@pytest.mark.parametrize(
    ("deployment", "pool", "policy"),
    [
        (False, "prefork", "wait"),
        (True, "prefork", "park"),
        (True, "threads", "wait"),
        pytest.param(True, "prefork", "wait", marks=pytest.mark.soak),
        pytest.param(False, "prefork", "park", marks=pytest.mark.soak),
        pytest.param(False, "threads", "wait", marks=pytest.mark.soak),
    ],
    indirect=["deployment"],
)
def test_an_ordered_shutdown_loses_nothing_that_waits(deployment: Deployment, pool: str, policy: str) -> None:
    app = deployment.module
    with deployment.worker(pool, concurrency=2) as first:
        sent = [app.one.apply_async(("restore", 0.3), pool_on_full=policy) for _ in range(6)]
        wait_until("one has run", lambda: deployment.list("finished:restore"), 10)
        assert first.terminate() == 0
    done = len(deployment.list("finished:restore"))
    assert done < 6
    with deployment.worker(pool, concurrency=2):
        assert [result.get(timeout=30) for result in sent] == ["one:restore"] * 6
    assert sorted(deployment.list("started:restore")) == sorted(result.id for result in sent), "each ran exactly once"
    assert deployment.peak("one-restore") == 1


@pytest.mark.parametrize(
    ("deployment", "policy"),
    [
        (False, "wait"),
        (True, "park"),
        pytest.param(True, "wait", marks=pytest.mark.soak),
        pytest.param(False, "park", marks=pytest.mark.soak),
    ],
    indirect=["deployment"],
)
def test_an_ordered_shutdown_waits_for_a_task_that_a_child_was_just_sent(deployment: Deployment, policy: str) -> None:
    app = deployment.module
    with deployment.worker("prefork", concurrency=1, args=("-l", "DEBUG")) as worker:
        app.one.delay("sent", 0).get(timeout=20)
        deployment.wait_free("one:sent")
        with deployment.stopped_child(worker):
            sent = app.one.apply_async(("sent", 0.2), pool_on_full=policy)
            wait_until("it has its slot", lambda: deployment.holders("one:sent") == 1, 20)
            app.app.control.ping([worker.nodename], timeout=20, limit=1)  # the worker's loop has gone round since
            worker.terminate(None)
            worker.wait_log("Stopping Pool", 20)
        # A child whose result nobody reads ends after 30 s.
        wait_until("the worker has ended", lambda: worker.returncode is not None, 25)
        assert worker.returncode == 0
    assert sent.get(timeout=1) == "one:sent"
    deployment.wait_free("one:sent")
    with deployment.worker("prefork", concurrency=1):
        assert app.one.delay("sent", 0).get(timeout=20) == "one:sent"
    assert deployment.list("started:sent").count(sent.id) == 1


@pytest.mark.lowest
@pytest.mark.parametrize("deployment", [False, True], indirect=True, ids=["acks_early", "acks_late"])
def test_parked_tasks_outlive_the_worker_that_parked_them(deployment: Deployment) -> None:
    app = deployment.module
    with deployment.worker("prefork", concurrency=2) as first:
        sent = [app.one.apply_async(("parked", 60 if not number else 0)) for number in range(5)]
        first.wait_log(f"{sent[-1].id}] received", 10)
        wait_until("the others are parked", lambda: deployment.parked("one:parked") == 4, 10)
        wait_until("the first runs", lambda: deployment.list("started:parked"), 10)
        first.kill_all()
    with deployment.worker("threads", concurrency=2):
        assert [result.get(timeout=LEASE + 20) for result in sent[1:]] == ["one:parked"] * 4
    assert len(deployment.list("started:parked")) == 5


def test_a_killed_worker_gives_back_what_it_had_taken(tmp_path: Path, own_redis: RedisServer) -> None:
    made = Deployment(tmp_path, own_redis, lease=LEASE, acks_late=True)
    app = made.module
    with made.worker("prefork", concurrency=2) as first:
        sent = [app.one.apply_async(("taken", 1.0 if number == 0 else 3.0)) for number in range(2)]
        wait_until("the second runs, out of the room", lambda: sent[1].id in made.list("started:taken"), 20)
        first.kill_all()
    with made.worker("prefork", concurrency=2):
        assert sent[1].get(timeout=LEASE + 30) == "one:taken"
    assert made.list("started:taken").count(sent[1].id) == 2, "it was not acknowledged, so it ran again"
    made.close()


def test_a_slow_task_keeps_its_slot_in_a_solo_worker(deployment: Deployment) -> None:
    app = deployment.module
    with deployment.worker("solo"), deployment.worker("solo"):
        sent = [app.one.delay("slow", LEASE * 1.4) for _ in range(2)]
        assert [result.get(timeout=40) for result in sent] == ["one:slow"] * 2
    assert deployment.peak("one-slow") == 1


def test_what_was_parked_behind_a_killed_solo_worker_goes_on_in_another(tmp_path: Path, own_redis: RedisServer) -> None:
    made = Deployment(tmp_path, own_redis, lease=LEASE, acks_late=True, transport={"visibility_timeout": 3})
    one = made.module.one
    with made.worker("solo") as first, made.worker("solo") as second:
        running = one.delay("solo", None)
        wait_until("it runs", lambda: made.list("started:solo"), 20)
        sent = [one.delay("solo", 0) for _ in range(5)]
        wait_until("the others are parked", lambda: made.parked("one:solo") == 5, 20)
        busy, idle = (first, second) if running.id in first.log else (second, first)
        busy.kill_all()
        wait_until("the next one runs", lambda: len(made.list("finished:solo")) >= 1, 2 * LEASE + 10)
        made.history.set("celery-test:go:one-solo", 1, ex=60)
        assert [result.get(timeout=60) for result in (*sent, running)] == ["one:solo"] * 6
        assert sorted(made.list("finished:solo")) == sorted(result.id for result in (running, *sent))
        assert made.list("started:solo").count(running.id) == 2, "it was not acknowledged, so it ran again"
        assert idle.alive
        made.wait_free("one:solo")
    made.close()


def test_a_store_that_is_away_holds_limited_tasks_and_no_others(tmp_path: Path, own_redis: RedisServer) -> None:
    with RedisServer() as broker:
        made = Deployment(tmp_path, own_redis, broker=broker.url, lease=LEASE)
        app = made.module
        with made.worker("prefork", concurrency=2) as worker:
            assert app.one.delay("outage", 0).get(timeout=20) == "one:outage"
            made.wait_free("one:outage")
            os.kill(own_redis.pid, signal.SIGSTOP)
            try:
                held = app.one.apply_async(("outage", 0), ignore_result=True)
                worker.wait_log("is held until its limit can be asked", 60)
                free = app.total.apply_async(([1, 2],), ignore_result=True)
                worker.wait_log(f"Task app.total[{free.id}] succeeded", 20)
                assert f"[{held.id}] succeeded" not in worker.log
            finally:
                os.kill(own_redis.pid, signal.SIGCONT)
            worker.wait_log(f"Task app.one[{held.id}] succeeded", 30)
        made.close()


@pytest.mark.parametrize(("pool", "policy"), [("prefork", "wait"), ("threads", "wait"), ("prefork", "park")])
def test_a_broken_connection_to_redis_loses_nothing_that_waits(
    tmp_path: Path, own_redis: RedisServer, pool: str, policy: str
) -> None:
    with RedisServer() as broker, TcpProxy(broker.port) as proxy:
        everything_runs_after_a_cut(Deployment(tmp_path, own_redis, broker=proxy.redis_url), proxy, pool, policy)


@pytest.mark.lowest
def test_a_task_that_a_child_was_just_sent_keeps_its_slot_when_the_connection_breaks(
    tmp_path: Path, own_redis: RedisServer
) -> None:
    with RedisServer() as broker, TcpProxy(broker.port) as proxy:
        made = Deployment(tmp_path, own_redis, broker=proxy.redis_url)
        with made.worker("prefork", concurrency=1) as worker:
            made.module.one.delay("broken", 0).get(timeout=20)
            made.wait_free("one:broken")
            with made.stopped_child(worker):
                sent = made.module.one.delay("broken", 0.5)
                wait_until("it has its slot", lambda: made.holders("one:broken") == 1, 20)
                made.module.app.control.ping([worker.nodename], timeout=20, limit=1)
                proxy.cut()
                wait_until("the worker has connected again", lambda: worker.log.count("Connected to") == 2, 20)
                assert made.holders("one:broken") == 1
            again = made.module.one.delay("broken", 0)
            assert [sent.get(timeout=20), again.get(timeout=20)] == ["one:broken"] * 2
            made.wait_free("one:broken")
        assert made.peak("one-broken") == 1
        made.close()


@pytest.mark.rabbitmq
@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_a_broken_connection_to_rabbitmq_loses_nothing_that_is_held(
    tmp_path: Path, own_redis: RedisServer, amqp_url: str, amqp_name: Any, pool: str
) -> None:
    parts = urlsplit(amqp_url)
    with TcpProxy(parts.port or 5672, parts.hostname or "127.0.0.1") as proxy:
        through = amqp_url.replace(f"{parts.hostname}:{parts.port or 5672}", f"127.0.0.1:{proxy.port}")
        assert through != amqp_url
        made = Deployment(tmp_path, own_redis, broker=through, queue=amqp_name("cut"), acks_late=True)
        everything_runs_after_a_cut(made, proxy, pool)


def everything_runs_after_a_cut(made: Deployment, proxy: TcpProxy, pool: str, policy: str = "wait") -> None:
    with made.worker(pool, concurrency=3):
        sent = [made.module.one.apply_async(("cut", 0.3), pool_on_full=policy) for _ in range(6)]
        wait_until("one has run", lambda: made.list("finished:cut"), 20)
        proxy.cut()
        assert [result.get(timeout=40) for result in sent] == ["one:cut"] * 6
        started = made.list("started:cut")
        assert set(started) == {result.id for result in sent}
        # Acknowledged late, what ran in that moment may run again, and what had ended just before it.
        assert len(started) <= 8
        assert made.peak("one-cut") == 1
        made.wait_free("one:cut")
    made.close()
