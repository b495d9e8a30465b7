"""Limits in real workers: two of them, on every kind of pool, on Redis and on RabbitMQ."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest

from slotline.errors import InvalidOptionError, PoolFullError, PoolTimeoutError
from tests.harness.leaks import keys_without_ttl
from tests.harness.redis_server import RedisServer
from tests.harness.waiting import wait_until
from tests.harness.workers import all_ready
from tests.integration.celery_apps import Deployment

POOLS = ("prefork", "threads", "solo", "gevent")


@pytest.fixture(scope="module", params=POOLS)
def deployment(
    request: pytest.FixtureRequest, module_redis: RedisServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Deployment]:
    """An application with two workers of one kind; every test of this module uses them."""
    made = Deployment(tmp_path_factory.mktemp(request.param), module_redis, acks_late=request.param == "threads")
    made.pool = request.param
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


def begun(deployment: Deployment, key: str) -> Any:
    """Send a task that runs until :func:`go`, and wait until it does."""
    first = deployment.module.one.delay(key, None)
    wait_until("the first runs", lambda: deployment.list(f"started:{key}"), 10)
    return first


def go(deployment: Deployment, key: str) -> None:
    """Let the tasks of a key end."""
    deployment.history.set(f"celery-test:go:one-{key}", 1, ex=60)


def listeners(deployment: Deployment) -> int:
    """Return how many workers answer while one of them runs a task; a solo worker does nothing else then."""
    return 1 if deployment.pool == "solo" else 2


def results(sent: list[Any], timeout: float = 60) -> list[Any]:
    return [result.get(timeout=timeout) for result in sent]


@pytest.mark.lowest
@pytest.mark.parametrize("policy", ["park", "wait"])
def test_a_limit_holds_across_two_workers_and_unlimited_tasks_pass_by(deployment: Deployment, policy: str) -> None:
    app = deployment.module
    limited = [app.limited.apply_async((number,), pool_on_full=policy) for number in range(40)]
    free = [app.free.delay(number) for number in range(10)]
    fences = results(limited)
    results(free)
    assert deployment.peak("limited") <= 2
    assert len(set(fences)) == 40, "every run has a fencing number of its own"
    done = deployment.list("done")
    assert sorted(int(number) for number in done if "free" not in number) == list(range(40))
    deployment.wait_free("limited")
    if deployment.pool != "solo":  # two solo workers have no more than two places to run anything
        last_free = max(done.index(f"free-{number}") for number in range(10))
        assert last_free < 45, f"unlimited tasks waited behind limited ones: {done}"


def test_a_pool_named_after_an_argument_limits_each_of_its_values(deployment: Deployment) -> None:
    app = deployment.module
    assert results([app.one.delay(key) for key in "abab"]) == ["one:a", "one:b", "one:a", "one:b"]
    assert deployment.peak("one-a") == deployment.peak("one-b") == 1


@pytest.mark.lowest
def test_a_full_pool_fails_the_task_whose_options_say_so(deployment: Deployment) -> None:
    app = deployment.module
    first = begun(deployment, "full")
    refused = app.one.apply_async(("full",), pool_on_full="fail", link_error=app.note_error.s())
    with pytest.raises(PoolFullError) as caught:
        refused.get(timeout=10)
    assert caught.value.key == "one:full"
    assert caught.value.max_size == 1
    assert refused.state == "FAILURE"
    wait_until("the errback has run", lambda: deployment.list("errors") == ["PoolFullError"], 10)
    go(deployment, "full")
    first.get(timeout=10)
    assert len(deployment.list("started:full")) == 1


def test_a_full_pool_drops_the_task_whose_options_say_so(deployment: Deployment) -> None:
    app = deployment.module
    first = begun(deployment, "drop")
    dropped = app.one.apply_async(("drop",), pool_on_full="drop")
    said = f"{dropped.id}] is dropped"
    wait_until("it is dropped", lambda: any(said in worker.log for worker in deployment.workers), 10)
    go(deployment, "drop")
    first.get(timeout=10)
    assert app.one.delay("drop").get(timeout=10) == "one:drop"
    assert dropped.state == "PENDING"
    assert dropped.id not in deployment.list("started:drop")


def test_a_task_that_waited_for_its_pool_timeout_fails_with_it(deployment: Deployment) -> None:
    app = deployment.module
    first = begun(deployment, "timeout")
    late = app.one.apply_async(("timeout",), pool_timeout=0.3)
    with pytest.raises(PoolTimeoutError):
        late.get(timeout=20)
    go(deployment, "timeout")
    first.get(timeout=10)


def test_a_pool_declared_for_the_app_needs_no_size_at_the_task(deployment: Deployment) -> None:
    app = deployment.module
    sent = [app.declared.delay() for _ in range(2)]
    states = sorted(type(result.get(timeout=20, propagate=False)).__name__ for result in sent)
    assert states in (["NoneType", "PoolFullError"], ["NoneType", "NoneType"])


def test_a_task_without_our_base_class_is_limited_by_annotations(deployment: Deployment) -> None:
    app = deployment.module
    results([app.foreign.delay() for _ in range(4)])
    assert deployment.peak("foreign") == 1


@pytest.mark.lowest
@pytest.mark.parametrize("policy", ["park", "wait"])
def test_a_waiting_task_that_is_revoked_never_runs(deployment: Deployment, policy: str) -> None:
    if (deployment.pool, policy) == ("solo", "park"):
        pytest.skip(
            "a solo worker hears of a revocation only when its task has ended, and may have the next one by then"
        )
    app = deployment.module
    first = begun(deployment, "revoke")
    revoked = app.one.apply_async(("revoke",), pool_on_full=policy)
    app.app.control.revoke(revoked.id, reply=True, timeout=10, limit=listeners(deployment))
    go(deployment, "revoke")
    wait_until("it is revoked", lambda: revoked.state == "REVOKED", 20, 0.05)
    first.get(timeout=10)
    assert app.one.delay("revoke").get(timeout=10) == "one:revoke"
    assert revoked.id not in deployment.list("started:revoke")


@pytest.mark.parametrize("policy", ["park", "wait"])
def test_a_waiting_task_that_expires_never_runs(deployment: Deployment, policy: str) -> None:
    app = deployment.module
    first = begun(deployment, "expire")
    late, sent = app.one.apply_async(("expire",), expires=0.3, pool_on_full=policy), time.monotonic()
    wait_until("its time is over", lambda: time.monotonic() > sent + 0.3)
    go(deployment, "expire")
    wait_until("it has expired", lambda: late.state == "REVOKED", 20, 0.05)
    first.get(timeout=10)
    assert late.id not in deployment.list("started:expire")


def test_a_task_with_an_eta_is_limited_too(deployment: Deployment) -> None:
    app = deployment.module
    results([app.one.apply_async(("eta", 0.1), countdown=0.2) for _ in range(4)])
    assert deployment.peak("one-eta") == 1


@pytest.mark.parametrize("how", ["raise", "ignore", "reject"])
def test_however_a_task_ends_its_slot_is_free(deployment: Deployment, how: str) -> None:
    app = deployment.module
    app.die.delay(how)
    wait_until("it ran", lambda: deployment.list("die"), 10)
    assert app.die.delay("return").get(timeout=10) == "return"
    deployment.wait_free("die")


@pytest.mark.lowest
def test_a_retried_task_takes_a_slot_for_each_run(deployment: Deployment) -> None:
    assert deployment.module.again.delay().get(timeout=20) == 2
    deployment.wait_free("again")


@pytest.mark.parametrize("options", [{"pool_size": "two"}, {"pool_syze": 2}, {"pool": "one:{missing}"}, ["pool"]])
def test_a_message_with_bad_options_fails_with_the_error_and_is_not_lost(deployment: Deployment, options: Any) -> None:
    app = deployment.module
    sent = app.app.send_task("app.one", ("bad",), headers={"slotline": options}, queue=app.QUEUE)
    with pytest.raises(InvalidOptionError):
        sent.get(timeout=20)
    assert sent.state == "FAILURE"


def test_a_message_whose_arguments_do_not_fit_fails_as_the_call_would(deployment: Deployment) -> None:
    app = deployment.module
    sent = app.app.send_task("app.one", (), {"wrong": 1}, queue=app.QUEUE)
    with pytest.raises(TypeError):
        sent.get(timeout=20)


def test_inspect_stats_shows_what_runs_and_what_is_held(deployment: Deployment) -> None:
    app = deployment.module
    first = begun(deployment, "inspect")
    second = app.one.apply_async(("inspect",), pool_on_full="wait")

    def held() -> int:
        stats = app.app.control.inspect(timeout=5, limit=listeners(deployment)).stats() or {}
        return sum(node["slotline"]["held"].get("one:inspect", 0) for node in stats.values())

    wait_until("one is held", lambda: held() == 1, 10)
    go(deployment, "inspect")
    results([first, second])


def test_a_parked_retry_is_not_taken_for_a_copy_of_its_task(deployment: Deployment) -> None:
    app = deployment.module
    sent = [app.again.delay() for _ in range(4)]
    assert results(sent) == [2] * 4
    deployment.wait_free("again")


def test_everything_of_a_parked_message_reaches_its_run(deployment: Deployment) -> None:
    app = deployment.module
    first = begun(deployment, "intact")
    parked = app.one.apply_async(
        ("intact",), priority=3, headers={"trace": "x"}, link=app.note.s("linked"), shadow="it"
    )
    wait_until("it is parked", lambda: deployment.parked("one:intact") == 1, 10)
    go(deployment, "intact")
    results([first, parked])
    wait_until("the callback has run", lambda: deployment.list("notes"), 10)
    assert deployment.list("notes") == ["linked"]
    assert deployment.list("headers:intact")[-1] == "x 3"


@pytest.mark.rabbitmq
@pytest.mark.parametrize(("acks_late", "policy"), [(False, "park"), (True, "park"), (True, "wait")])
def test_a_limit_holds_on_rabbitmq(
    amqp_url: str,
    amqp_name: Any,
    module_redis: RedisServer,
    tmp_path_factory: pytest.TempPathFactory,
    policy: str,
    *,
    acks_late: bool,
) -> None:
    queue = amqp_name("limits")
    made = Deployment(
        tmp_path_factory.mktemp("rabbit"), module_redis, broker=amqp_url, queue=queue, acks_late=acks_late
    )
    try:
        with made.worker("prefork", concurrency=2), made.worker("threads", concurrency=2):
            sent = [made.module.limited.apply_async((number,), pool_on_full=policy) for number in range(30)]
            free = [made.module.free.delay(number) for number in range(10)]
            results(free)
            assert len(set(results(sent))) == 30
            made.wait_free("limited")
        assert made.peak("limited") <= 2
    finally:
        made.clear()
        made.close()
