"""Wait for a described condition with a deadline; the failure says what was awaited and what was seen last."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")


def wait_until(description: str, predicate: Callable[[], T], timeout: float = 10, interval: float = 0.01) -> T:
    """Call ``predicate`` until it answers something true, and return that answer.

    Args:
        description: The condition in words, for the failure ("the slot is free again").
        predicate: Called at once, then every ``interval``, and once more at the deadline. What it raises is raised.
        timeout: Seconds until the failure.
        interval: Seconds between two calls.

    Raises:
        AssertionError: The condition did not hold in time.
    """
    deadline = time.monotonic() + timeout
    while True:
        last_look = time.monotonic() >= deadline
        value = predicate()
        if value:
            return value
        if last_look:
            raise AssertionError(_failure(description, timeout, value))
        time.sleep(min(interval, max(0.0, deadline - time.monotonic())))


async def await_until(
    description: str,
    predicate: Callable[[], T | Awaitable[T]],
    timeout: float = 10,
    interval: float = 0.01,
) -> T:
    """Do as :func:`wait_until` without blocking the event loop; ``predicate`` may be a coroutine function."""
    deadline = time.monotonic() + timeout
    while True:
        last_look = time.monotonic() >= deadline
        answer = predicate()
        value: T = await answer if inspect.isawaitable(answer) else answer
        if value:
            return value
        if last_look:
            raise AssertionError(_failure(description, timeout, value))
        await asyncio.sleep(min(interval, max(0.0, deadline - time.monotonic())))


def _failure(description: str, timeout: float, value: object) -> str:
    return f"not within {timeout:g} s: {description} (last value {value!r})"
