"""Evictions, and pools that cancel their newest or their oldest task, in real Celery workers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from celery.exceptions import TaskRevokedError

from slotline import Pool, RedisStore, SlotLostError
from tests.harness.redis_server import RedisServer
from tests.harness.waiting import wait_until
from tests.integration.celery_apps import Deployment

POOLS = ("prefork", "threads", "gevent")


@pytest.fixture(scope="module", params=POOLS)
def deployment(
    request: pytest.FixtureRequest, module_redis: RedisServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Deployment]:
    """An application with one worker."""
    made = Deployment(tmp_path_factory.mktemp(request.param), module_redis, acks_late=request.param == "prefork")
    made.pool = request.param
    with made.worker(request.param, concurrency=4):
        yield made
    made.close()
    module_redis.client().flushall()


def running(deployment: Deployment, key: str, seconds: float = 60, **options: Any) -> Any:
    """Send a task and return it once it runs."""
    sent = deployment.module.one.apply_async((key, seconds), **options)
    wait_until("it runs", lambda: sent.id in deployment.list(f"started:{key}"), 20)
    return sent


@pytest.mark.leaves("processes", reason="the worker has children in the place of those that were killed")
@pytest.mark.parametrize(
    "deployment",
    [
        "prefork",
        pytest.param(
            "gevent", marks=pytest.mark.needs("celery>=5.5", reason="an older gevent pool cannot kill a task")
        ),
    ],
    indirect=True,
    scope="module",
)
def test_each_newcomer_has_the_oldest_task_killed_and_takes_its_slot(deployment: Deployment) -> None:
    policy: dict[str, Any] = {"pool_on_full": "cancel_oldest"}
    sent = [running(deployment, "oldest", **policy), running(deployment, "oldest", **policy)]
    sent.append(running(deployment, "oldest", pool_timeout=30, **policy))  # held in the worker
    sent.append(running(deployment, "oldest", seconds=0.1, **policy))
    for lost in sent[:3]:
        with pytest.raises(SlotLostError, match="it was evicted"):
            lost.get(timeout=20)
    assert sent[3].get(timeout=20) == "one:oldest"
    assert len(deployment.list("started:oldest")) == 4, "none ran again"
    deployment.wait_free("one:oldest")


@pytest.mark.leaves("processes", reason="the worker has children in the place of those that were killed")
@pytest.mark.parametrize("deployment", ["prefork"], indirect=True, scope="module")
def test_a_heavy_newcomer_has_as_many_tasks_killed_as_it_needs(deployment: Deployment) -> None:
    policy: dict[str, Any] = {"pool_on_full": "cancel_oldest", "pool_size": 3}
    light = [running(deployment, "heavy", **policy) for _ in range(3)]
    parked = running(deployment, "heavy", pool_weight=2, **policy)
    assert light[2].state != "FAILURE", "two of three slots were enough"
    held = running(deployment, "heavy", seconds=0.1, pool_weight=2, pool_timeout=30, **policy)
    for lost in (*light, parked):
        with pytest.raises(SlotLostError, match="it was evicted"):
            lost.get(timeout=20)
    assert held.get(timeout=20) == "one:heavy"
    assert len(deployment.list("started:heavy")) == 5, "none ran again"
    deployment.wait_free("one:heavy")


def test_what_cannot_be_killed_keeps_its_slot_to_its_end_and_is_reported(deployment: Deployment) -> None:
    options = {} if deployment.pool == "threads" else {"pool_on_lost": "warn"}
    first = running(deployment, "kept", seconds=6.0, **options)
    store = RedisStore(deployment.server.url)
    pool = Pool("one:kept", 1, store=store)
    (holder,) = pool.sync.info().holders
    assert pool.sync.evict(holder.token) == holder.token
    store.sync.close()
    second = deployment.module.one.delay("kept", 0.0)
    deployment.workers[-1].wait_log("and runs on: ", 20)
    assert first.get(timeout=20) == second.get(timeout=20) == "one:kept"
    assert deployment.peak("one-kept") == 1
    stats = deployment.module.app.control.inspect(timeout=20, limit=1).stats()
    assert next(iter(stats.values()))["slotline"]["losses"]["running"] == 1


def test_a_newcomer_is_revoked_where_that_is_asked_for(deployment: Deployment) -> None:
    first = running(deployment, "newest", seconds=2.0)
    second = deployment.module.one.apply_async(("newest",), pool_on_full="cancel_newest")
    with pytest.raises(TaskRevokedError, match="cancelled before it began"):
        second.get(timeout=20)
    assert second.state == "REVOKED"
    assert first.get(timeout=20) == "one:newest"
    assert deployment.list("started:newest") == [first.id]
