"""Tasks that count in several pools at once, in one process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated, Any

import pytest
from taskiq import InMemoryBroker, TaskiqDepends

from slotline.errors import InvalidOptionError, PoolFullError, PoolTimeoutError, RunCancelledError, SlotLostError
from slotline.pools import Holding, Pool
from slotline.stores import MemoryStore
from taskiq_ext import PoolLimit, PoolLimitMiddleware, current_slot
from tests.harness.waiting import await_until


class Work:
    """A task that counts in a pool for all, of three slots, and in one for each tenant; it runs until it may end."""

    def __init__(self, limits: PoolLimitMiddleware, **labels: Any) -> None:
        self.broker = InMemoryBroker().with_middlewares(limits)
        self.store = limits.store
        self.started: list[str] = []
        self.go_on = asyncio.Event()

        @self.broker.task(**{"pool": ["db", "api:{tenant}"], "pool_size": [3, 1], **labels})
        async def work(tenant: str, slot: Annotated[Holding, TaskiqDepends(current_slot)]) -> list[Any]:
            self.started.append(tenant)
            await self.go_on.wait()
            return [one.key for one in slot.slots]

        self.task = work

    async def begun(self, *tenants: str) -> None:
        await await_until(f"{tenants} run", lambda: sorted(self.started) == sorted(tenants))

    async def used(self, *keys: str) -> list[int]:
        return [await Pool(key, 1, store=self.store).size() for key in keys]


@pytest.fixture
def limits() -> PoolLimitMiddleware:
    return PoolLimitMiddleware(MemoryStore(), pools={"db": PoolLimit(size=3), "gpu": PoolLimit(size=2, on_full="fail")})


@pytest.fixture
async def work(limits: PoolLimitMiddleware) -> AsyncIterator[Work]:
    work = Work(limits)
    yield work
    work.go_on.set()
    await work.broker.shutdown()


async def result_of(sent: Any) -> Any:
    return await sent.wait_result(check_interval=0.01, timeout=30)


async def test_a_run_has_a_slot_of_each_and_one_that_waits_has_none(work: Work) -> None:
    sent = [await work.task.kiq(tenant) for tenant in ("a", "a", "b")]
    await work.begun("a", "b")
    assert await work.used("db", "api:a", "api:b") == [2, 1, 1]
    work.go_on.set()
    assert (await result_of(sent[0])).return_value == ["api:a", "db"]
    assert not (await result_of(sent[1])).is_err
    assert await work.used("db", "api:a", "api:b") == [0, 0, 0]


@pytest.mark.parametrize(
    ("labels", "error"),
    [
        ({"pool_on_full": "fail"}, PoolFullError),
        ({"pool_on_full": "cancel_newest"}, RunCancelledError),
        ({"pool_timeout": 0.02}, PoolTimeoutError),
        ({"pool_timeout": 0}, PoolTimeoutError),
    ],
)
async def test_the_error_of_who_does_not_wait_names_the_pool_that_is_full(
    work: Work, labels: dict[str, Any], error: type[PoolFullError]
) -> None:
    await work.task.kiq("a")
    await work.begun("a")
    refused = (await result_of(await work.task.kicker().with_labels(**labels).kiq("a"))).error
    assert isinstance(refused, error)
    assert refused.key == "api:a"
    assert await work.used("db", "api:a") == [1, 1], "nothing is kept of what was free"


async def test_the_pools_of_a_call_come_as_a_list_or_as_the_text_that_is_made_of_it(work: Work) -> None:
    call = work.task.kicker().with_labels(pool=["db", "gpu"], pool_size=[None, None])
    other = work.task.kicker().with_labels(pool="['gpu', 'db']", pool_size="None", pool_weight="[2, 1]")
    await call.kiq("a")
    await work.begun("a")
    refused = (await result_of(await other.kiq("b"))).error
    assert isinstance(refused, PoolFullError), "the declared pool says so"
    assert (refused.key, refused.weight) == ("gpu", 2)
    assert await work.used("db", "gpu", "api:a") == [1, 1, 0]


async def test_the_oldest_run_of_the_pool_that_is_full_ends_for_the_newest(limits: PoolLimitMiddleware) -> None:
    work = Work(limits, pool_on_full="cancel_oldest")
    sent = [await work.task.kiq(tenant) for tenant in ("b", "a")]
    await work.begun("a", "b")
    sent.append(await work.task.kiq("a"))
    await work.begun("a", "a", "b")
    assert isinstance((await result_of(sent[1])).error, SlotLostError)
    assert limits.losses == {"ended": 1, "running": 0}
    work.go_on.set()
    assert not (await result_of(sent[0])).is_err
    assert not (await result_of(sent[2])).is_err
    await work.broker.shutdown()


async def test_a_run_ends_when_one_of_its_slots_is_to_go_to_another(work: Work, limits: PoolLimitMiddleware) -> None:
    sent = await work.task.kiq("a")
    await work.begun("a")
    db = Pool("db", 3, store=work.store)
    (holder,) = (await db.info()).holders
    assert await db.evict(holder.token) == holder.token
    assert isinstance((await result_of(sent)).error, SlotLostError)
    assert limits.losses == {"ended": 1, "running": 0}
    assert await work.used("db", "api:a") == [0, 0]


async def test_pools_that_are_one_for_these_arguments_are_refused_when_the_task_is_sent(work: Work) -> None:
    with pytest.raises(InvalidOptionError, match=r"^pool="):
        await work.task.kicker().with_labels(pool=["p:{tenant}", "p:a"], pool_size=1).kiq("a")
