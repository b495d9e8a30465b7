"""Limits on tasks, in one process."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncIterator
from typing import Annotated, Any

import pytest
from taskiq import (
    Context,
    InMemoryBroker,
    SimpleRetryMiddleware,
    TaskiqDepends,
    TaskiqMessage,
    TaskiqMiddleware,
    TaskiqResult,
)
from taskiq.exceptions import NoResultError
from taskiq.receiver import Receiver

from slotline.errors import PoolFullError, PoolTimeoutError, StoreUnavailableError
from slotline.pools import Pool, Slot
from slotline.stores import MemoryStore
from taskiq_ext import PoolLimitMiddleware, current_slot
from tests.harness.waiting import await_until


class Meter:
    """Counts how many runs go on at once."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.running = self.most = self.total = 0

    def __enter__(self) -> None:
        with self.lock:
            self.running += 1
            self.total += 1
            self.most = max(self.most, self.running)

    def __exit__(self, *exc: object) -> None:
        with self.lock:
            self.running -= 1


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
async def broker(store: MemoryStore) -> AsyncIterator[InMemoryBroker]:
    broker = InMemoryBroker().with_middlewares(PoolLimitMiddleware(store))
    yield broker
    await broker.shutdown()


async def result_of(sent: Any) -> TaskiqResult[Any]:
    return await sent.wait_result(check_interval=0.01, timeout=30)


async def is_free(store: MemoryStore, key: str) -> None:
    pool = Pool(key, 1, store=store)

    async def nobody_holds_it() -> bool:
        return await pool.size() == 0

    await await_until(f"the slots of {key!r} are free again", nobody_holds_it)


async def test_no_more_async_runs_than_slots(broker: InMemoryBroker, store: MemoryStore) -> None:
    meter = Meter()

    @broker.task(pool="api", pool_size=2)
    async def work(x: int) -> int:
        with meter:
            await asyncio.sleep(0.005)
        return x

    sent = [await work.kiq(x) for x in range(20)]
    assert [(await result_of(one)).return_value for one in sent] == list(range(20))
    assert meter.most == 2
    await is_free(store, "api")


async def test_no_more_sync_runs_than_slots(broker: InMemoryBroker, store: MemoryStore) -> None:
    meter = Meter()

    @broker.task(pool="api", pool_size=2)
    def work(x: int) -> int:
        with meter:
            time.sleep(0.005)
        return x

    sent = [await work.kiq(x) for x in range(20)]
    assert [(await result_of(one)).return_value for one in sent] == list(range(20))
    assert meter.most == 2
    await is_free(store, "api")


async def test_a_key_template_makes_a_pool_for_each_argument(broker: InMemoryBroker) -> None:
    everyone = threading.Barrier(3, timeout=20)

    @broker.task(pool="tenant:{tenant}", pool_size=1)
    def work(tenant: int) -> int:
        return everyone.wait() * 0 + tenant

    sent = [await work.kiq(tenant) for tenant in (1, 2, 3)]
    assert [(await result_of(one)).return_value for one in sent] == [1, 2, 3]


async def test_one_argument_in_two_spellings_shares_a_pool(broker: InMemoryBroker) -> None:
    @broker.task(pool="tenant:{tenant}", pool_size=1, pool_on_full="fail")
    async def work(tenant: int) -> int:
        await asyncio.sleep(0)
        return tenant

    first, second = await work.kiq(1), await work.kiq(tenant="1")  # type: ignore[arg-type] # as another sender may
    assert (await result_of(first)).return_value == 1
    assert isinstance((await result_of(second)).error, PoolFullError)


async def test_full_pools_fail_drop_and_time_out_as_their_labels_say(
    broker: InMemoryBroker, store: MemoryStore
) -> None:
    ran = []

    @broker.task(pool="api", pool_size=1)
    async def work(x: int) -> int:
        ran.append(x)
        return x

    pool = Pool("api", 1, store=store)
    slot = await pool.acquire(owner="the test")
    impatient = await work.kicker().with_labels(pool_timeout=0.05).kiq(3)
    failing = await work.kicker().with_labels(pool_on_full="fail").kiq(1)
    dropped = await work.kicker().with_labels(pool_on_full="drop").kiq(2)
    patient = await work.kicker().with_labels(pool_on_full="wait", pool_timeout=60).kiq(4)
    error = (await result_of(failing)).error
    assert isinstance(error, PoolFullError)
    assert (error.key, error.max_size, error.holders) == ("api", 1, ("the test",))
    assert isinstance((await result_of(impatient)).error, PoolTimeoutError)
    assert not await patient.is_ready()
    await pool.release(slot)
    assert (await result_of(patient)).return_value == 4
    assert not await dropped.is_ready()
    assert ran == [4]
    await is_free(store, "api")


async def test_waiting_messages_run_in_the_order_in_which_they_came(broker: InMemoryBroker, store: MemoryStore) -> None:
    order: list[int] = []

    @broker.task(pool="api", pool_size=1)
    async def work(x: int) -> None:
        order.append(x)

    pool = Pool("api", 1, store=store)
    slot = await pool.acquire()
    sent = []
    for x in range(6):
        sent.append(await work.kiq(x))

        async def in_line(expected: int = x + 1) -> bool:
            return (await pool.info()).waiting == expected

        await await_until("the message stands in line", in_line)
    await pool.release(slot)
    for one in sent:
        await result_of(one)
    assert order == list(range(6))


async def test_a_wait_for_a_slot_does_not_count_towards_the_timeout(broker: InMemoryBroker, store: MemoryStore) -> None:
    @broker.task(pool="api", pool_size=1, timeout=0.2)
    async def work() -> str:
        return "ran"

    pool = Pool("api", 1, store=store)
    slot = await pool.acquire()
    sent = await work.kiq()
    await asyncio.sleep(0.4)
    await pool.release(slot)
    assert (await result_of(sent)).return_value == "ran"


class Breaking(TaskiqMiddleware):
    """Raises in the hook that the label ``breaks`` names."""

    def _break(self, message: TaskiqMessage, hook: str) -> None:
        if message.labels.get("breaks") == hook:
            raise RuntimeError(hook)

    def pre_execute(self, message: TaskiqMessage) -> TaskiqMessage:
        self._break(message, "pre_execute")
        return message

    def on_error(self, message: TaskiqMessage, result: TaskiqResult[Any], exception: BaseException) -> None:
        self._break(message, "on_error")

    def post_execute(self, message: TaskiqMessage, result: TaskiqResult[Any]) -> None:
        self._break(message, "post_execute")

    def post_save(self, message: TaskiqMessage, result: TaskiqResult[Any]) -> None:
        self._break(message, "post_save")


@pytest.mark.parametrize(
    ("ending", "breaks"),
    [
        ("returns", ""), ("raises", ""), ("no result", ""), ("cancelled", ""), ("times out", ""), ("exits", ""),
        ("returns", "pre_execute"), ("raises", "on_error"), ("returns", "post_execute"), ("returns", "post_save"),
    ],
)  # fmt: skip
async def test_the_slot_is_free_after_every_ending(store: MemoryStore, ending: str, breaks: str) -> None:
    broker = InMemoryBroker().with_middlewares(PoolLimitMiddleware(store), Breaking())
    ran = asyncio.Event()

    @broker.task(pool="api", pool_size=1)
    async def work() -> None:
        ran.set()
        if ending == "raises":
            raise ValueError(ending)
        if ending == "no result":
            raise NoResultError
        if ending == "cancelled":
            raise asyncio.CancelledError
        if ending == "exits":
            raise SystemExit(1)
        if ending == "times out":
            await asyncio.sleep(30)

    labels: dict[str, Any] = {"breaks": breaks}
    if ending == "times out":
        labels["timeout"] = 0.05
    await work.kicker().with_labels(**labels).kiq()
    with contextlib.suppress(RuntimeError):
        await broker.wait_all()
    assert ran.is_set() == (breaks != "pre_execute")
    await is_free(store, "api")
    await broker.shutdown()


async def test_the_slot_is_free_when_a_dependency_fails_or_the_message_is_cancelled(
    broker: InMemoryBroker, store: MemoryStore
) -> None:
    started = asyncio.Event()

    @broker.task(pool="broken", pool_size=1)
    async def with_broken_dependency(value: Annotated[int, TaskiqDepends(broken_dependency)]) -> int:
        return value

    @broker.task(pool="cancelled", pool_size=1)
    async def cancelled() -> None:
        started.set()
        await asyncio.sleep(30)

    assert isinstance((await result_of(await with_broken_dependency.kiq())).error, ZeroDivisionError)
    await is_free(store, "broken")
    await cancelled.kiq()
    await asyncio.wait_for(started.wait(), 20)
    waiting = await cancelled.kiq()
    pool = Pool("cancelled", 1, store=store)

    async def in_line() -> bool:
        return (await pool.info()).waiting == 1

    await await_until("the second message stands in line", in_line)
    for callback in list(broker._running_tasks):
        callback.cancel()
    await asyncio.gather(*broker._running_tasks, return_exceptions=True)
    assert not await waiting.is_ready()
    await is_free(store, "cancelled")
    assert (await pool.info()).waiting == 0


def broken_dependency() -> int:
    return 1 // 0


async def test_a_retry_takes_a_slot_of_its_own(store: MemoryStore) -> None:
    broker = InMemoryBroker().with_middlewares(SimpleRetryMiddleware(default_retry_count=3), PoolLimitMiddleware(store))
    tries = []

    @broker.task(pool="api", pool_size=1, retry_on_error=True)
    async def work() -> int:
        tries.append(1)
        if len(tries) < 3:
            raise ValueError
        return len(tries)

    assert (await result_of(await work.kiq())).return_value == 3
    await is_free(store, "api")
    await broker.shutdown()


async def test_nested_in_place_messages_and_retries_leave_nothing(store: MemoryStore) -> None:
    broker = InMemoryBroker(await_inplace=True).with_middlewares(
        SimpleRetryMiddleware(default_retry_count=3), PoolLimitMiddleware(store)
    )
    tries = []

    @broker.task(pool="inner", pool_size=1, pool_on_full="fail")
    async def inner() -> int:
        return 1

    @broker.task(pool="outer", pool_size=2, pool_on_full="fail", retry_on_error=True)
    async def outer() -> int:
        tries.append(1)
        await inner.kiq()
        if len(tries) < 2:
            raise ValueError
        return len(tries)

    sent = await outer.kiq()
    assert (await sent.get_result()).return_value == 2
    for key in ("inner", "outer"):
        assert await Pool(key, 1, store=store).size() == 0
    await broker.shutdown()


async def test_the_body_and_a_dependency_see_the_slot(broker: InMemoryBroker) -> None:
    @broker.task(pool="api", pool_size=1)
    async def limited(
        slot: Annotated[Slot, TaskiqDepends(current_slot)], context: Annotated[Context, TaskiqDepends()]
    ) -> Any:
        return slot.key, slot.owner == context.message.task_id, slot.fence >= 1

    @broker.task
    async def unlimited(slot: Annotated[Slot | None, TaskiqDepends(current_slot)]) -> bool:
        return slot is None

    assert (await result_of(await limited.kiq())).return_value == ("api", True, True)
    assert (await result_of(await unlimited.kiq())).return_value is True


class Away(MemoryStore):
    """A store that cannot be reached for the first few commands."""

    def __init__(self, commands: int) -> None:
        super().__init__()
        self.left = commands
        self.asked = 0

    async def execute(self, command: Any) -> Any:
        self.asked += 1
        if self.left > 0:
            self.left -= 1
            raise StoreUnavailableError("test", "it is away")
        return await super().execute(command)


@pytest.mark.parametrize(
    ("policy", "away", "outcome"),
    [("wait", 2, "ran"), ("open", 1, "ran"), ("fail", 1, StoreUnavailableError)],
)
async def test_an_outage_holds_opens_or_fails_as_told(policy: Any, away: int, outcome: Any) -> None:
    store = Away(away)
    broker = InMemoryBroker().with_middlewares(PoolLimitMiddleware(store, on_store_error=policy))

    @broker.task(pool="api", pool_size=1)
    async def work() -> str:
        return "ran"

    result = await result_of(await work.kiq())
    assert result.return_value == outcome if isinstance(outcome, str) else isinstance(result.error, outcome)
    await broker.shutdown()


async def test_an_unlabelled_task_asks_no_store() -> None:
    store = Away(0)
    broker = InMemoryBroker().with_middlewares(PoolLimitMiddleware(store))

    @broker.task
    async def work() -> str:
        return "ran"

    assert (await result_of(await work.kiq())).return_value == "ran"
    assert store.asked == 0
    await broker.shutdown()


async def test_a_plain_function_that_the_receiver_meets_with_a_slot_keeps_its_types_and_dependencies(
    broker: InMemoryBroker,
) -> None:
    await broker.startup()
    receiver = Receiver(broker, run_startup=False)

    @broker.task(pool="late", pool_size=1)
    def late(x: int, context: Annotated[Context, TaskiqDepends()]) -> tuple[int, str]:
        return x, context.message.task_name

    labels: dict[str, Any] = {"pool": "late", "pool_size": 1}
    message = TaskiqMessage(task_id="1", task_name=late.task_name, labels=labels, args=["2"], kwargs={})
    await receiver.callback(broker.formatter.dumps(message).message)
    assert (await broker.result_backend.get_result("1")).return_value == (2, late.task_name)
