"""Weights and partitions on tasks, in one process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from taskiq import InMemoryBroker

from slotline.errors import InvalidOptionError, PoolFullError, PoolTimeoutError, RunCancelledError
from slotline.stores import MemoryStore
from taskiq_ext import PoolLimit, PoolLimitMiddleware
from tests.harness.waiting import await_until


class Work:
    """A task that counts in a pool of three slots, of which each tenant may have two, until it is told to end."""

    def __init__(self, broker: InMemoryBroker, **labels: Any) -> None:
        self.started: list[Any] = []
        self.going: list[asyncio.Event] = []

        @broker.task(pool="shared", **labels)
        async def work(tenant: Any, slots: int = 1) -> Any:
            going = asyncio.Event()
            self.started.append(tenant)
            self.going.append(going)
            await going.wait()
            return tenant

        self.task = work

    async def begun(self, *tenants: Any) -> None:
        """Wait until exactly these have begun, in whatever order those have that begin together."""
        await await_until(f"{len(tenants)} run", lambda: len(self.started) >= len(tenants))
        assert sorted(map(repr, self.started)) == sorted(map(repr, tenants))

    async def finish(self) -> None:
        """Let all runs end, also those that begin meanwhile."""
        self.task.broker.wait_tasks_timeout = 20
        waiting = asyncio.ensure_future(self.task.broker.wait_all())
        while not waiting.done():
            for going in self.going:
                going.set()
            await asyncio.sleep(0.001)
        await waiting


@pytest.fixture
async def broker() -> AsyncIterator[InMemoryBroker]:
    shared = PoolLimit(size=3, partition="{tenant}", max_per_partition=2)
    broker = InMemoryBroker().with_middlewares(PoolLimitMiddleware(MemoryStore(), pools={"shared": shared}))
    yield broker
    await broker.shutdown()


async def test_a_full_partition_holds_up_no_other_and_those_who_wait_are_served_in_turn(broker: InMemoryBroker) -> None:
    work = Work(broker)
    for tenant in [*["noisy"] * 30, "b", "c", "c", "b"]:
        await work.task.kiq(tenant)
    await work.begun("noisy", "noisy", "b")
    work.going[2].set()
    await work.begun("noisy", "noisy", "b", "c")
    for at in (0, 1, 3):
        work.going[at].set()
    await await_until("three more run", lambda: len(work.started) == 7)
    assert sorted(work.started[4:]) == ["b", "c", "noisy"], "one of each, however many of one wait"
    await work.finish()
    assert len(work.started) == 34


@pytest.mark.parametrize(
    ("labels", "error"),
    [
        ({"pool_on_full": "fail"}, PoolFullError),
        ({"pool_on_full": "cancel_newest"}, RunCancelledError),
        ({"pool_timeout": 0.02}, PoolTimeoutError),
    ],
)
async def test_who_does_not_wait_is_told_that_its_partition_is_full(
    broker: InMemoryBroker, labels: dict[str, Any], error: type[Exception]
) -> None:
    work = Work(broker, **labels)
    sent = [await work.task.kiq(tenant) for tenant in ("noisy", "noisy", "noisy", "b")]
    await work.begun("noisy", "noisy", "b")
    assert isinstance((await sent[2].wait_result(check_interval=0.01, timeout=20)).error, error)
    await work.finish()


async def test_a_heavy_run_waits_for_all_that_it_asks_for_and_is_not_overtaken(broker: InMemoryBroker) -> None:
    work = Work(broker, pool_partition=None)
    heavy = work.task.kicker().with_labels(pool_weight=2)
    await work.task.kiq("first")
    await work.task.kiq("second")
    await work.begun("first", "second")
    await heavy.kiq("heavy")
    await work.task.kiq("late")
    work.going[0].set()
    await work.begun("first", "second", "heavy")
    work.going[1].set()
    await work.begun("first", "second", "heavy", "late")
    await work.finish()


@pytest.mark.parametrize("tenant", ["x" * 10_240, "a|b\n{}\0", "\udc80", "", None, 7, {"a": [1]}])
async def test_a_partition_may_be_called_anything(broker: InMemoryBroker, tenant: Any) -> None:
    work = Work(broker)
    for name in (tenant, tenant, tenant, "other"):
        await work.task.kiq(name)
    await work.begun(tenant, tenant, "other")
    await work.finish()
    assert len(work.started) == 4


async def test_a_call_whose_arguments_cannot_name_its_pool_or_partition_is_not_sent(broker: InMemoryBroker) -> None:
    work = Work(broker)
    with pytest.raises(InvalidOptionError, match=r"pool_partition='\{tenant\.region\}'"):
        await work.task.kicker().with_labels(pool_partition="{tenant.region}").kiq("a")
    with pytest.raises(InvalidOptionError, match=r"pool='\{tenant\[id\]\}'"):
        await work.task.kicker().with_labels(pool="{tenant[id]}", pool_size=1, pool_partition=None).kiq("a")
    with pytest.raises(InvalidOptionError, match=r"pool_partition='\{nobody\}'"):
        await work.task.kicker().with_labels(pool_partition="{nobody}").kiq("a")
    with pytest.raises(InvalidOptionError, match=r"pool_weight=3 .* at most 2, the max_per_partition"):
        await work.task.kicker().with_labels(pool_weight=3).kiq("a")
    assert not work.started


async def test_a_task_that_lacks_what_the_declared_partition_names_is_not_registered(broker: InMemoryBroker) -> None:
    with pytest.raises(InvalidOptionError, match=r"pool_partition='\{tenant\}'"):

        @broker.task(pool="shared")
        async def of_nobody() -> None: ...

    @broker.task(pool="shared", pool_partition=None)
    async def of_all() -> None: ...

    assert not (await (await of_all.kiq()).wait_result(check_interval=0.01, timeout=20)).is_err
