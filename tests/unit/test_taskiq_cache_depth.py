"""Grace, tags, invalidation, and hits that the sender finds."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from taskiq import InMemoryBroker, SimpleRetryMiddleware, TaskiqMessage, TaskiqMiddleware, TaskiqResult
from taskiq.brokers.shared_broker import async_shared_broker
from taskiq.message import BrokerMessage

from slotline.caches import InMemoryCacheAdapter
from slotline.errors import InvalidOptionError
from taskiq_ext import CacheMiddleware, invalidate
from tests.harness.waiting import await_until
from tests.unit.test_taskiq_cache import PlainCache, result_of


class CountingBroker(InMemoryBroker):
    """Counts what is really sent."""

    sent = 0

    async def kick(self, message: BrokerMessage) -> None:
        self.sent += 1
        await super().kick(message)


@pytest.fixture
def cache() -> InMemoryCacheAdapter:
    return InMemoryCacheAdapter()


@pytest.fixture
async def broker(cache: InMemoryCacheAdapter) -> AsyncIterator[CountingBroker]:
    broker = CountingBroker()
    broker.add_middlewares(CacheMiddleware(cache))
    yield broker
    await broker.shutdown()


@pytest.fixture
async def answering() -> AsyncIterator[CountingBroker]:
    broker = CountingBroker()
    broker.add_middlewares(CacheMiddleware(PlainCache()))
    yield broker
    await broker.shutdown()


async def test_in_the_grace_one_message_refreshes_and_the_others_get_the_old_value(broker: CountingBroker) -> None:
    ran, go = [], asyncio.Event()

    @broker.task(cache_ttl=0.05, cache_grace=60)
    async def work() -> int:
        ran.append(1)
        if len(ran) == 2:
            await go.wait()
        return len(ran)

    assert (await result_of(await work.kiq())).return_value == 1
    await asyncio.sleep(0.1)
    refreshing = await work.kiq()
    await await_until("one message refreshes", lambda: len(ran) == 2)
    others = [await result_of(await work.kiq()) for _ in range(5)]
    assert [(other.return_value, other.labels.get("cache_hit")) for other in others] == [(1, True)] * 5
    go.set()
    assert (await result_of(refreshing)).return_value == 2
    assert (await result_of(await work.kiq())).return_value == 2
    assert len(ran) == 2


async def test_in_the_grace_a_failing_refresh_ends_with_the_old_value(broker: CountingBroker) -> None:
    ran = []

    @broker.task(cache_ttl=0.05, cache_grace=60)
    async def work() -> int:
        ran.append(1)
        if len(ran) == 2:
            raise ValueError("no luck")
        return len(ran)

    assert (await result_of(await work.kiq())).return_value == 1
    await asyncio.sleep(0.1)
    result = await result_of(await work.kiq())
    assert (result.return_value, result.is_err, result.error) == (1, False, None)
    assert (await result_of(await work.kiq())).return_value == 3


async def test_a_cancelled_refresh_leaves_the_right_to_refresh_to_the_next(broker: CountingBroker) -> None:
    ran = []

    @broker.task(cache_ttl=0.05, cache_grace=60)
    async def work() -> int:
        ran.append(1)
        if len(ran) == 2:
            await asyncio.sleep(30)
        return len(ran)

    assert (await result_of(await work.kiq())).return_value == 1
    await asyncio.sleep(0.1)
    await work.kiq()
    await await_until("one message refreshes", lambda: len(ran) == 2)
    for callback in list(broker._running_tasks):
        callback.cancel()

    async def refreshed() -> bool:
        return (await result_of(await work.kiq())).return_value == 3

    await await_until("another message refreshes", refreshed)


async def test_grace_of_the_cache_itself_is_kept_too() -> None:
    broker = CountingBroker()
    broker.add_middlewares(CacheMiddleware(InMemoryCacheAdapter(grace_seconds=60)))
    ran = []

    @broker.task(cache_ttl=0.05)
    async def work() -> int:
        ran.append(1)
        if len(ran) > 1:
            raise ValueError
        return 1

    for _ in range(2):
        assert (await result_of(await work.kiq())).return_value == 1
        await asyncio.sleep(0.1)
    assert len(ran) == 2
    await broker.shutdown()


async def test_a_tag_removes_the_entries_of_its_argument(broker: CountingBroker, cache: InMemoryCacheAdapter) -> None:
    ran = []

    @broker.task(cache_ttl=60, cache_tags=["pages", "user:{user}"])
    async def page(user: int, number: int) -> int:
        ran.append((user, number))
        return number

    for user, number in ((1, 1), (1, 2), (2, 1)):
        await result_of(await page.kiq(user, number))
    assert await cache.invalidate_tag("user:1") == 2
    assert "cache_hit" in (await result_of(await page.kiq(2, 1))).labels
    assert "cache_hit" not in (await result_of(await page.kiq(1, 1))).labels
    assert await cache.invalidate_tag("pages") == 2


async def test_invalidate_removes_one_call(broker: CountingBroker) -> None:
    ran = []

    @broker.task(cache_ttl=60)
    async def work(x: int, y: int = 1) -> int:
        ran.append((x, y))
        return x

    for x in (1, 2):
        await result_of(await work.kiq(x))
    assert await invalidate(work, 1, y=1) is True
    assert await invalidate(work, x=1) is False
    for x in (1, 2):
        await result_of(await work.kiq(x))
    assert ran == [(1, 1), (2, 1), (1, 1)]
    with pytest.raises(TypeError):
        await invalidate(work, 1, 2, 3)


async def test_invalidate_of_what_is_not_cached_is_refused(broker: CountingBroker) -> None:
    other = InMemoryBroker()

    @broker.task
    async def uncached() -> None: ...

    @other.task(cache_ttl=60)
    async def elsewhere() -> None: ...

    with pytest.raises(InvalidOptionError, match="cache_ttl"):
        await invalidate(uncached)
    with pytest.raises(InvalidOptionError, match="CacheMiddleware"):
        await invalidate(elsewhere)
    await other.shutdown()


async def test_a_sender_is_answered_without_a_message(answering: CountingBroker) -> None:
    hooks = []

    class Watching(TaskiqMiddleware):
        def post_send(self, message: TaskiqMessage) -> None:
            hooks.append(message.task_id)

    answering.add_middlewares(Watching())

    @answering.task(cache_ttl=60, other="label")
    async def work(x: int) -> int:
        return 2 * x

    assert (await result_of(await work.kiq(1))).return_value == 2
    assert answering.sent == 1
    task = await work.kicker().with_task_id("mine").kiq("1")  # type: ignore[arg-type] # as the wire has it
    assert await task.is_ready()
    result: TaskiqResult[Any] = await task.get_result()
    assert (result.return_value, result.is_err, result.labels["cache_hit"], result.labels["other"]) == (
        2,
        False,
        True,
        "label",
    )
    assert answering.sent == 1
    assert len(hooks) == 2
    assert hooks[-1] == "mine"
    await result_of(await work.kiq(2))
    assert answering.sent == 2
    await result_of(await work.kicker().with_labels(cache=False).kiq(1))
    assert answering.sent == 3


async def test_a_kept_error_and_a_memory_cache_are_the_workers_business(answering: CountingBroker) -> None:
    @answering.task(cache_ttl=60, cache_errors=True)
    async def work() -> int:
        raise ValueError("no luck")

    for sent in (1, 2):
        result = await result_of(await work.kiq())
        assert isinstance(result.error, ValueError)
        assert answering.sent == sent


async def test_a_broker_without_results_is_sent_every_message() -> None:
    from taskiq.result_backends.dummy import DummyResultBackend

    broker = CountingBroker()
    broker.result_backend = DummyResultBackend()  # type: ignore[assignment] # what a broker has before it is given one
    broker.add_middlewares(CacheMiddleware(PlainCache()))

    @broker.task(cache_ttl=60)
    async def work() -> int:
        return 1

    for sent in (1, 2):
        await work.kiq()
        await broker.wait_all()
        assert broker.sent == sent
    await broker.shutdown()


async def test_a_message_whose_answer_cannot_be_stored_is_sent(
    answering: CountingBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    @answering.task(cache_ttl=60)
    async def work(x: int) -> int:
        return x

    await result_of(await work.kiq(1))
    store = answering.result_backend.set_result
    failures = [OSError("full")]

    async def set_result(task_id: str, result: TaskiqResult[Any]) -> None:
        if failures:
            raise failures.pop()
        await store(task_id, result)

    monkeypatch.setattr(answering.result_backend, "set_result", set_result)
    assert (await result_of(await work.kiq(1))).return_value == 1
    assert answering.sent == 2


async def test_a_message_that_another_middleware_stops_answers_nobody(answering: CountingBroker) -> None:
    class Stopping(TaskiqMiddleware):
        def pre_send(self, message: TaskiqMessage) -> TaskiqMessage:
            if "stop" in message.labels:
                raise RuntimeError("stopped")
            return message

    answering.add_middlewares(Stopping())

    @answering.task(cache_ttl=60)
    async def work(x: int) -> int:
        return x

    await result_of(await work.kiq(1))
    with pytest.raises(RuntimeError, match="stopped"):
        await work.kicker().with_labels(stop=True).kiq(1)
    assert (await result_of(await work.kiq(2))).return_value == 2
    assert answering.sent == 2


async def test_what_follows_a_result_by_a_label_of_others_follows_a_hit_too(answering: CountingBroker) -> None:
    followed: list[Any] = []

    class Pipeline(TaskiqMiddleware):
        def post_save(self, message: TaskiqMessage, result: TaskiqResult[Any]) -> None:
            if "next_step" in message.labels:
                followed.append(result.return_value)

    answering.add_middlewares(Pipeline())

    @answering.task(cache_ttl=60)
    async def work(x: int) -> int:
        return 2 * x

    for _ in range(2):
        await result_of(await work.kicker().with_labels(next_step="another", cache_ttl=30).kiq(1))
    await await_until("both results are followed", lambda: followed == [2, 2])
    assert (await result_of(await work.kicker().with_labels(cache_ttl=30).kiq(1))).return_value == 2
    assert answering.sent == 2, "a plain call is answered where it is sent"


async def test_a_shared_task_is_invalidated_in_its_default_brokers_cache(broker: CountingBroker) -> None:
    @async_shared_broker.task(cache_ttl=60)
    async def shared(x: int) -> int:
        return x

    async_shared_broker.default_broker(broker)
    try:
        await result_of(await shared.kiq(1))
        assert "cache_hit" in (await result_of(await shared.kiq(1))).labels
        assert await invalidate(shared, 1) is True
    finally:
        async_shared_broker.global_task_registry.pop(shared.task_name)
        async_shared_broker._default_broker = None


async def test_a_retry_is_not_served_the_error_that_it_is_the_retry_of() -> None:
    broker = CountingBroker()
    broker.add_middlewares(
        SimpleRetryMiddleware(default_retry_count=3, no_result_on_retry=False), CacheMiddleware(InMemoryCacheAdapter())
    )
    ran = []

    @broker.task(cache_ttl=60, cache_errors=True, retry_on_error=True)
    async def work() -> int:
        ran.append(1)
        if len(ran) == 1:
            raise ValueError
        return 1

    await work.kiq()
    await await_until("the retry has run", lambda: len(ran) == 2)
    await broker.wait_all()
    await broker.shutdown()
