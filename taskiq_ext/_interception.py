"""Choosing what runs for one message, on the receiver as it is.

The receiver awaits every ``pre_execute``, then reads ``task.original_func`` and runs it. Both happen in one asyncio
task, so a :class:`Plan` that a middleware leaves in a context variable can decide what that read returns. Outside of
the moment between the two, ``original_func`` is the user's function, for everyone.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import os
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, TypeAlias
from weakref import WeakKeyDictionary

from taskiq.decor import AsyncTaskiqDecoratedTask

from slotline._checks import of_task
from taskiq_ext._tether import AtWork, Tethered

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from taskiq.abc.broker import AsyncBroker
    from taskiq.abc.middleware import TaskiqMiddleware
    from taskiq.kicker import AsyncKicker
    from taskiq.message import TaskiqMessage

    from slotline.pools import Limit, Slot
    from taskiq_ext._guard import Guard

AnyTask: TypeAlias = AsyncTaskiqDecoratedTask[Any, Any]
Function: TypeAlias = "Callable[..., Any]"
RegistrationCheck: TypeAlias = "Callable[[Function, Mapping[str, Any]], None]"

_HINTS = ("__annotate__" if "__annotate__" in functools.WRAPPER_ASSIGNMENTS else "__annotations__",)
_is_coroutine_function = functools.lru_cache(maxsize=4096)(inspect.iscoroutinefunction)
_plan: ContextVar[Plan | None] = ContextVar("slotline_taskiq_plan", default=None)
_checks: WeakKeyDictionary[AsyncBroker, list[RegistrationCheck]] = WeakKeyDictionary()


class Plan:
    """What is to happen to one message.

    Attributes:
        task: The task that the message names.
        real: The user's function.
        home: The asyncio task in which the message is handled.
        slot: The slot that the message's run holds, if it needs one.
        pool: Where that is to be given back, if it has not been; from_room: it has come from there with the message.
        outcome: Stands in for the function altogether: a cached value, an error.
        runner: Runs the function elsewhere; an ``outcome`` comes before it.
        guard: Can end the run, where :attr:`can_be_ended`.
        at_work: Knows whether a thread is at the run, where one may be.
        killable: Whether what the ``runner`` runs ends when it is cancelled.
        hit: The ``outcome`` is the function's own, of an earlier run.
        runs_later: Nothing runs for this copy of the message, and nothing of it may become a result.
    """

    slot: Slot | None = None
    pool: Limit[Any] | None = None
    outcome: Function | None = None
    runner: Function | None = None
    guard: Guard | None = None
    at_work: AtWork | None = None
    settled = hit = killable = runs_later = from_room = False

    def __init__(self, task: AnyTask, message_id: str, opener: TaskiqMiddleware, outer: Plan | None) -> None:
        self.task = task
        self.real = function_of(task)
        self.message_id = message_id
        self._opener = opener
        self.home = asyncio.current_task()
        # A message that is handled within the handling of another (InMemoryBroker(await_inplace=True)) gives the
        # context back; a context that was merely inherited belongs to nobody, and must not pile up.
        self._parent = outer if outer is not None and outer.home is self.home else None
        self._seen: set[TaskiqMiddleware] = {opener}
        self._cleanups: dict[TaskiqMiddleware, Callable[[Plan], None]] = {}

    @property
    def name(self) -> str:
        """The message, for people."""
        return f"Task {self.task.task_name} with id {self.message_id}"

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The event loop in which the message is handled."""
        assert self.home is not None  # noqa: S101 - the receiver handles a message in a task of its own
        return self.home.get_loop()

    @property
    def outer(self) -> Plan | None:
        """The plan of the message within whose handling this one is handled."""
        return self._parent

    @property
    def ends_without_a_run(self) -> bool:
        """Whether the message is to end with its ``outcome``, and has not yet."""
        return self.outcome is not None and not self.settled

    @property
    def function(self) -> Function:
        """What the receiver is given to run."""
        real, guard = self.real, self.guard
        if self.settled:
            return real
        function = self.runner or real
        if self.outcome is not None or self.slot is None:
            return self.outcome or function
        if guard is not None and (self.can_be_ended or guard.error):
            return _guarded(real) if self.runner is None else self._standing_in(functools.partial(guard.run, function))
        if self.runner is not None or _is_coroutine_function(function):
            return function
        return self.in_a_thread()

    def in_a_thread(self) -> Function:
        """Return the user's function for a thread, which nothing ends: it has the message's slot until it is done."""
        self.at_work = self.at_work or AtWork()
        return Tethered(self.real, os.getpid(), self.at_work)

    @property
    def can_be_ended(self) -> bool:
        """Whether cancelling the run ends it: a plain function runs on in its thread."""
        return self.killable if self.runner is not None else _is_coroutine_function(self.real)

    def serve(self, answer: Callable[[], Awaitable[Any]]) -> None:
        """Let the message end with what ``answer()`` returns or raises; the function does not run."""
        self.outcome = self._standing_in(lambda _args, _kwargs: answer())

    def serve_value(self, value: Any) -> None:
        """Let the message end with ``value``; the function does not run."""

        async def answer() -> Any:
            return value

        self.serve(answer)

    def fail(self, error: BaseException) -> None:
        """Let the message end with ``error``; the function does not run."""

        async def answer() -> Any:
            raise error

        self.serve(answer)

    def run_through(
        self, run: Callable[[tuple[Any, ...], dict[str, Any]], Awaitable[Any]], *, killable: bool = False
    ) -> None:
        """Let ``run(args, kwargs)`` run the function, in the worker's event loop."""
        self.runner, self.killable = self._standing_in(run), killable

    def _standing_in(self, run: Callable[[tuple[Any, ...], dict[str, Any]], Awaitable[Any]]) -> Function:
        async def stand_in(*args: Any, **kwargs: Any) -> Any:
            self.settled = True
            return await run(args, kwargs)

        return _looking_like(self.real, stand_in)

    def acknowledge_when_saved(self, message: TaskiqMessage) -> None:
        """If ``message`` is to end with an ``outcome``, have it acknowledged where only its function would do so.

        The receiver reads the label before it runs anything. It is taken back then: no retry must inherit it.
        """
        outcome = self.outcome
        if outcome is None:
            return
        labels = message.labels
        said = labels.get("ack_type")
        if said not in (None, "manual"):  # without the label, it may be what the worker was told for all messages
            return

        def end(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Awaitable[Any]:
            if said is None:
                del labels["ack_type"]
            else:
                labels["ack_type"] = said
            ended: Awaitable[Any] = outcome(*args, **kwargs)
            return ended

        labels["ack_type"] = "when_saved"
        self.outcome = self._standing_in(end)

    def hold(self, holder: TaskiqMiddleware, cleanup: Callable[[Plan], None]) -> None:
        """Call ``cleanup(plan)`` should the message's processing end without :meth:`let_go`.

        Another middleware's exception, or a cancellation, can end it before this one's ``post_execute``.
        """
        if not self._cleanups and self.home is not None:
            self.home.add_done_callback(self._abandoned)
        self._cleanups[holder] = cleanup

    def let_go(self, holder: TaskiqMiddleware) -> None:
        """Take the cleanup of ``holder`` back."""
        if self._cleanups.pop(holder, None) is not None and not self._cleanups and self.home is not None:
            self.home.remove_done_callback(self._abandoned)

    def _abandoned(self, _home: asyncio.Task[Any]) -> None:
        while self._cleanups:
            self._cleanups.popitem()[1](self)

    def close(self, middleware: TaskiqMiddleware) -> None:
        """End the plan if ``middleware``, whose ``post_execute`` comes last, has opened it."""
        if self._opener is middleware:
            self.settled = True
            _plan.set(self._parent)

    def joined_by(self, middleware: TaskiqMiddleware, message: TaskiqMessage) -> bool:
        """Whether this plan is for ``message``: one middleware sees a message only once, a retry of it anew."""
        if self.settled or self.message_id != message.task_id or middleware in self._seen:
            return False
        self._seen.add(middleware)
        return True

    def belongs_to(self, middleware: TaskiqMiddleware, message: TaskiqMessage) -> bool:
        """Whether ``middleware`` took part in this plan, for ``message``."""
        return self.message_id == message.task_id and middleware in self._seen


def function_of(task: AnyTask) -> Function:
    """Return the user's function, whatever is to run for the message that this asyncio task works on."""
    function: Function = task.__dict__["original_func"]
    return function


def _looking_like(real: Function, stand_in: Function) -> Function:
    # A receiver that meets the task for the first time reads signature, hints and dependencies off what it runs.
    return functools.update_wrapper(stand_in, real, _HINTS, ())


@functools.lru_cache(maxsize=4096)
def _guarded(real: Function) -> Function:
    """Return what runs ``real`` so that the guard of its message's plan can end it."""

    async def guarded(*args: Any, **kwargs: Any) -> Any:
        plan = _plan.get()
        while plan is not None and plan.real is not real:
            plan = plan.outer  # of a message that was handled on the way here, and was broken off
        assert plan is not None and plan.guard is not None  # noqa: S101, PT018 - it has said that this is to run
        plan.settled = True
        return await plan.guard.run(real, args, kwargs)

    return _looking_like(real, guarded)


current_plan = _plan.get
"""Return the plan of the message that this asyncio task, or a thread that runs for it, works on."""


def plan_for(middleware: TaskiqMiddleware, task: AnyTask, message: TaskiqMessage) -> Plan:
    """Return the plan of ``message``, which ``pre_execute`` of another middleware may have opened."""
    plan = _plan.get()
    if plan is None or not plan.joined_by(middleware, message):
        intercept(task)
        plan = Plan(task, message.task_id, middleware, plan)
        _plan.set(plan)
    return plan


def plan_of(middleware: TaskiqMiddleware, message: TaskiqMessage) -> Plan | None:
    """Return the plan that ``middleware`` has made for ``message``, in its ``post_execute``."""
    plan = _plan.get()
    while plan is not None and not plan.belongs_to(middleware, message):
        plan = plan.outer
    return plan


class InterceptedTask(AsyncTaskiqDecoratedTask[Any, Any]):
    """Gives a task class the ``original_func`` that looks at the plan, and checks labels before a task exists."""

    def __init__(
        self, broker: AsyncBroker, task_name: str, original_func: Function, labels: dict[str, Any], **rest: Any
    ) -> None:
        with of_task(task_name):
            for check in _checks.get(broker, ()):
                check(original_func, labels)
        super().__init__(broker=broker, task_name=task_name, original_func=original_func, labels=labels, **rest)

    @property
    def original_func(self) -> Function:
        plan = _plan.get()
        if plan is not None and plan.task is self:
            return plan.function
        return function_of(self)

    @original_func.setter
    def original_func(self, function: Function) -> None:
        self.__dict__["original_func"] = function

    def __reduce_ex__(self, _protocol: object) -> tuple[Any, ...]:
        return _restored, (type(self).__bases__[1], self.__dict__)


def _restored(task_class: type[AnyTask], state: dict[str, Any]) -> AnyTask:
    task = task_class.__new__(task_class)
    task.__dict__.update(state)
    return task


class _LendingTask(InterceptedTask):
    """For shared tasks, and all tasks of Taskiq 0.12, which lend a kicker the task's own labels to change."""

    def kicker(self) -> AsyncKicker[Any, Any]:
        kicker = super().kicker()
        kicker.labels = dict(kicker.labels)
        return kicker


_classes: dict[type[AnyTask], type[AnyTask]] = {}


def intercepted_class(task_class: type[AnyTask]) -> type[AnyTask]:
    """Return ``task_class`` with :class:`InterceptedTask` in front; it keeps its name and module."""
    if issubclass(task_class, InterceptedTask):
        return task_class
    known = _classes.get(task_class)
    if known is not None:
        return known
    names = {
        "__module__": task_class.__module__,
        "__qualname__": task_class.__qualname__,
        "__doc__": task_class.__doc__,
    }
    front = InterceptedTask if "copy" in task_class.kicker.__code__.co_names else _LendingTask
    return _classes.setdefault(task_class, type(task_class.__name__, (front, task_class), names))


def intercept(task: AnyTask) -> None:
    """Let the plan of a message decide what ``task.original_func`` is, from now on."""
    if not isinstance(task, InterceptedTask):
        task.__class__ = intercepted_class(type(task))


def check_registrations(broker: AsyncBroker, check: RegistrationCheck) -> None:
    """Call ``check(function, labels)`` for each task that ``broker`` knows, and for each before it is registered."""
    for task in broker.get_all_tasks().values():
        with of_task(task.task_name):
            check(task.original_func, task.labels)
        intercept(task)
    _checks.setdefault(broker, []).append(check)
    broker.decorator_class = intercepted_class(broker.decorator_class)
