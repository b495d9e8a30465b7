"""Calls whose value is being made wait in the room, in real workers of each pool."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.harness.proxy import TcpProxy
from tests.harness.redis_server import RedisServer
from tests.harness.waiting import wait_until
from tests.harness.workers import CeleryWorker, all_ready
from tests.integration.celery_apps import Deployment

pytestmark = pytest.mark.filterwarnings("ignore:Call to deprecated setex")  # Celery's own call, in its result backend

LEASE = 3.0
REDELIVERY = {"visibility_timeout": 8}
"""What a dead worker has not acknowledged comes again soon."""


class Crew(NamedTuple):
    """An application and its workers, whose cache and room are behind the proxy, and nothing else is."""

    deployment: Deployment
    workers: list[CeleryWorker]
    store: TcpProxy


@contextmanager
def two_workers(directory: Path, pool: str) -> Iterator[Crew]:
    """Two workers of two processes, threads or greenlets, or of one place each; they acknowledge late."""
    with RedisServer() as server, TcpProxy(server.port) as proxy:
        made = Deployment(directory, server, acks_late=True, lease=LEASE, transport=REDELIVERY)
        options = {"concurrency": 2, "store": proxy.redis_url, "wait": False}
        with made.worker(pool, **options) as one, made.worker(pool, **options) as two:
            yield Crew(made, all_ready([one, two]), proxy)
            proxy.resume()
        made.close()


@pytest.fixture(scope="module", params=["prefork", "threads", "gevent"])
def shared_crew(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Crew]:
    with two_workers(tmp_path_factory.mktemp(request.param), request.param) as crew:
        yield crew


@pytest.fixture
def deployment(shared_crew: Crew) -> Deployment:
    """An application whose two workers serve all tests that do nothing to them; no two tests make the same value."""
    shared_crew.deployment.clear()
    return shared_crew.deployment


@pytest.fixture(params=["prefork", "threads", "gevent"])
def own_crew(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Crew]:
    """Workers of the test's own, which it may kill and cut off from their store."""
    with two_workers(tmp_path, request.param) as crew:
        yield crew


def wait_in_line(deployment: Deployment, count: int) -> None:
    wait_until("one runs", lambda: deployment.list("runs"), 30)
    wait_until(f"{count} wait in the room", lambda: deployment.parked("cache-line:*") == count, 30, 0.05)


def go(deployment: Deployment) -> None:
    deployment.history.set("celery-test:go", 1, ex=60)


def nothing_left(deployment: Deployment) -> None:
    def left() -> list[bytes]:
        # Marks of what was parked just now stay a minute longer.
        keys = deployment.history.scan_iter("slotline:{pool:cache-line:*")
        return [key for key in keys if not key.endswith(b":claims")]

    wait_until("nothing is left of the lines", lambda: not left(), 10)


@pytest.mark.parametrize("shared_crew", ["prefork", "threads", "gevent", "solo"], indirect=True, scope="module")
def test_two_hundred_calls_run_once_and_those_that_wait_hold_no_process(deployment: Deployment) -> None:
    app = deployment.module
    sent = [app.price.delay(7) for _ in range(200)]
    wait_in_line(deployment, 199)
    # Nobody who waits is in one of the workers' four places.
    assert [app.free.delay(number).get(timeout=10) for number in range(10)] == list(range(10))
    go(deployment)
    told = time.monotonic()
    assert len({result.get(timeout=60) for result in sent}) == 1
    assert time.monotonic() - told < 30
    assert deployment.list("runs") == ["7"]
    nothing_left(deployment)


def test_when_the_worker_is_killed_another_runs_once_more_and_everyone_is_served(own_crew: Crew) -> None:
    deployment, workers, _ = own_crew
    app = deployment.module
    sent = [app.price.delay(7) for _ in range(200)]
    wait_in_line(deployment, 199)
    pid = int(deployment.list("pids")[0])
    next(worker for worker in workers if pid in (worker.pid, *worker.children())).kill_all()
    wait_until("the other worker runs it", lambda: len(deployment.list("runs")) == 2, 40)
    go(deployment)
    wait_until("all who stood in line are served", lambda: sum(result.ready() for result in sent) >= 199, 60, 0.5)
    nothing_left(deployment)
    # The dead run's own message comes again when the broker has missed its acknowledgement for long enough.
    wait_until("everyone is served", lambda: all(result.ready() for result in sent), 60, 0.1)
    assert {result.result for result in sent} == {int(deployment.list("pids")[1])}
    assert deployment.list("runs") == ["7", "7"]


@pytest.mark.parametrize("own_crew", ["prefork"], indirect=True)
def test_an_outage_while_calls_stand_in_line_loses_none_of_them(own_crew: Crew) -> None:
    deployment, _, store_proxy = own_crew
    app = deployment.module
    sent = [app.price.delay(7) for _ in range(40)]
    wait_in_line(deployment, 39)
    store_proxy.refuse()
    time.sleep(2 * LEASE)  # the fault is time itself: the line's slot and the claim end
    go(deployment)
    store_proxy.resume()
    assert {result.get(timeout=60) for result in sent} <= set(map(int, deployment.list("pids")))
    assert len(deployment.list("runs")) <= 2
    nothing_left(deployment)


def test_when_the_run_fails_everyone_who_waits_gets_its_error_and_the_next_call_runs(deployment: Deployment) -> None:
    app = deployment.module
    sent = [app.unavailable.delay(7) for _ in range(20)]
    wait_in_line(deployment, 19)
    go(deployment)
    for result in sent:
        with pytest.raises(LookupError, match="no luck"):
            result.get(timeout=30)
    assert deployment.list("runs") == ["7"]
    with pytest.raises(LookupError):
        app.unavailable.delay(7).get(timeout=30)
    assert deployment.list("runs") == ["7", "7"]
    nothing_left(deployment)


def test_a_task_with_a_limit_keeps_to_both(deployment: Deployment) -> None:
    app = deployment.module
    sent = [app.limited_price.delay(number % 3) for number in range(30)]
    wait_until("one runs", lambda: deployment.list("runs"), 30)
    wait_until("29 wait in the room", lambda: deployment.parked("cache-line:*") + deployment.parked("prices") == 29, 30)
    go(deployment)
    assert [result.get(timeout=30) for result in sent] == [number % 3 for number in range(30)]
    assert sorted(deployment.list("runs")) == ["0", "1", "2"]
    nothing_left(deployment)


def test_a_call_whose_pool_is_full_gets_an_old_value_and_one_without_is_parked(deployment: Deployment) -> None:
    app = deployment.module
    assert app.stale_price.delay(7).get(timeout=30) == 1
    wait_until("the value has ended", lambda: not list(deployment.history.scan_iter("slotline:{cache:app.stale*}:v")))
    with deployment.slot("stale"):
        assert app.stale_price.delay(7).get(timeout=30) == 1
        parked = app.stale_price.delay(8)
        wait_until("it is parked", lambda: deployment.parked("stale") == 1)
    assert parked.get(timeout=30) == 2
    deployment.wait_free("stale")
    assert app.stale_price.delay(7).get(timeout=30) == 3
    nothing_left(deployment)


@pytest.mark.needs("celery>=5.7", reason="on 5.4 the worker has been seen to make the value once more")
def test_a_call_whose_value_is_there_needs_no_slot(deployment: Deployment) -> None:
    app = deployment.module
    go(deployment)
    assert app.limited_price.delay(7).get(timeout=30) == 7
    deployment.wait_free("prices")
    with deployment.slot("prices"):
        # A call that is part of something larger goes to the worker, hit or not.
        assert app.limited_price.apply_async((7,), link=app.free.s()).get(timeout=30) == 7
    assert deployment.list("runs") == ["7"]
