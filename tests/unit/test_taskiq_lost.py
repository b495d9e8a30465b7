"""What becomes of a Taskiq run whose slot is lost, or is to go to another."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator
from typing import Annotated, Any

import pytest
from taskiq import InMemoryBroker, TaskiqDepends, TaskiqResult

from slotline import configure
from slotline.errors import InvalidOptionError, RunCancelledError, SlotLostError
from slotline.pools import Pool, Slot
from slotline.stores import MemoryStore
from taskiq_ext import ExecutorMiddleware, PoolLimit, PoolLimitMiddleware, current_slot
from tests.harness.waiting import await_until


@pytest.fixture
def limits() -> PoolLimitMiddleware:
    return PoolLimitMiddleware(MemoryStore())


@pytest.fixture
async def broker(limits: PoolLimitMiddleware) -> AsyncIterator[InMemoryBroker]:
    executors = ExecutorMiddleware({name: {"backend": name, "max_pools": 1} for name in ("thread", "process")})
    broker = InMemoryBroker().with_middlewares(limits, executors)
    yield broker
    await broker.shutdown()


async def result_of(sent: Any) -> TaskiqResult[Any]:
    return await sent.wait_result(check_interval=0.01, timeout=30)


async def evict(limits: PoolLimitMiddleware, key: str) -> str:
    """Evict the only holder of a pool, once there is one."""
    pool = Pool(key, 1, store=limits.store)

    async def holders() -> Any:
        return (await pool.info()).holders

    await await_until("somebody holds a slot", holders)
    token = (await holders())[0].token
    assert await pool.evict(token) == token
    return token


async def test_an_async_run_is_cancelled_and_says_so(broker: InMemoryBroker, limits: PoolLimitMiddleware) -> None:
    seen: list[str] = []

    @broker.task(pool="api", pool_size=1)
    async def work() -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            seen.append("cleaned up")
            raise

    sent = await work.kiq()
    token = await evict(limits, "api")
    error = (await result_of(sent)).error
    assert isinstance(error, SlotLostError)
    assert (error.key, error.token, error.reason, seen) == ("api", token, "it was evicted", ["cleaned up"])
    assert limits.losses == {"ended": 1, "running": 0}
    assert await Pool("api", 1, store=limits.store).size() == 0


async def test_a_run_that_swallows_the_cancellation_has_its_own_outcome(
    broker: InMemoryBroker, limits: PoolLimitMiddleware
) -> None:
    @broker.task(pool="api", pool_size=1)
    async def work() -> str:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            await asyncio.sleep(0)
        return "finished"

    sent = await work.kiq()
    await evict(limits, "api")
    assert (await result_of(sent)).return_value == "finished"


async def test_a_run_whose_cancellation_is_swallowed_on_its_way_is_cancelled_again(
    broker: InMemoryBroker, limits: PoolLimitMiddleware, caplog: pytest.LogCaptureFixture
) -> None:
    configure(heartbeat_lease=0.2)
    seen: list[int] = []

    @broker.task(pool="api", pool_size=1)
    async def work() -> None:
        for at in range(2):
            with contextlib.suppress(asyncio.CancelledError):  # as wait_for() of Python 3.11 does, now and then
                await asyncio.sleep(60)
            seen.append(at)
        await asyncio.sleep(60)

    sent = await work.kiq()
    await evict(limits, "api")
    assert isinstance((await result_of(sent)).error, SlotLostError)
    assert seen == [0, 1]
    assert caplog.text.count("is cancelled again") == 2
    assert limits.losses == {"ended": 1, "running": 0}


async def test_a_cancellation_from_elsewhere_stays_one(broker: InMemoryBroker, limits: PoolLimitMiddleware) -> None:
    running: list[asyncio.Task[Any]] = []

    @broker.task(pool="api", pool_size=1)
    async def work() -> None:
        running.append(asyncio.current_task())  # type: ignore[arg-type] # it runs in one
        await asyncio.sleep(60)

    sent = await work.kiq()
    await await_until("it runs", lambda: running)
    running[0].cancel()
    await evict(limits, "api")
    await await_until("it has ended", running[0].done)
    assert isinstance((await result_of(sent)).error, asyncio.CancelledError)


@pytest.mark.parametrize("labels", [{}, {"executor": "thread"}])
async def test_what_runs_in_a_thread_keeps_its_slot_to_its_end_and_is_reported(
    broker: InMemoryBroker, limits: PoolLimitMiddleware, caplog: pytest.LogCaptureFixture, labels: dict[str, Any]
) -> None:
    go_on = threading.Event()

    @broker.task(pool="api", pool_size=1, **labels)
    def work() -> str:
        go_on.wait(30)
        return "finished"

    sent = await work.kiq()
    await evict(limits, "api")
    await await_until("it is reported", lambda: limits.losses["running"])
    assert "a thread cannot be ended" in caplog.text
    assert await Pool("api", 1, store=limits.store).size() == 1
    go_on.set()
    assert (await result_of(sent)).return_value == "finished"
    assert limits.losses == {"ended": 0, "running": 1}


async def test_a_run_told_to_end_before_it_begins_does_not_begin(
    broker: InMemoryBroker, limits: PoolLimitMiddleware
) -> None:
    resolving, told, ran = asyncio.Event(), asyncio.Event(), []

    async def slow(slot: Annotated[Slot, TaskiqDepends(current_slot)]) -> int:
        resolving.set()
        await told.wait()
        return slot.fence

    needed = TaskiqDepends(slow)

    @broker.task(pool="api", pool_size=1)
    async def work(fence: int = needed) -> None:
        ran.append(fence)

    sent = await work.kiq()
    await resolving.wait()
    await evict(limits, "api")
    await await_until("it is told", lambda: limits.losses["ended"])
    told.set()
    assert isinstance((await result_of(sent)).error, SlotLostError)
    assert ran == []


async def test_a_warned_run_goes_on(
    broker: InMemoryBroker, limits: PoolLimitMiddleware, caplog: pytest.LogCaptureFixture
) -> None:
    go_on = asyncio.Event()

    @broker.task(pool="api", pool_size=1, pool_on_lost="warn")
    async def work() -> str:
        await go_on.wait()
        return "finished"

    sent = await work.kiq()
    await evict(limits, "api")
    await await_until("it is reported", lambda: limits.losses["running"])
    assert 'pool_on_lost="warn"' in caplog.text
    go_on.set()
    assert (await result_of(sent)).return_value == "finished"


async def test_each_newcomer_cancels_the_longest_run_and_no_other(
    broker: InMemoryBroker, limits: PoolLimitMiddleware
) -> None:
    running: list[int] = []
    go_on = asyncio.Event()

    @broker.task(pool="api", pool_size=2, pool_on_full="cancel_oldest")
    async def work(x: int) -> int:
        running.append(x)
        await go_on.wait()
        return x

    sent = []
    for x in range(4):
        sent.append(await work.kiq(x))
        await await_until(f"{x} runs", lambda x=x: x in running)
    assert [type((await result_of(one)).error) for one in sent[:2]] == [SlotLostError] * 2
    go_on.set()
    assert [(await result_of(one)).return_value for one in sent[2:]] == [2, 3]
    assert limits.losses == {"ended": 2, "running": 0}


async def test_a_heavy_newcomer_cancels_as_many_runs_as_it_needs(
    broker: InMemoryBroker, limits: PoolLimitMiddleware
) -> None:
    running: list[int] = []
    go_on = asyncio.Event()

    @broker.task(pool="api", pool_size=3, pool_on_full="cancel_oldest")
    async def work(x: int) -> int:
        running.append(x)
        await go_on.wait()
        return x

    sent = []
    for x, weight in enumerate([1, 1, 1, 2]):
        sent.append(await work.kicker().with_labels(pool_weight=weight).kiq(x))
        await await_until(f"{x} runs", lambda x=x: x in running)
    assert [type((await result_of(one)).error) for one in sent[:2]] == [SlotLostError] * 2
    go_on.set()
    assert [(await result_of(one)).return_value for one in sent[2:]] == [2, 3]
    assert limits.losses == {"ended": 2, "running": 0}


async def test_a_newcomer_whose_partition_is_full_cancels_a_run_of_that(
    broker: InMemoryBroker, limits: PoolLimitMiddleware
) -> None:
    running: list[str] = []
    go_on = asyncio.Event()
    share = {"pool_partition": "{tenant}", "pool_max_per_partition": 1}

    @broker.task(pool="api", pool_size=3, pool_on_full="cancel_oldest", **share)
    async def work(tenant: str, x: int) -> int:
        running.append(tenant)
        await go_on.wait()
        return x

    sent = []
    for x, tenant in enumerate(["a", "b", "b"]):
        sent.append(await work.kiq(tenant, x))
        await await_until(f"{x} runs", lambda x=x: len(running) == x + 1)
    assert isinstance((await result_of(sent[1])).error, SlotLostError)
    go_on.set()
    assert [(await result_of(one)).return_value for one in (sent[0], sent[2])] == [0, 2]
    assert limits.losses == {"ended": 1, "running": 0}


async def test_a_newcomer_is_cancelled_where_that_is_asked_for(broker: InMemoryBroker) -> None:
    go_on = asyncio.Event()

    @broker.task(pool="api", pool_size=1, pool_on_full="cancel_newest")
    async def work(x: int) -> int:
        await go_on.wait()
        return x

    first = await work.kiq(1)
    second = await result_of(await work.kiq(2))
    assert isinstance(second.error, RunCancelledError)
    assert second.error.key == "api"
    go_on.set()
    assert (await result_of(first)).return_value == 1


def test_contradicting_and_impossible_options_are_refused(broker: InMemoryBroker) -> None:
    async def work() -> None: ...

    for labels in ({"pool_on_lost": "kill"}, {"pool_on_lost": "warn", "pool_on_full": "cancel_oldest"}):
        with pytest.raises(InvalidOptionError, match="pool_on_"):
            broker.task("refused", pool="api", pool_size=1, **labels)(work)
    with pytest.raises(InvalidOptionError, match="pool_on_full"):
        PoolLimit(size=1, on_full="cancel_oldest", on_lost="warn")
    with pytest.raises(InvalidOptionError, match="on_lost"):
        PoolLimitMiddleware(on_lost="stop")  # type: ignore[arg-type] # what is refused
    with pytest.raises(InvalidOptionError, match="pool_on_full"):
        PoolLimitMiddleware(on_lost="warn", pools={"api": PoolLimit(size=1, on_full="cancel_oldest")})
    warning = InMemoryBroker().with_middlewares(PoolLimitMiddleware(on_lost="warn"))
    with pytest.raises(InvalidOptionError, match="pool_on_full"):
        warning.task("refused", pool="api", pool_size=1, pool_on_full="cancel_oldest")(work)
    warning.task("fine", pool="api", pool_size=1, pool_on_full="cancel_oldest", pool_on_lost="cancel")(work)
