"""What runs for a message is chosen without anything else about the task changing."""

from __future__ import annotations

import asyncio
import copy
import inspect
import pickle
from collections.abc import AsyncIterator
from typing import Annotated, Any

import pytest
from taskiq import Context, InMemoryBroker, TaskiqDepends, TaskiqMessage, TaskiqMiddleware, TaskiqResult
from taskiq.brokers.shared_broker import async_shared_broker
from taskiq.decor import AsyncTaskiqDecoratedTask
from taskiq.kicker import AsyncKicker
from taskiq.receiver import Receiver

from slotline.errors import UnsupportedFrameworkError
from taskiq_ext import PoolLimitMiddleware
from taskiq_ext._interception import current_plan, intercepted_class, plan_for
from taskiq_ext._support import assert_supported


class Answering(TaskiqMiddleware):
    """Answers every message of a task with the label ``answer`` by itself."""

    def pre_execute(self, message: TaskiqMessage) -> TaskiqMessage:
        task = self.broker.find_task(message.task_name)
        assert task is not None
        if "answer" in message.labels:
            plan = plan_for(self, task, message)

            async def answer() -> Any:
                return message.labels["answer"]

            plan.serve(answer)
        return message


@pytest.fixture
async def broker() -> AsyncIterator[InMemoryBroker]:
    broker = InMemoryBroker().with_middlewares(Answering())
    yield broker
    await broker.shutdown()


async def result_of(task: Any, *args: Any, labels: dict[str, Any] | None = None, **kwargs: Any) -> TaskiqResult[Any]:
    kicker: AsyncKicker[Any, Any] = AsyncKicker(task.task_name, task.broker, {**task.labels, **(labels or {})})
    sent = await kicker.kiq(*args, **kwargs)
    return await sent.wait_result(check_interval=0.01, timeout=20)


async def test_a_message_is_answered_without_running_the_function(broker: InMemoryBroker) -> None:
    ran = []

    @broker.task
    async def work(x: int) -> int:
        ran.append(x)
        return x

    assert (await result_of(work, 1, labels={"answer": 7})).return_value == 7
    assert ran == []
    assert (await result_of(work, 2)).return_value == 2
    assert ran == [2]


async def test_a_sync_task_is_answered_too(broker: InMemoryBroker) -> None:
    @broker.task
    def work(x: int) -> int:
        return x

    assert (await result_of(work, 1, labels={"answer": 7})).return_value == 7
    assert (await result_of(work, 2)).return_value == 2


async def test_a_task_first_seen_with_an_answer_keeps_its_signature_and_dependencies(broker: InMemoryBroker) -> None:
    @broker.task
    async def late(
        x: int, base: Annotated[int, TaskiqDepends(number)], context: Annotated[Context, TaskiqDepends()]
    ) -> Any:
        return x + base, context.message.task_name

    assert (await result_of(late, "2", labels={"answer": 7})).return_value == 7
    name = late.task_name
    assert (await result_of(late, "2")).return_value == (42, name)


async def test_a_shared_task_is_answered(broker: InMemoryBroker) -> None:
    @async_shared_broker.task
    async def shared(x: int) -> int:
        return x

    try:
        sent = await shared.kicker().with_broker(broker).with_labels(answer=7).kiq(1)
        assert (await sent.wait_result(check_interval=0.01)).return_value == 7
        assert await shared(3) == 3
    finally:
        async_shared_broker.global_task_registry.pop(shared.task_name)


async def test_a_direct_call_of_the_same_task_inside_its_run_is_the_function(broker: InMemoryBroker) -> None:
    class Elsewhere(TaskiqMiddleware):
        def pre_execute(self, message: TaskiqMessage) -> TaskiqMessage:
            task = self.broker.find_task(message.task_name)
            assert task is not None
            plan = plan_for(self, task, message)
            real = task.__dict__["original_func"]

            async def run(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
                return ("elsewhere", await real(*args, **kwargs))

            plan.run_through(run)
            return message

    broker.add_middlewares(Elsewhere())

    @broker.task
    async def countdown(n: int) -> Any:
        return n if n == 0 else await countdown(n - 1)

    assert (await result_of(countdown, 3)).return_value == ("elsewhere", 0)


async def test_messages_handled_within_the_sending_of_another_do_not_disturb_it() -> None:
    broker = InMemoryBroker(await_inplace=True).with_middlewares(Answering())

    @broker.task
    async def inner(x: int) -> int:
        return x

    @broker.task
    async def outer() -> Any:
        second = await (await inner.kiq(2)).get_result()
        first = await (await inner.kicker().with_labels(answer="no").kiq(1)).get_result()
        return first.return_value, second.return_value, await inner(3)

    sent = await outer.kiq()
    assert (await sent.get_result()).return_value == ("no", 2, 3)
    await broker.shutdown()


async def test_a_chain_of_messages_that_send_messages_does_not_pile_up_plans(broker: InMemoryBroker) -> None:
    done = asyncio.Event()
    depths = []

    class Planning(TaskiqMiddleware):
        def pre_execute(self, message: TaskiqMessage) -> TaskiqMessage:
            task = self.broker.find_task(message.task_name)
            assert task is not None
            plan = plan_for(self, task, message)
            depth = 0
            outer = plan.outer
            while outer is not None:
                depth, outer = depth + 1, outer.outer
            depths.append(depth)
            return message

    broker.add_middlewares(Planning())

    @broker.task
    async def again(n: int) -> None:
        if n == 0:
            done.set()
        else:
            await again.kiq(n - 1)

    await again.kiq(5)
    await asyncio.wait_for(done.wait(), 20)
    assert depths == [0] * 6


async def test_what_a_plan_holds_is_cleaned_up_when_another_middleware_breaks_the_message() -> None:
    cleaned = asyncio.Event()

    class Holding(TaskiqMiddleware):
        def pre_execute(self, message: TaskiqMessage) -> TaskiqMessage:
            task = self.broker.find_task(message.task_name)
            assert task is not None
            plan_for(self, task, message).hold(self, lambda _: cleaned.set())
            return message

    class Broken(TaskiqMiddleware):
        def pre_execute(self, message: TaskiqMessage) -> TaskiqMessage:
            raise RuntimeError("broken middleware")

    broker = InMemoryBroker().with_middlewares(Holding(), Broken())

    @broker.task
    async def work() -> None: ...

    await work.kiq()
    with pytest.raises(RuntimeError, match="broken middleware"):
        await broker.wait_all()
    await asyncio.wait_for(cleaned.wait(), 20)
    await broker.shutdown()


async def test_the_context_outside_of_messages_has_no_plan(broker: InMemoryBroker) -> None:
    @broker.task
    async def work() -> None: ...

    await result_of(work, labels={"answer": 1})
    assert current_plan() is None


def test_an_intercepted_task_can_be_pickled_and_copied_as_its_own_class() -> None:
    broker = InMemoryBroker()
    task = broker.register_task(plain_function, task_name="plain")
    task.__class__ = intercepted_class(type(task))
    task.broker = None  # type: ignore[assignment] # brokers themselves do not pickle
    restored = pickle.loads(pickle.dumps(task))
    assert type(restored) is AsyncTaskiqDecoratedTask
    assert restored.original_func is task.original_func
    assert restored.task_name == "plain"
    assert copy.copy(task).task_name == "plain"
    broker.executor.shutdown()


async def number() -> int:
    return 40


def plain_function(x: int) -> int:
    return x


async def test_interception_keeps_the_functions_face() -> None:
    broker = InMemoryBroker()
    broker.add_middlewares(PoolLimitMiddleware())

    @broker.task(pool="a", pool_size=1)
    async def documented(x: int, *, y: str = "a") -> str:
        """Say something."""
        return y * x

    assert isinstance(documented, AsyncTaskiqDecoratedTask)
    assert documented.__doc__ == "Say something."
    assert str(inspect.signature(documented)) == "(x: 'int', *, y: 'str' = 'a') -> 'str'"
    assert await documented(2, y="b") == "bb"
    await broker.shutdown()


def test_an_unsupported_receiver_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    async def callback(self: Receiver, message: bytes, raise_err: bool = False) -> None: ...

    monkeypatch.setattr(Receiver, "callback", callback)
    assert_supported.cache_clear()
    try:
        with pytest.raises(UnsupportedFrameworkError, match=r"taskiq \d.*Receiver.callback"):
            PoolLimitMiddleware().set_broker(InMemoryBroker())
    finally:
        assert_supported.cache_clear()
