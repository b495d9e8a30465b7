"""Cached results in real workers: canvas, retries, errors, stampedes and the sending side."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from celery import Celery, chain, chord, group
from celery.result import GroupResult

from tests.harness.redis_server import RedisServer
from tests.harness.waiting import wait_until
from tests.harness.workers import all_ready
from tests.integration.celery_apps import Deployment

pytestmark = pytest.mark.filterwarnings("ignore:Call to deprecated setex")  # Celery's own call, in its result backend


@pytest.fixture(scope="module", params=["prefork", "threads", "solo"])
def deployment(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """An application with two workers of one kind; every test of this module uses them."""
    with RedisServer() as server:
        made = Deployment(tmp_path_factory.mktemp(request.param), server)
        with made.worker(request.param, wait=False) as one, made.worker(request.param, wait=False) as two:
            all_ready([one, two])
            yield made
        made.close()


@pytest.fixture(autouse=True)
def _nothing_cached(deployment: Deployment) -> None:
    deployment.clear()
    for key in deployment.history.scan_iter("slotline:*"):
        deployment.history.delete(key)


def test_a_stampede_over_two_workers_runs_the_task_once(deployment: Deployment) -> None:
    app = deployment.module
    sent = [app.slow_add.delay(1, 2) for _ in range(12)]
    assert {result.get(timeout=20) for result in sent} == {3}
    assert deployment.list("runs") == ["1+2"]


def test_calls_that_mean_the_same_are_one_entry(deployment: Deployment) -> None:
    app = deployment.module
    assert app.slow_add.delay(1).get(timeout=10) == 2
    for call in (((1, 1), {}), ((), {"left": 1}), ((1,), {"right": 1})):
        assert app.slow_add.apply_async(*call).get(timeout=10) == 2
    assert deployment.list("runs") == ["1+1"]


@pytest.mark.lowest
def test_a_hit_on_the_sending_side_sends_nothing_and_is_a_real_result(deployment: Deployment) -> None:
    app = deployment.module
    app.slow_add.delay(4, 4).get(timeout=10)
    hit = app.slow_add.delay(4, 4)
    assert hit.ready()
    assert (hit.get(timeout=0.1), hit.state, hit.successful()) == (8, "SUCCESS", True)
    seen_by_others = app.app.AsyncResult(hit.id)
    assert (seen_by_others.state, seen_by_others.get(timeout=1)) == ("SUCCESS", 8)
    sent = app.free.delay(1)
    sent.get(timeout=10)
    logs = "".join(worker.log for worker in deployment.workers)
    assert sent.id in logs
    assert hit.id not in logs


def test_a_hit_whose_result_is_ignored_stores_nothing(deployment: Deployment) -> None:
    app = deployment.module
    app.slow_add.delay(5, 5).get(timeout=10)
    hit = app.slow_add.apply_async((5, 5), ignore_result=True)
    assert app.app.AsyncResult(hit.id).state == "PENDING"


@pytest.mark.lowest
def test_chains_groups_and_chords_use_cached_results(deployment: Deployment) -> None:
    app = deployment.module
    add = app.slow_add
    for _ in range(2):
        assert chain(add.s(1, 1), add.s(5), add.s(1)).delay().get(timeout=20) == 8
        assert group(add.s(1, 1), add.s(2, 5)).delay().get(timeout=20) == [2, 7]
        assert chord([add.s(1, 1), add.s(2, 5)], app.total.s()).delay().get(timeout=20) == 9
    assert sorted(deployment.list("runs")) == ["1+1", "2+5", "7+1"]


@pytest.mark.needs("celery>=5.7", reason="before, a restored group does not find results that are there, cached or not")
def test_a_restored_group_has_the_results_of_its_hits(deployment: Deployment) -> None:
    app = deployment.module
    app.slow_add.delay(1, 1).get(timeout=10)
    sent = group(app.slow_add.s(1, 1), app.slow_add.s(1, 1)).delay()
    sent.save()
    elsewhere = Celery("elsewhere", broker=app.BROKER, backend=app.BACKEND, set_as_current=False)
    assert GroupResult.restore(sent.id, app=elsewhere).get(timeout=10) == [2, 2]
    elsewhere.backend.client.close()
    elsewhere.close()


def test_callbacks_of_a_hit_are_called(deployment: Deployment) -> None:
    app = deployment.module
    app.slow_add.delay(3, 3).get(timeout=10)
    app.slow_add.apply_async((3, 3), link=app.free.s())
    wait_until("the callback has run", lambda: deployment.list("done") == ["free-6"], 10)
    assert deployment.list("runs") == ["3+3"]


@pytest.mark.lowest
def test_only_the_final_value_of_a_retried_task_is_cached(deployment: Deployment) -> None:
    app = deployment.module
    assert app.flaky.delay(3).get(timeout=20) == 6
    assert app.flaky.delay(3).get(timeout=20) == 6
    assert deployment.list("runs") == ["flaky-3", "flaky-3"]


def test_errors_are_cached_where_the_task_says_so(deployment: Deployment) -> None:
    app = deployment.module
    for _ in range(2):
        with pytest.raises(KeyError):
            app.failing.delay(3).get(timeout=20)
    assert deployment.list("runs") == ["failing-3"]


def test_an_ignored_run_is_never_cached(deployment: Deployment) -> None:
    app = deployment.module
    for number in (1, 2):
        app.ignoring.delay(3)
        wait_until("it ran", lambda number=number: len(deployment.list("runs")) == number, 10)


def test_options_of_one_call_override_the_task(deployment: Deployment) -> None:
    app = deployment.module
    for _ in range(2):
        assert app.slow_add.apply_async((6, 6), cache=False).get(timeout=10) == 12
    assert deployment.list("runs") == ["6+6", "6+6"]
    app.slow_add.apply_async((7, 7), cache_ttl=0.3).get(timeout=10)
    key = next(iter(deployment.history.scan_iter("slotline:{cache:app.slow_add*")), None)
    assert key is not None
    assert 0 < deployment.history.pttl(key) <= 2000


def test_an_invalidated_result_is_made_anew(deployment: Deployment) -> None:
    app = deployment.module
    app.slow_add.delay(8, 8).get(timeout=10)
    assert app.slow_add.invalidate(8, right=8)
    assert not app.slow_add.invalidate(8, right=8)
    app.slow_add.delay(8, 8).get(timeout=10)
    assert deployment.list("runs") == ["8+8", "8+8"]
