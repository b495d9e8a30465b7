"""A task whose slot is lost is dead before another worker can have the slot."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from slotline import SlotLostError
from tests.harness.processes import gone
from tests.harness.proxy import TcpProxy
from tests.harness.redis_server import RedisServer
from tests.harness.waiting import wait_until
from tests.integration.celery_apps import Deployment
from tests.integration.losing_slots import fences, one_after_the_other, pids

LEASE = 4.0
pytestmark = pytest.mark.leaves("keys", reason="the history that the tasks write")


@pytest.mark.parametrize(
    ("pool", "task", "late"),
    [
        ("prefork", "beating", True),
        pytest.param(
            "prefork", "beating_in_billiard", False, marks=pytest.mark.soak
        ),  # each of both is in another pair
        pytest.param("prefork", "beating_in_spawned", True, marks=pytest.mark.soak),
        pytest.param("threads", "beating_in_cpu", True, marks=pytest.mark.soak),
        ("threads", "beating_in_billiard", False),
        ("solo", "beating_in_spawned", True),
        ("gevent", "beating", False),
        pytest.param("gevent", "beating_in_spawned", False, marks=pytest.mark.soak),
    ],
)
def test_a_worker_that_is_cut_off_from_its_store_kills_its_task_before_another_begins(
    tmp_path: Path, own_redis: RedisServer, pool: str, task: str, late: bool
) -> None:
    made = Deployment(tmp_path, own_redis, lease=LEASE, acks_late=late)
    beating = getattr(made.module, task)
    with TcpProxy(own_redis.port) as proxy, made.worker(pool, concurrency=2, store=proxy.redis_url):
        first = beating.delay("cut", 60)
        wait_until("the first runs", lambda: fences(made.history, "cut"), 30)
        with made.worker(pool, concurrency=2):
            second = beating.delay("cut", 1.0)
            wait_until("the second is parked", lambda: made.parked("beating:cut") == 1, 20)
            proxy.stall()
            with pytest.raises(SlotLostError):
                first.get(timeout=40)
            proxy.resume()
            assert second.get(timeout=60) > 0
            if pool == "prefork" or task != "beating":
                assert gone(pids(made.history, "cut")[0])
    seen = fences(made.history, "cut")
    assert len(set(seen)) == 2, "the lost one is not repeated"
    assert one_after_the_other(seen), "two held the slot at once"
    made.close()


def test_a_child_is_killed_in_time_while_the_one_redis_for_everything_stands_still(
    tmp_path: Path, own_redis: RedisServer
) -> None:
    made = Deployment(tmp_path, own_redis, lease=LEASE, acks_late=True)
    with made.worker("prefork", concurrency=2):
        first = made.module.beating.delay("still", 60)
        wait_until("the first runs", lambda: fences(made.history, "still"), 30)
        second = made.module.beating.delay("still", 0.5)
        wait_until("the second is parked", lambda: made.parked("beating:still") == 1, 20)
        (child,) = pids(made.history, "still")
        own_redis.pause()  # the worker's event loop waits for it, too
        try:
            wait_until("the child is dead", lambda: gone(child), LEASE + 30)
        finally:
            own_redis.resume()
        with pytest.raises(SlotLostError):
            first.get(timeout=40)
        assert second.get(timeout=60) > 0
        made.wait_free("beating:still")
    assert one_after_the_other(fences(made.history, "still"))
    made.close()


def test_a_store_that_comes_back_without_its_data_costs_what_ran_and_what_was_parked_and_nothing_else(
    tmp_path: Path, own_redis: RedisServer, make_redis: Callable[..., RedisServer]
) -> None:
    store, made = make_redis(), Deployment(tmp_path, own_redis, lease=LEASE, acks_late=True)
    beating = made.module.beating
    with made.worker("prefork", concurrency=2, store=store.url, args=("-l", "DEBUG")) as worker:
        first = beating.delay("empty", 60)
        wait_until("the first runs", lambda: fences(made.history, "empty"), 30)
        parked, held = beating.delay("empty", 0.1), beating.apply_async(("empty", 0.1), pool_on_full="wait")
        worker.wait_log(f"{parked.id}] is parked")
        worker.wait_log(f"{held.id}] is held")
        store.restart(keep_data=False)
        with pytest.raises(SlotLostError):
            first.get(timeout=40)
        assert held.get(timeout=60) > 0
        assert beating.delay("empty", 0.1).get(timeout=60) > 0
        assert parked.state == "PENDING"
    assert len(set(fences(made.history, "empty"))) == 3
    made.close()
