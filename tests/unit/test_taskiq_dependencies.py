"""A message that ends without its function resolves none of its dependencies; every other one resolves all of them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Generator
from typing import Annotated, Any

import pytest
from taskiq import Context, InMemoryBroker, TaskiqDepends, TaskiqResult

from slotline.pools import Pool
from slotline.stores import MemoryStore
from taskiq_ext import CacheMiddleware, PoolLimitMiddleware

resolved: list[str] = []


@pytest.fixture(autouse=True)
def _none_yet() -> None:
    resolved.clear()


def plain() -> int:
    resolved.append("plain")
    return 1


def opened(below: Annotated[int, TaskiqDepends(plain)]) -> Generator[int, None, None]:
    resolved.append("opened")
    yield below + 1
    resolved.append("closed")


async def never_shared(context: Annotated[Context, TaskiqDepends()]) -> str:
    resolved.append("never shared")
    return context.message.task_name


class Configured:
    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self) -> str:
        resolved.append(self.name)
        return self.name


EVERYTHING = ["plain", "opened", "never shared", "configured", "closed"]


@pytest.fixture
async def broker() -> AsyncIterator[InMemoryBroker]:
    broker = InMemoryBroker().with_middlewares(CacheMiddleware(), PoolLimitMiddleware(store=MemoryStore()))
    yield broker
    await broker.shutdown()


def demanding(broker: InMemoryBroker, **labels: Any) -> Any:
    @broker.task(**labels)
    async def work(
        x: int,
        two: Annotated[int, TaskiqDepends(opened)],
        name: Annotated[str, TaskiqDepends(never_shared, use_cache=False)],
        configured: Annotated[str, TaskiqDepends(Configured("configured"))],
        *,
        context: Annotated[Context, TaskiqDepends()],
    ) -> list[Any]:
        return [x, two, name == context.message.task_name, configured]

    return work


async def result_of(sent: Any) -> TaskiqResult[Any]:
    return await sent.wait_result(check_interval=0.01, timeout=30)


async def test_a_hit_resolves_no_dependency(broker: InMemoryBroker) -> None:
    work = demanding(broker, cache_ttl=60)
    expected = [7, 2, True, "configured"]
    assert (await result_of(await work.kiq(7))).return_value == expected
    assert sorted(resolved) == sorted(EVERYTHING)
    for _ in range(3):
        result = await result_of(await work.kiq(7))
        assert (result.return_value, result.labels["cache_hit"]) == (expected, True)
    assert len(resolved) == len(EVERYTHING)
    assert (await result_of(await work.kiq(8))).return_value == [8, 2, True, "configured"]
    assert len(resolved) == 2 * len(EVERYTHING)


async def test_a_hit_resolves_no_dependency_that_is_overridden(broker: InMemoryBroker) -> None:
    work = demanding(broker, cache_ttl=60)

    def instead() -> int:
        resolved.append("instead")
        return 10

    broker.dependency_overrides[plain] = instead
    assert (await result_of(await work.kiq(7))).return_value[1] == 11
    assert resolved.count("instead") == 1
    assert (await result_of(await work.kiq(7))).return_value[1] == 11
    assert resolved.count("instead") == 1


async def test_a_broken_dependency_does_not_break_a_hit(broker: InMemoryBroker) -> None:
    work = demanding(broker, cache_ttl=60)
    assert not (await result_of(await work.kiq(7))).is_err

    def broken() -> int:
        raise ZeroDivisionError

    broker.dependency_overrides[plain] = broken
    assert not (await result_of(await work.kiq(7))).is_err
    assert isinstance((await result_of(await work.kiq(8))).error, ZeroDivisionError)


async def test_a_message_that_its_pool_refuses_resolves_no_dependency(broker: InMemoryBroker) -> None:
    store = broker.middlewares[1].store  # type: ignore[attr-defined] # a PoolLimitMiddleware
    work = demanding(broker, pool="p", pool_size=1, pool_on_full="fail")
    async with Pool("p", 1, store=store):
        assert (await result_of(await work.kiq(7))).is_err
    assert resolved == []
    assert (await result_of(await work.kiq(7))).return_value == [7, 2, True, "configured"]


async def test_what_a_user_adds_to_the_context_is_there(broker: InMemoryBroker) -> None:
    broker.add_dependency_context({plain: 100})
    work = demanding(broker, cache_ttl=60)
    assert (await result_of(await work.kiq(7))).return_value[1] == 101
    assert "plain" not in resolved
