"""What else Taskiq can do, over limits and cached results: each of its features means what it means without them."""

from __future__ import annotations

import datetime as dt
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, ExitStack
from typing import Any

import pytest
from taskiq import AsyncTaskiqTask

from slotline import Pool
from tests.harness.fixtures_rabbitmq import amqp_names, configured_url, silent
from tests.harness.ports import free_port
from tests.harness.redis_server import RedisServer
from tests.harness.waiting import await_until
from tests.integration.taskiq_matrix import Matrix, Trial, values

pytestmark = pytest.mark.leaves(
    "processes", reason="a worker that tests share starts its process pool when it needs it"
)

PUBLISHED = [
    "pubsub",
    pytest.param("zeromq", marks=pytest.mark.needs("taskiq>=0.13", reason="older senders find no subscriber")),
]
QUEUES = ["memory", "list", "stream", pytest.param("rabbitmq", marks=pytest.mark.rabbitmq)]


@pytest.fixture(scope="module")
def matrix(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Matrix]:
    with ExitStack() as stack:
        server = stack.enter_context(RedisServer())
        amqp = "" if silent(configured_url()) else configured_url()
        name = stack.enter_context(amqp_names(amqp))("matrix") if amqp else ""
        made = Matrix(
            tmp_path_factory.mktemp("matrix"), server, amqp=amqp, name=name, zmq=f"tcp://127.0.0.1:{free_port()}"
        )
        stack.callback(made.close)
        yield made


def serving(matrix: Matrix, request: pytest.FixtureRequest) -> str:
    kind: str = request.param
    if kind == "rabbitmq":
        request.getfixturevalue("amqp_url")
    if kind != "memory":
        matrix.run(kind)
    if kind == "stream":
        matrix.run("scheduler")  # by which its retries are sent
    return kind


@pytest.fixture(scope="module", params=QUEUES)
def kind(matrix: Matrix, request: pytest.FixtureRequest) -> str:
    """A kind of broker whose worker runs."""
    return serving(matrix, request)


@pytest.fixture(scope="module", params=PUBLISHED)
def broadcast(matrix: Matrix, request: pytest.FixtureRequest) -> str:
    """A kind of broker that sends each message to every one of its two worker processes."""
    return serving(matrix, request)


@pytest.fixture(scope="module")
def two_brokers(matrix: Matrix) -> None:
    for kind in ("list", "stream"):
        matrix.run(kind)


@pytest.fixture(scope="module")
def scheduler(matrix: Matrix) -> None:
    for kind in ("stream", "scheduler"):
        matrix.run(kind)


@pytest.fixture
async def trial(matrix: Matrix) -> AsyncIterator[Trial]:
    module = matrix.load()
    async with AsyncExitStack() as stack:
        stack.callback(module.brokers["zeromq"].context.destroy, linger=0)  # nobody else lets go of its address
        for broker in module.brokers.values():
            await broker.startup()
            stack.push_async_callback(broker.shutdown)
        stack.push_async_callback(module.store.close)
        yield Trial(module, matrix.history, uuid.uuid4().hex)


async def test_whatever_the_message_it_waits_in_line_and_runs_as_often_as_without_a_limit(
    kind: str, trial: Trial
) -> None:
    tasks, key, pool = trial.module.tasks[kind], trial.key, f"one:{trial.key}"
    first = await tasks.gated.kiq(key, 0)
    await trial.runs()
    sent = [
        *[await tasks.flaky.kiq(key, x) for x in (1, 2)],
        *[await tasks.requeued.kiq(key, x) for x in (3, 4)],
        *[await tasks.crunch.kiq(key, x) for x in (5, 6)],
        await trial.module.shared.kicker().with_broker(trial.module.brokers[kind]).kiq(key, 7),
    ]
    await trial.parked(pool, len(sent))
    trial.go()
    assert await values([first, *sent]) == list(range(8))
    retried = [[x, retries] for x in (1, 2) for retries in (0, 1, 2)]
    assert sorted(x for x in trial.began() if isinstance(x, list)) == retried
    assert sorted(x for x in trial.began() if isinstance(x, int)) == [0, 3, 3, 4, 4, 5, 6, 7]
    assert trial.peak() == 1
    await trial.over(pool)


async def test_a_failed_run_of_a_cached_task_is_retried_and_those_that_wait_get_its_value(
    kind: str, trial: Trial
) -> None:
    tasks, key = trial.module.tasks[kind], trial.key
    sent = [await tasks.price.kiq(key)]
    await trial.runs()
    sent += [await tasks.price.kiq(key) for _ in range(5)]
    limited = [await tasks.limited_price.kiq(key) for _ in range(3)]
    trial.go()
    assert len(set(await values(sent))) == len(set(await values(limited))) == 1
    assert sorted(trial.began()) == ["limited price", "price", "price"]
    await trial.over(f"one:{key}")


async def test_a_limit_that_brokers_share_holds_for_all_of_them_and_each_runs_its_own(
    two_brokers: None, trial: Trial
) -> None:
    tasks, key = trial.module.tasks, trial.key
    sent = [await tasks["list" if x % 2 else "stream"].common.kiq(key, x) for x in range(40)]
    relayed = [await tasks["list"].relay.kiq(key, "stream", x) for x in range(40, 50)]
    assert await values(sent) == list(range(40))
    await values(relayed)
    await trial.runs(50)
    await trial.over(f"common:{key}")
    assert sorted(trial.began()) == list(range(50))
    assert trial.peak() == 2
    by = {pid: {x < 40 and x % 2 for _, x, other in trial.events() if other == pid} for _, _, pid in trial.events()}
    assert sorted(map(list, by.values())) == [[0], [1]], "a worker has run another broker's messages"


async def test_scheduled_messages_are_parked_and_answered_like_others(scheduler: None, trial: Trial) -> None:
    module, key, now = trial.module, trial.key, dt.datetime.now(dt.UTC)

    async def schedule(task: Any, *args: Any) -> AsyncTaskiqTask[Any]:
        task_id = uuid.uuid4().hex
        await task.kicker().with_task_id(task_id).schedule_by_time(module.schedules, now, key, *args)
        return AsyncTaskiqTask(task_id, module.brokers["stream"].result_backend)

    gated, crunch = module.tasks["stream"].gated, module.tasks["stream"].crunch
    first = await gated.kiq(key, 0)
    await trial.runs()
    value = (await values([await module.quote.kiq(key)]))[0]
    sent = [await schedule(crunch, 1), await schedule(crunch, 2), await schedule(module.quote)]
    await trial.parked(f"one:{key}", 2)
    trial.go()
    assert await values([first, *sent]) == [0, 1, 2, value]
    assert sorted(trial.began(), key=str) == [0, 1, 2, "quote"]
    assert trial.peak() <= 2
    await trial.over(f"one:{key}")


@pytest.mark.needs("taskiq>=0.13", reason="the interval of a schedule label")
async def test_a_schedule_label_beside_a_limit(scheduler: None, matrix: Matrix, trial: Trial) -> None:
    ticks, pool = Trial(trial.module, matrix.history, "tick"), Pool("tick", 1, store=trial.module.store)
    held = await pool.acquire(timeout=20)
    before = len(ticks.began())

    async def parked() -> bool:
        return (await pool.info()).waiting >= 2

    await await_until("two are parked", parked, timeout=20)
    assert len(ticks.began()) == before
    await pool.release(held)
    await ticks.runs(before + 3)
    assert ticks.peak() == 1


async def test_a_copy_for_every_worker_waits_in_its_worker_and_a_cached_task_runs_once(
    broadcast: str, matrix: Matrix, trial: Trial
) -> None:
    tasks, key = trial.module.tasks[broadcast], trial.key
    hello = Trial(trial.module, matrix.history, f"hello {key}")

    async def both_listen() -> bool:
        await tasks.common.kiq(hello.key, 0)
        return len({pid for _, _, pid in hello.events()}) == 2

    await await_until("both workers listen", both_listen, timeout=20, interval=0.2)
    first = await tasks.gated.kiq(key, 0)
    await trial.runs()
    sent = [await tasks.crunch.kiq(key, x) for x in (1, 2)]
    await trial.parked(f"one:{key}", 5)
    assert trial.in_room(f"one:{key}") == 0, "a copy is parked, where another worker could take it"
    trial.go()
    assert await values([first, *sent]) == [0, 1, 2]
    await trial.runs(6)
    await trial.over(f"one:{key}")
    assert sorted(trial.began()) == [0, 0, 1, 1, 2, 2]
    assert trial.peak() == 1
    runs = {
        pid: [x for what, x, other in trial.events() if what == "in" and other == pid] for _, _, pid in trial.events()
    }
    assert [sorted(ran) for ran in runs.values()] == [[0, 1, 2]] * 2

    cached = Trial(trial.module, matrix.history, f"cached {key}")
    cached.go()
    await values([await tasks.limited_price.kiq(cached.key)])
    await trial.over(f"one:{cached.key}")
    assert cached.began() == ["limited price"]
