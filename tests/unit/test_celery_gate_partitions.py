"""The gate and pools with weights and partitions, with a worker that is only pretended and slots in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from celery import Celery
from celery.worker import state

import celery_ext
from slotline import Pool, configure
from slotline.errors import InvalidOptionError, PoolFullError, PoolTimeoutError
from slotline.stores import MemoryStore
from tests.harness.waiting import wait_until
from tests.unit.test_celery_gate import Request, Worker

pytestmark = pytest.mark.lowest


def work(tenant: str) -> None:
    """Do nothing."""


@pytest.fixture
def worker() -> Iterator[Worker]:
    app = Celery("unit", broker="memory://", backend="cache+memory://", set_as_current=False)
    app.Task = celery_ext.Task
    app.conf.slotline_store = MemoryStore()
    app.conf.slotline_pools = {"shared": {"size": 3, "partition": "{tenant}", "max_per_partition": 2}}
    app.task(work, name="unit.work", pool="shared", shared=False)
    app.finalize()
    worker = Worker(app, 100)
    yield worker
    worker.gate.close()
    state.reset_state()
    app.close()


def send(worker: Worker, tenant: Any, **options: Any) -> Request:
    return worker.receive(Request(worker.app.tasks["unit.work"], tenant, options=options))


def tenants(worker: Worker) -> list[Any]:
    return [request.args[0] for request in worker.ran]


def finish(worker: Worker, ended: int, until: int | None = None) -> None:
    """Let what runs end in the order in which it began, from the ``ended``-th on; more begins meanwhile."""
    while ended < (len(worker.ran) if until is None else until):
        worker.finish(worker.ran[ended])
        ended += 1


def nothing_is_left(worker: Worker) -> bool:
    counts = worker.gate.counts()
    return counts == {"running": {}, "held": {}} and worker.consumer.qos.held == 0 and worker.semaphore.value == 100


def test_a_full_partition_holds_up_no_other_and_those_who_wait_are_served_in_turn(worker: Worker) -> None:
    for _ in range(100):
        send(worker, "noisy")
    assert tenants(worker) == ["noisy", "noisy"]
    for tenant in ("b", "b", "c", "c"):
        send(worker, tenant)
    assert tenants(worker) == ["noisy", "noisy", "b"]
    assert worker.gate.counts() == {"running": {"shared": 3}, "held": {"shared": 101}}
    assert worker.consumer.qos.held == 101
    finish(worker, 0, until=6)
    assert sorted(tenants(worker)[3:6]) == ["b", "c", "noisy"], "one of each, however many of one wait"
    assert "c" in tenants(worker)[6:9]
    finish(worker, 6)
    assert len(worker.ran) == 104
    assert nothing_is_left(worker)


def test_partitions_have_no_line_in_common_for_those_who_do_not_wait(worker: Worker) -> None:
    for _ in range(3):
        send(worker, "noisy")
    assert send(worker, "b", pool_on_full="fail").error is None
    for policy in ("fail", "drop"):
        refused = send(worker, "c", pool_on_full=policy)
        assert refused.acknowledged
    assert isinstance(send(worker, "c", pool_on_full="fail").error, PoolFullError)
    assert isinstance(send(worker, "c", pool_timeout=0).error, PoolTimeoutError)
    send(worker, "c")
    assert isinstance(send(worker, "c", pool_timeout=0).error, PoolTimeoutError), (
        "it does not wait behind others either"
    )
    assert tenants(worker) == ["noisy", "noisy", "b"]
    finish(worker, 0)
    assert nothing_is_left(worker)


def test_a_heavy_call_is_not_overtaken_and_gets_all_that_it_asks_for(worker: Worker) -> None:
    plain = {"pool": "gpu", "pool_size": 3, "pool_partition": None, "pool_weight": 1}
    light = [send(worker, "a", **plain), send(worker, "a", **plain)]
    heavy = send(worker, "a", **{**plain, "pool_weight": 2})
    late = send(worker, "a", **plain)
    assert worker.ran == light, "one slot is free, and kept for the heavy one"
    worker.finish(light[0])
    assert worker.ran == [*light, heavy]
    worker.finish(light[1])
    assert worker.ran == [*light, heavy, late]
    finish(worker, 2)
    assert nothing_is_left(worker)


def test_a_call_that_weighs_more_than_a_pool_has_left_holds_up_no_other_and_keeps_its_place(worker: Worker) -> None:
    configure(heartbeat_lease=0.3)  # how often a place is looked at
    gpu = {"pool": "gpu", "pool_size": 3, "pool_partition": None, "pool_weight": 1}
    light = [send(worker, "a", **gpu)]
    heavy = [send(worker, "a", **{**gpu, "pool_weight": weight}) for weight in (3, 3, 2)]
    light += [send(worker, "a", **gpu) for _ in range(2)]
    assert worker.ran == light[:1]
    pool = Pool("gpu", 3, store=worker.app.conf.slotline_store)
    pool.sync.resize(1)
    worker.finish(light[0])

    def ran(*requests: Request) -> Callable[[], bool]:
        def look() -> bool:
            worker.consumer.timer.fire()
            return worker.ran == list(requests)

        return look

    wait_until("the next light one runs", ran(*light[:2]))
    worker.finish(light[1])
    wait_until("the last light one runs", ran(*light))
    assert worker.gate.counts() == {"running": {"gpu": 1}, "held": {"gpu": 3}}
    light.append(send(worker, "a", **gpu))
    assert worker.ran == light[:3]
    worker.finish(light[2])
    wait_until("what came later runs", ran(*light))
    worker.finish(light[3])
    pool.sync.resize(3)
    wait_until("the first heavy one runs", ran(*light, heavy[0]))
    worker.finish(heavy[0])
    worker.consumer.timer.fire()
    late = next(one for one in heavy[1:] if one in worker.ran)
    worker.finish(late)
    wait_until("all have run", lambda: worker.consumer.timer.fire() or set(worker.ran) == {*light, *heavy})
    finish(worker, 6)
    assert nothing_is_left(worker)


def test_a_weight_that_can_never_be_had_is_the_result_and_nothing_waits(worker: Worker) -> None:
    request = send(worker, "a", pool_weight=3)
    assert isinstance(request.error, InvalidOptionError)
    assert (
        str(request.error)
        == "pool_weight=3 is not allowed: it must be at most 2, the max_per_partition of pool 'shared'."
    )
    assert request.acknowledged
    assert nothing_is_left(worker)


@pytest.mark.parametrize("tenant", ["x" * 10_240, "a|b\n{}\0", "\udc80", "\N{SNOWMAN}", "", b"\xff\x00|", None, 7])
def test_a_partition_may_be_called_anything(worker: Worker, tenant: Any) -> None:
    for _ in range(3):
        send(worker, tenant)
    send(worker, "other")
    assert tenants(worker) == [tenant, tenant, "other"]
    finish(worker, 0)
    assert len(worker.ran) == 4
    assert nothing_is_left(worker)


def test_held_calls_that_were_let_go_leave_no_place_behind(worker: Worker) -> None:
    for tenant in ("a", "b", "c", "d", "a", "b"):
        send(worker, tenant)
    assert worker.gate.counts()["held"] == {"shared": 3}
    worker.gate.let_go()
    worker.gate.open()
    finish(worker, 0)
    assert tenants(worker) == ["a", "b", "c"]
    assert worker.gate.counts() == {"running": {}, "held": {}}
    assert send(worker, "d") in worker.ran


def test_calls_for_several_pools_wait_for_those_that_are_full_and_keep_nobody_from_others(worker: Worker) -> None:
    both = {"pool": ["db", "api:{tenant}"], "pool_size": [2, 1], "pool_partition": None}
    first, second = send(worker, "a", **both), send(worker, "a", **both)
    other, late = send(worker, "b", **both), send(worker, "c", **both)
    assert worker.ran == [first, other]
    assert worker.gate.counts() == {
        "running": {"api:a": 1, "db": 2, "api:b": 1},
        "held": {"api:a": 1, "db": 2, "api:c": 1},
    }
    refused = send(worker, "b", **both, pool_on_full="fail")
    assert isinstance(refused.error, PoolFullError)
    assert refused.error.key == "api:b"
    worker.finish(first)
    assert len(worker.ran) == 3, "one slot came free of the pool for all"
    worker.finish(other)
    assert set(worker.ran) == {first, other, second, late}
    told = late.delivery_info["slotline"]
    assert [told["key"], *(slot["key"] for slot in told["slots"])] == ["api:c + db", "api:c", "db"]
    finish(worker, 2)
    assert nothing_is_left(worker)


def test_calls_that_name_the_same_pools_in_another_order_wait_in_one_line(worker: Worker) -> None:
    both = {"pool_size": 1, "pool_partition": None}
    sent = [send(worker, "a", pool=pools, **both) for pools in (["x", "y"], ["y", "x"], ["x", "y"])]
    assert worker.ran == sent[:1]
    finish(worker, 0)
    assert worker.ran == sent
    assert nothing_is_left(worker)
