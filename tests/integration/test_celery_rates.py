"""Rates in real workers: starts at their pace, each task once, and nobody else waits for them."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from slotline.errors import PoolFullError
from tests.harness.leaks import keys_without_ttl
from tests.harness.redis_server import RedisServer
from tests.harness.workers import all_ready
from tests.integration.celery_apps import Deployment


@pytest.fixture(scope="module", params=["prefork", "threads"])
def deployment(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """An application with two workers of one kind; every test of this module uses them."""
    with RedisServer() as server:
        made = Deployment(tmp_path_factory.mktemp(request.param), server)
        options = {"concurrency": 2, "wait": False}
        with made.worker(request.param, **options) as one, made.worker(request.param, **options) as two:
            all_ready([one, two])
            yield made
        left = keys_without_ttl(made.history)
        made.close()
        assert not left


@pytest.fixture(autouse=True)
def _fresh_history(deployment: Deployment) -> None:
    deployment.clear()


@pytest.mark.parametrize("policy", ["park", "wait"])
def test_a_rate_paces_the_starts_of_two_workers_and_unlimited_tasks_pass_by(
    deployment: Deployment, policy: str
) -> None:
    free = deployment.module.free
    rated = {"pool": f"rated-{policy}", "pool_rate": "10/s", "pool_on_full": policy}
    begun = time.monotonic()
    sent = [free.apply_async((number,), **rated) for number in range(8)]
    passing = free.delay("passing")
    assert sorted(result.get(timeout=60) for result in sent) == list(range(8))
    took = time.monotonic() - begun
    passing.get(timeout=60)
    done = deployment.list("done")
    assert took >= 0.7
    assert sorted(done) == sorted([*(f"free-{number}" for number in range(8)), "free-passing"])
    assert done[-1] != "free-passing", f"an unlimited task waited behind rated ones: {done}"
    deployment.wait_free(f"rated-{policy}")


@pytest.mark.parametrize("policy", ["park", "wait"])
def test_a_size_and_a_rate_hold_together(deployment: Deployment, policy: str) -> None:
    limited, key = deployment.module.limited, f"both-{policy}"
    options = {"pool": key, "pool_size": 1, "pool_rate": "10/s", "pool_burst": 3, "pool_on_full": policy}
    begun = time.monotonic()
    sent = [limited.apply_async((number,), **options) for number in range(7)]
    assert len({result.get(timeout=60) for result in sent}) == 7, "every run has a fencing number of its own"
    assert time.monotonic() - begun >= 0.4
    assert deployment.peak("limited") == 1
    deployment.wait_free(key)


def test_a_start_over_the_rate_fails_where_the_options_say_so(deployment: Deployment) -> None:
    free = deployment.module.free
    options = {"pool": "hourly", "pool_rate": "1/h", "pool_on_full": "fail"}
    assert free.apply_async((1,), **options).get(timeout=20) == 1
    with pytest.raises(PoolFullError, match="used up its rate") as caught:
        free.apply_async((2,), **options).get(timeout=20)
    assert 3000 < caught.value.retry_after <= 3600
    assert deployment.list("done") == ["free-1"]
