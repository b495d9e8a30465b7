"""Rates on tasks, in one process."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
from taskiq import InMemoryBroker

from slotline.errors import InvalidOptionError, PoolFullError, PoolTimeoutError
from slotline.stores import MemoryStore
from taskiq_ext import PoolLimit, PoolLimitMiddleware


@pytest.fixture
async def broker() -> AsyncIterator[InMemoryBroker]:
    limits = PoolLimitMiddleware(MemoryStore(), pools={"mail": PoolLimit(rate="1/h", burst=2, on_full="fail")})
    broker = InMemoryBroker().with_middlewares(limits)
    yield broker
    await broker.shutdown()


async def result_of(sent: Any) -> Any:
    return await sent.wait_result(check_interval=0.01, timeout=30)


async def test_starts_are_spaced_by_the_rate(broker: InMemoryBroker) -> None:
    @broker.task(pool="api", pool_rate="20/s")
    async def work() -> float:
        return time.monotonic()

    sent = [await work.kiq() for _ in range(5)]
    started = sorted([(await result_of(one)).return_value for one in sent])
    assert started[-1] - started[0] >= 4 * 0.05 * 0.9


async def test_a_burst_starts_at_once_and_what_exceeds_it_fails_with_the_time_to_come_back(
    broker: InMemoryBroker,
) -> None:
    @broker.task(pool="mail")
    def work() -> str:
        return "ran"

    results = [await result_of(await work.kiq()) for _ in range(3)]
    assert [result.return_value for result in results[:2]] == ["ran", "ran"]
    error = results[2].error
    assert isinstance(error, PoolFullError)
    assert 1000 < error.retry_after <= 3600


async def test_a_wait_for_the_rate_ends_in_time(broker: InMemoryBroker) -> None:
    @broker.task(pool="api", pool_rate="1/h", pool_timeout=0.05)
    async def work() -> None: ...

    assert not (await result_of(await work.kiq())).is_err
    assert isinstance((await result_of(await work.kiq())).error, PoolTimeoutError)


async def test_what_is_over_its_rate_is_dropped_where_that_is_asked_for(broker: InMemoryBroker) -> None:
    runs = []

    @broker.task(pool="api", pool_rate="1/h", pool_on_full="drop")
    async def work() -> None:
        runs.append(1)

    assert not (await result_of(await work.kiq())).is_err
    await work.kiq()
    await broker.wait_all()
    assert runs == [1]


async def test_a_bad_rate_is_refused_at_registration_and_when_sent(broker: InMemoryBroker) -> None:
    with pytest.raises(InvalidOptionError, match="pool_rate='100 a minute'"):

        @broker.task(pool="api", pool_rate="100 a minute")
        async def bad() -> None: ...

    @broker.task(pool="api", pool_rate="5/s")
    async def good() -> None: ...

    with pytest.raises(InvalidOptionError, match="pool_rate=5 "):
        await good.kicker().with_labels(pool_rate=5).kiq()
    with pytest.raises(InvalidOptionError, match="pool_burst=0 "):
        await good.kicker().with_labels(pool_burst=0).kiq()
