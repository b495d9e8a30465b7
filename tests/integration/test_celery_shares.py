"""Weights, partitions and large messages in real workers: what waits, for what, and what is not parked at all."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from celery_ext import config
from slotline.errors import MessageTooLargeError
from tests.harness.leaks import keys_without_ttl
from tests.harness.redis_server import RedisServer
from tests.harness.waiting import wait_until
from tests.harness.workers import all_ready
from tests.integration.celery_apps import Deployment
from tests.integration.sharing_slots import OTHERS, Held, check_both, check_turns, check_weights, events

EXTRA = """
from tests.integration.sharing_slots import run

app.conf.slotline_max_parked_bytes = 50_000
for policy in ("park", "wait"):
    app.conf.slotline_pools[policy] = {
        "size": 3, "partition": "{tenant}", "max_per_partition": 2, "on_full": policy
    }


@app.task(shared=False, name="app.share", pool="park", bind=True)
def share(self, tenant, weight=1):
    run(STORE, tenant, weight, self.slot.fence)


@app.task(shared=False, name="app.both", bind=True, pool=["db", "api:{tenant}"], pool_size=[2, 1])
def both(self, tenant):
    run(STORE, tenant, 1, self.slot.slot_of("db").fence)
    slots = [self.slot.slot_of("db"), self.slot.slot_of(f"api:{tenant}")]
    return [self.slot.key, *(slot.key for slot in self.slot.slots), *(slot.fence for slot in slots)]
"""
NOISY = 100


@pytest.fixture(scope="module", params=["prefork", "threads"])
def deployment(
    request: pytest.FixtureRequest, module_redis: RedisServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Deployment]:
    """An application with two workers of one kind; every test of this module uses them."""
    late = request.param == "threads"
    made = Deployment(tmp_path_factory.mktemp(request.param), module_redis, acks_late=late, extra=EXTRA)
    with made.worker(request.param, wait=False) as one, made.worker(request.param, wait=False) as two:
        all_ready([one, two])
        yield made
    left = keys_without_ttl(made.history)
    made.close()
    module_redis.client().flushall()
    assert not left


@pytest.fixture(autouse=True)
def _fresh_history(request: pytest.FixtureRequest) -> None:
    if "deployment" in request.fixturenames:
        request.getfixturevalue("deployment").clear()


@pytest.mark.parametrize("policy", ["park", "wait"])
def test_one_tenants_hundred_tasks_delay_nobody_else(deployment: Deployment, policy: str) -> None:
    share, free = deployment.module.share, deployment.module.free
    held = Held(deployment.server.url, policy)
    sent = [share.apply_async((tenant,), pool=policy) for tenant in [*["noisy"] * NOISY, *OTHERS, *OTHERS]]
    # In a worker the first of each partition stands in the pool's own line, and everything in front of it is held.
    expected = NOISY + 2 * len(OTHERS) if policy == "park" else 1 + len(OTHERS)
    wait_until("all wait", lambda: held.waiting() >= expected, 60)
    assert free.delay(1).get(timeout=60) == 1, "who has no limit is not held up either"
    held.let_go()
    for result in sent:
        result.get(timeout=60)
    check_turns(deployment.history, NOISY)
    deployment.wait_free(policy)


@pytest.mark.parametrize("policy", ["park", "wait"])
def test_two_of_three_slots_are_two_for_one_task(deployment: Deployment, policy: str) -> None:
    share = deployment.module.share
    options = {"pool": f"heavy-{policy}", "pool_size": 3, "pool_on_full": policy, "pool_partition": None}
    sent = [share.apply_async(("light",), **options) for _ in range(15)]
    sent += [share.apply_async(("heavy", 2), pool_weight=2, **options) for _ in range(10)]
    sent += [share.apply_async(("light",), **options) for _ in range(15)]
    for result in sent:
        result.get(timeout=60)
    check_weights(events(deployment.history), 40)
    deployment.wait_free(options["pool"])


@pytest.mark.parametrize("policy", ["park", "wait"])
def test_a_task_may_count_in_several_pools_and_its_own_full_one_keeps_nobody_else(
    deployment: Deployment, policy: str
) -> None:
    both = deployment.module.both
    held = Held(deployment.server.url, "api:a", 1, None)
    waiting = [both.apply_async(("a",), pool_on_full=policy) for _ in range(10)]
    for name in ("b", "c"):
        assert both.apply_async((name,), pool_on_full=policy).get(timeout=60)[0] == f"api:{name} + db"
    assert not [name for name, _ in events(deployment.history) if name == "a"]
    others = [both.apply_async((name,), pool_on_full=policy) for name in "bcd" * 5]
    held.let_go()
    told = [result.get(timeout=60) for result in (*waiting, *others)]
    assert told[0][:3] == ["api:a + db", "api:a", "db"]
    assert len({fence for *_, fence, _ in told}) == len(told), "each of them had a slot of its own"
    check_both(events(deployment.history), 27)
    for key in ("db", "api:a", "api:b"):
        deployment.wait_free(key)


@pytest.mark.rabbitmq
def test_partitions_weights_and_several_pools_hold_on_rabbitmq(
    amqp_url: str, amqp_name: Callable[..., str], module_redis: RedisServer, tmp_path: Path
) -> None:
    queue = amqp_name("shares")
    made = Deployment(tmp_path, module_redis, broker=amqp_url, queue=queue, acks_late=True, extra=EXTRA)
    made.clear()
    share, both = made.module.share, made.module.both
    heavy = {"pool": "heavy", "pool_size": 3, "pool_partition": None}
    with made.worker("prefork", concurrency=3), made.worker("threads", concurrency=3):
        held = Held(made.server.url, "park")
        sent = [share.delay(tenant) for tenant in [*["noisy"] * 30, *OTHERS, *OTHERS]]
        wait_until("all wait", lambda: held.waiting() == len(sent), 60)
        held.let_go()
        for result in sent:
            result.get(timeout=60)
        check_turns(made.history, 30)
        made.clear()
        weights = [("light", 1)] * 10 + [("heavy", 2)] * 10 + [("light", 1)] * 10
        sent = [share.apply_async(one, pool_weight=one[1], **heavy) for one in weights]
        for result in sent:
            result.get(timeout=60)
        check_weights(events(made.history), 30)
        made.clear()
        sent = [both.delay(name) for name in "abc" * 10]
        for result in sent:
            result.get(timeout=60)
        check_both(events(made.history), 30)
        for pool in ("park", "heavy", "db", "api:a", "api:b", "api:c"):
            made.wait_free(pool)
    made.clear()
    made.close()


def test_a_call_that_is_too_large_to_be_parked_is_not_sent_or_its_result_says_so(deployment: Deployment) -> None:
    share, large = deployment.module.share, "x" * 60_000
    config._runtimes.pop(deployment.module.app, None)  # each test begins with the settings of no app
    with pytest.raises(MessageTooLargeError, match=r"6\d{4} bytes .* pool 'park': max_parked_bytes=50000"):
        share.delay(large)
    sent = deployment.module.app.send_task("app.share", (large,))  # which knows no task, and no limit
    with pytest.raises(MessageTooLargeError, match=r"6\d{4} bytes .* pool 'park': max_parked_bytes=50000"):
        sent.get(timeout=60)
    assert events(deployment.history) == []
    waiting = share.apply_async((large,), pool="wait", pool_on_full="wait")
    assert waiting.get(timeout=60) is None
    assert [len(tenant) for tenant, _ in events(deployment.history)] == [60_000, 60_000]
    deployment.wait_free("park")
