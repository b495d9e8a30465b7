"""What else Celery can do, over limits: each of its features means what it means without them."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from billiard.exceptions import SoftTimeLimitExceeded, TimeLimitExceeded
from celery import chain, chord, group
from celery.exceptions import TaskRevokedError

from tests.harness.redis_server import RedisServer
from tests.harness.waiting import wait_until
from tests.integration.celery_apps import Deployment

EXTRA = """
@app.task(shared=False, name="app.soft", pool="soft", pool_size=1, soft_time_limit=1)
def soft(seconds):
    time.sleep(seconds)


LOST = {"acks_late": True, "reject_on_worker_lost": True}


@app.task(shared=False, name="app.lost_once", pool="lost", pool_size=1, bind=True, **LOST)
def lost_once(self, key):
    history().rpush(f"celery-test:started:{key}", self.request.id)
    if history().set(f"celery-test:died:{key}", 1, nx=True):
        os.kill(os.getpid(), signal.SIGKILL)
    return self.request.retries


@app.task(shared=False, name="app.ident", pool="ident", pool_size=1)
def ident(number):
    inside("ident", 0.02)
    return number


@app.task(shared=False, name="app.paced", pool="paced", pool_size=1, rate_limit="20/s")
def paced(number):
    inside("paced", 0.1)
    return number


@app.task(shared=False, name="app.gated", pool="gated", pool_size=1, bind=True)
def gated(self, key):
    history().rpush(f"celery-test:started:{key}", self.request.id)
    while not history().exists(f"celery-test:go:{key}"):
        time.sleep(0.02)
    return self.request.retries
"""


@pytest.fixture
def made(module_redis: RedisServer, tmp_path: Path) -> Iterator[Deployment]:
    made = Deployment(tmp_path, module_redis, extra=EXTRA, lease=3.0)
    yield made
    made.clear()
    made.close()
    module_redis.client().flushall()


def go(made: Deployment, key: str) -> None:
    """Let the gated tasks of a key end."""
    made.history.set(f"celery-test:go:{key}", 1, ex=100)


def test_time_limits_losses_retries_and_revocations(made: Deployment) -> None:
    app = made.module
    with made.worker("prefork", concurrency=3) as worker:
        slow = [app.soft.delay(30), app.soft.delay(0)]
        lost = [app.lost_once.delay(key) for key in "ab"]
        with pytest.raises(SoftTimeLimitExceeded):
            slow[0].get(timeout=20)
        assert slow[1].get(timeout=20) is None
        # The one that waited dies as well, out of the room: it goes back to its place in the line, and runs again.
        assert [result.get(timeout=60) for result in lost] == [0, 0]
        assert [made.list(f"started:{key}") for key in "ab"] == [[result.id] * 2 for result in lost]

        running = app.gated.delay("revoke")
        wait_until("the first runs", lambda: made.list("started:revoke"), 20)
        held, parked = (app.gated.apply_async(("revoke",), pool_on_full=policy) for policy in ("wait", "park"))
        worker.wait_log(f"{held.id}] received")
        wait_until("the last is parked", lambda: made.parked("gated") == 1, 20)
        for result in (held, parked, running):
            result.revoke(terminate=True)
        last = app.gated.delay("revoke")
        for result in (held, parked, running):
            with pytest.raises(TaskRevokedError):
                result.get(timeout=30)
        go(made, "revoke")
        assert last.get(timeout=30) == 0
        assert made.list("started:revoke") == [running.id, last.id]
        for pool in ("soft", "lost", "gated"):
            made.wait_free(pool)


def test_groups_chains_and_chords_over_limited_tasks(made: Deployment) -> None:
    app = made.module
    with made.worker("prefork", concurrency=3, args=("--max-tasks-per-child", "8", "--autoscale", "3,1")):
        numbers = list(range(6))
        together = group(app.ident.s(number) for number in numbers).apply_async()
        total = chord((app.ident.s(number) for number in numbers), app.total.s()).apply_async()
        one_by_one = chain(app.ident.s(3), app.ident.s(), app.ident.s()).apply_async()
        nested = chain(group(app.ident.s(1), app.ident.s(2)), app.total.s(), app.ident.s()).apply_async()
        assert together.get(timeout=60) == numbers
        assert [result.get(timeout=60) for result in (total, one_by_one, nested)] == [15, 3, 3]
        assert made.peak("ident") == 1
        made.wait_free("ident")


def test_a_chord_fails_whose_header_lacks_a_task_that_was_dropped(made: Deployment) -> None:
    app = made.module
    with made.worker("prefork", concurrency=3):
        first = app.one.delay("full", None)
        wait_until("the first has begun", lambda: made.list("started:full"), 20)
        header = [app.ident.s(1), app.one.s("full").set(pool_on_full="drop")]
        total = chord(header, app.total.s()).apply_async()
        wait_until("the chord has failed", lambda: total.state == "FAILURE", 20)
        assert sorted(result.state for result in total.parent.results) == ["REVOKED", "SUCCESS"]
        made.history.set("celery-test:go:one-full", 1, ex=60)
        first.get(timeout=20)
        assert made.list("started:full") == [first.id]


def test_a_rate_limit_of_celery_beside_a_pool(made: Deployment) -> None:
    app = made.module
    with made.worker("threads", concurrency=3, args=("--prefetch-multiplier", "10")):
        paced = [app.paced.delay(number) for number in range(8)]
        free = [app.free.delay(number) for number in range(4)]
        assert [result.get(timeout=30) for result in [*paced, *free]] == [*range(8), *range(4)]
        assert made.peak("paced") == 1
        made.wait_free("paced")


@pytest.mark.parametrize(
    ("broker", "policy"),
    [
        ("redis", "park"),
        pytest.param("rabbitmq", "wait", marks=pytest.mark.rabbitmq),
        pytest.param("redis", "wait", marks=pytest.mark.soak),
        pytest.param("rabbitmq", "park", marks=[pytest.mark.rabbitmq, pytest.mark.soak]),
    ],
)
def test_a_thousand_waiting_tasks_hold_up_no_other_and_the_prefetch_count_returns(
    made: Deployment,
    module_redis: RedisServer,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    broker: str,
    policy: str,
) -> None:
    if broker == "rabbitmq":
        url, queue = request.getfixturevalue("amqp_url"), request.getfixturevalue("amqp_name")("prefetch")
        made.close()
        made = Deployment(tmp_path, module_redis, broker=url, queue=queue, extra=EXTRA)
    app = made.module
    with made.worker("prefork", concurrency=2, args=("--prefetch-multiplier", "1")) as worker:

        def prefetched() -> Any:
            stats = app.app.control.inspect([worker.nodename], timeout=5).stats() or {}
            return stats.get(worker.nodename, {}).get("prefetch_count")

        wait_until("the worker tells its prefetch count", lambda: prefetched() == 2, 20)
        with app.app.producer_pool.acquire() as producer:
            options = {"pool_on_full": policy, "ignore_result": True, "producer": producer}
            first = app.gated.delay("many")
            for _ in range(1000):
                app.gated.apply_async(("many",), **options)
        assert app.free.delay(7).get(timeout=60) == 7
        assert made.list("started:many") == [first.id]
        go(made, "many")
        wait_until("all have run", lambda: len(made.list("started:many")) == 1001, 60)
        assert first.get(timeout=10) == 0
        made.wait_free("gated")
        wait_until("the prefetch count is what it was", lambda: prefetched() == 2, 20)
    if broker == "rabbitmq":
        made.close()


def test_a_cold_shutdown_leaves_to_others_what_waits_and_what_was_acknowledged_late(
    made: Deployment, module_redis: RedisServer, tmp_path: Path
) -> None:
    made.close()
    made = Deployment(tmp_path, module_redis, extra=EXTRA, lease=3.0, acks_late=True)
    app = made.module
    with made.worker("prefork", concurrency=3) as first:
        running = app.gated.delay("cold")
        wait_until("the first runs", lambda: made.list("started:cold"), 20)
        waiting = [app.gated.apply_async(("cold",), pool_on_full=policy) for policy in ("park", "wait", "park")]
        wait_until("the others wait", lambda: made.parked("gated") == 2, 20)
        os.kill(first.pid, signal.SIGQUIT)
        wait_until("the worker has ended", lambda: first.returncode is not None, 40)
    go(made, "cold")
    with made.worker("prefork", concurrency=3):
        assert [result.get(timeout=30) for result in [running, *waiting]] == [0] * 4
        made.wait_free("gated")
    assert sorted(made.list("started:cold")) == sorted(result.id for result in [running, running, *waiting])
    made.close()


def test_a_greenlet_at_its_hard_time_limit_frees_its_slot(made: Deployment) -> None:
    app = made.module
    with made.worker("gevent", concurrency=4):
        sent = [app.hard.delay(30), app.hard.delay(0)]
        with pytest.raises(TimeLimitExceeded):
            sent[0].get(timeout=20)
        assert sent[1].get(timeout=20) is None
        made.wait_free("hard")
