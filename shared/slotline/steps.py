"""One source for both faces: a procedure is a generator of steps, driven by a blocking or an awaiting loop.

A procedure that talks to a store, sleeps or waits is written once, as a generator that yields :class:`Step` objects
and returns its result. :func:`run_blocking` drives it for plain threads, :func:`run_awaiting` for coroutines. An
exception out of a step, a cancellation included, is thrown into the generator at its ``yield``, so that ``try`` and
``finally`` work as in straight code. No event loop is ever started for a blocking caller.
"""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import Coroutine, Generator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

if TYPE_CHECKING:
    from slotline.stores.base import Command, Store

T = TypeVar("T")


class Step(ABC):
    """Something that takes time, with a blocking and an awaiting form."""

    __slots__ = ()
    asks = False
    """Whether it may have to wait for a store."""

    @abstractmethod
    def blocking(self) -> Any:
        """Do it in the calling thread."""

    @abstractmethod
    async def awaiting(self) -> Any:
        """Do it in the running event loop."""

    def blocking_until(self, until: float) -> Any:  # noqa: ARG002 - of those that may have to wait for a store
        """Do it in the calling thread, and wait for no store after ``until`` (monotonic).

        Raises:
            TimeoutError: A store has not answered by then.
        """
        return self.blocking()


Steps: TypeAlias = Generator[Step, Any, T]


@dataclass(slots=True)
class Call(Step):
    """Execute one command on a store; the step's result is the store's reply."""

    asks = True
    store: Store
    command: Command

    def blocking(self) -> Any:
        """See :meth:`~slotline.stores.SyncStore.execute`."""
        return self.store.sync.execute(self.command)

    def awaiting(self) -> Coroutine[Any, Any, Any]:
        """See :meth:`~slotline.stores.Store.execute`."""
        return self.store.execute(self.command)

    def blocking_until(self, until: float) -> Any:
        """See :meth:`~slotline.stores.SyncStore.execute_until`."""
        return self.store.sync.execute_until(self.command, until)


@dataclass(slots=True, frozen=True)
class CallMany(Step):
    """Execute independent commands in one round trip; the step's result is the list of replies and errors."""

    asks = True
    store: Store
    commands: Sequence[Command]

    def blocking(self) -> list[Any]:
        """See :meth:`~slotline.stores.SyncStore.execute_many`."""
        return self.store.sync.execute_many(self.commands)

    async def awaiting(self) -> list[Any]:
        """See :meth:`~slotline.stores.Store.execute_many`."""
        return await self.store.execute_many(self.commands)


@dataclass(slots=True, frozen=True)
class InTime(Step):
    """Do ``step``, and wait for the store no longer than ``until`` (monotonic): then it raises ``TimeoutError``."""

    step: Step
    until: float

    def blocking(self) -> Any:
        """Do it in the calling thread."""
        return self.step.blocking_until(self.until)

    async def awaiting(self) -> Any:
        """Do it in the running event loop."""
        async with asyncio.timeout(self.until - time.monotonic()):
            return await self.step.awaiting()


@dataclass(slots=True, frozen=True)
class Sleep(Step):
    """Let ``seconds`` pass."""

    seconds: float

    def blocking(self) -> None:
        """Sleep in the calling thread."""
        time.sleep(self.seconds)

    async def awaiting(self) -> None:
        """Sleep in the running event loop."""
        await asyncio.sleep(self.seconds)


def all_or_error(store: Store, commands: Sequence[Command]) -> Steps[list[Any]]:
    """Execute independent commands in one round trip and return their replies.

    Raises:
        StoreError: One of them failed; the first such error.
    """
    replies: list[Any] = (yield CallMany(store, commands)) if commands else []
    for reply in replies:
        if isinstance(reply, Exception):
            raise reply
    return replies


def in_time(steps: Steps[T], until: float) -> Steps[T]:
    """Take the steps, none of which waits for a store after ``until`` (monotonic): that one raises ``TimeoutError``."""
    try:
        step = next(steps)
        while True:
            try:
                reply = yield InTime(step, until) if step.asks else step
            except BaseException as error:  # noqa: BLE001 - the procedure decides what an exception means
                step = steps.throw(error)
            else:
                step = steps.send(reply)
    except StopIteration as stop:
        result: T = stop.value
        return result


def run_blocking(steps: Steps[T]) -> T:
    """Drive a procedure in the calling thread and return its result."""
    try:
        step = next(steps)
        while True:
            try:
                reply = step.blocking()
            except BaseException as error:  # noqa: BLE001 - the procedure decides what an exception means
                step = steps.throw(error)
            else:
                step = steps.send(reply)
    except StopIteration as stop:
        result: T = stop.value
        return result


@dataclass(slots=True, frozen=True)
class Paused:
    """A procedure was driven up to where it would sleep, for ``seconds``."""

    seconds: float


def run_to_pause(steps: Steps[T]) -> T | Paused:
    """Drive a procedure, from its beginning or from such a pause, in a thread that must not sleep.

    Returns:
        Its result; or a pause, after which this is to be called again, or the procedure closed.
    """
    try:
        step = next(steps)
        while not isinstance(step, Sleep):
            try:
                reply = step.blocking()
            except BaseException as error:  # noqa: BLE001 - the procedure decides what an exception means
                step = steps.throw(error)
            else:
                step = steps.send(reply)
    except StopIteration as stop:
        result: T = stop.value
        return result
    return Paused(step.seconds)


async def run_awaiting(steps: Steps[T]) -> T:
    """Drive a procedure in the running event loop and return its result; cancellation is thrown into it."""
    try:
        step = next(steps)
        while True:
            try:
                reply = await step.awaiting()
            except BaseException as error:  # noqa: BLE001 - the procedure decides what an exception means
                step = steps.throw(error)
            else:
                step = steps.send(reply)
    except StopIteration as stop:
        result: T = stop.value
        return result
