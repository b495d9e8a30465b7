"""Dependencies that hand a task what it runs on."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from functools import cache
from typing import Annotated, Any

from taskiq import Context, TaskiqDepends

from slotline._checks import optional_seconds, refuse, text
from slotline.leases import ExecutorLease, LeasedExecutorManager
from slotline.pools import Slot
from taskiq_ext._interception import current_plan
from taskiq_ext.executors import ExecutorMiddleware

# Taskiq evaluates the annotations of a dependency, so what they name is imported for good.
_Context = Annotated[Context, TaskiqDepends()]


def current_slot(context: _Context) -> Slot | None:
    """Return the slot that the task's run holds: ``slot: Slot = TaskiqDepends(current_slot)``.

    Its ``fence`` only grows within the pool: hand it to what the pool protects. ``None`` where the run needs no slot.
    """
    plan = current_plan()
    while plan is not None and plan.message_id != context.message.task_id:
        plan = plan.outer
    return None if plan is None else plan.slot


@cache
def executor(name: str) -> Callable[..., LeasedExecutorManager]:
    """Return a dependency that hands a task the manager ``name`` of its broker's ``ExecutorMiddleware``, started.

    Args:
        name: What the middleware calls it.

    Raises:
        InvalidOptionError: The name is no text; when the task runs, the middleware has no such manager.
    """
    text("executor", name)

    def dependency(context: _Context) -> LeasedExecutorManager:
        return _manager(context, name)

    return dependency


@cache
def executor_lease(
    name: str, *, lease_seconds: float | None = None, timeout: float | None = None
) -> Callable[..., AsyncGenerator[ExecutorLease, None]]:
    """Return a dependency that hands a task a lease of the manager ``name`` for as long as the task runs.

    ``lease: ExecutorLease = TaskiqDepends(executor_lease("cpu"))``; the task waits for the lease before it runs, and
    gives it back whatever becomes of it.

    Args:
        name: What the broker's ``ExecutorMiddleware`` calls the manager.
        lease_seconds: Life of the lease; default: the manager's.
        timeout: The longest wait for it, in seconds; default: no limit.

    Raises:
        InvalidOptionError: An argument is impossible; when the task runs, the middleware has no such manager.
    """
    text("executor", name)
    optional_seconds("lease_seconds", lease_seconds)
    optional_seconds("timeout", timeout, zero=True)

    async def dependency(context: _Context) -> AsyncGenerator[ExecutorLease, None]:
        manager = _manager(context, name)
        owner = context.message.task_id
        async with await manager.acquire(lease_seconds=lease_seconds, owner=owner, timeout=timeout) as lease:
            yield lease

    return dependency


def _manager(context: Context, name: str) -> LeasedExecutorManager:
    known: list[Any] = []
    for middleware in context.broker.middlewares:
        if isinstance(middleware, ExecutorMiddleware):
            if name in middleware.managers:
                return middleware.managers.get(name)
            known.extend(middleware.managers)
    raise refuse("executor", name, "one of the managers of an ExecutorMiddleware: " + (", ".join(known) or "none"))
