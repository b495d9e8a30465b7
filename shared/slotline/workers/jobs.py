"""A submitted task: a future with the names of both ``concurrent.futures`` and billiard's results."""

from __future__ import annotations

import contextlib
import itertools
import threading
from _thread import RLock
from collections.abc import Callable
from concurrent.futures import CancelledError, Future, InvalidStateError
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from slotline.workers import _billiard, wire
from slotline.workers.options import NO_LIMITS, TaskLimits

if TYPE_CHECKING:
    from slotline.workers.dispatch import Dispatcher
    from slotline.workers.member import Member

_numbers = itertools.count(1)


@dataclass(frozen=True, slots=True)
class Hooks:
    """The callbacks of one task; each runs in the executor's callback thread, in the order of events."""

    callback: Callable[[Any], Any] | None = None
    error_callback: Callable[[BaseException], Any] | None = None
    accept_callback: Callable[[int, float], Any] | None = None
    timeout_callback: Callable[..., Any] | None = None
    propagate: tuple[type[BaseException], ...] = ()


NO_HOOKS = Hooks()

Observer: TypeAlias = "Callable[[ApplyResult], None]"
"""What Slotline itself does when a task is done, in whatever thread; it must not block."""


def _is_brief(callback: Callable[..., Any]) -> bool:
    """Return whether a callback only passes an outcome on to an event loop: asyncio's, or a method of what says so."""
    if getattr(callback, "__module__", None) == "asyncio.futures":
        return True
    return bool(getattr(getattr(callback, "__self__", None), "brief", False))


class _Condition(RLock):  # type: ignore[misc] # the type stubs call it final, which it is not
    """What a future needs of ``threading.Condition``; only one that is waited on becomes as expensive."""

    _full: threading.Condition | None = None

    def wait(self, timeout: float | None = None) -> bool:
        """Wait as ``threading.Condition`` does."""
        if self._full is None:
            self._full = threading.Condition(self)
        return self._full.wait(timeout)

    def notify_all(self) -> None:
        """Wake everybody who waits."""
        if self._full is not None:
            self._full.notify_all()


class ApplyResult(Future[Any]):
    """One task of a :class:`~slotline.workers.BilliardExecutor` and what becomes of it.

    It is a ``concurrent.futures.Future`` and takes part in ``wait`` and ``as_completed``; ``get``, ``wait``, ``ready``,
    ``successful`` and ``terminate`` are the same thing under billiard's names.
    """

    # What most tasks never change is said once for all of them, which makes a task cheaper to make.
    _state = "PENDING"
    _result: Any = None
    _exception: BaseException | None = None
    member: Member | None = None
    """The worker that has it."""
    started_at = 0.0
    """When it was last given to a worker (monotonic)."""
    time_accepted: float | None = None
    verdict: BaseException | None = None
    """What it fails with once its worker, which was killed for it, is gone."""
    observer: Observer | None = None
    outcome_error: BaseException | None = None
    withdrawn = False
    claimed = False
    place: Any = None
    """The semaphore that it holds a place of, until it is done."""
    flags = 0
    index: int | None = None
    """Which part of a map it is."""

    def __init__(
        self,
        dispatcher: Dispatcher,
        payload: wire.Payload,
        limits: TaskLimits,
        hooks: Hooks = NO_HOOKS,
        correlation_id: Any = None,
    ) -> None:
        # Instead of Future.__init__, which takes longer than all the rest.
        self._condition = _Condition()  # type: ignore[assignment] # it has all of Condition that futures use
        self._waiters: list[Any] = []
        self._done_callbacks: list[Any] = []
        self.number = next(_numbers)
        self.dispatcher = dispatcher
        self.payload = payload
        self.size = wire.size_of(payload)
        self.limits = limits
        self.hooks = hooks
        self.correlation_id = correlation_id
        self.simple = hooks is NO_HOOKS and limits is NO_LIMITS and self.size <= wire.SHORT
        """Whether it may wait in a worker's pipe behind a short task: nothing about it depends on when it starts."""

    def __repr__(self) -> str:
        state = "ready" if self.done() else "running" if self.claimed else "queued"
        return f"<{type(self).__name__} {self.number} {state}>"

    # The names of billiard's results.

    def get(self, timeout: float | None = None) -> Any:
        """Return the task's value, waiting for it.

        Args:
            timeout: Seconds to wait; ``None`` waits for ever.

        Raises:
            TimeoutError: it was not there in time (both Python's class and billiard's).
            Exception: what the task raised, with its own type.
        """
        try:
            return self.result(timeout)
        except TimeoutError:
            if self.done():
                return self.result(0)
            raise _billiard.result_timeout()(f"{self!r} was not ready after {timeout} s") from None

    def wait(self, timeout: float | None = None) -> None:
        """Wait until the task is done, at most ``timeout`` seconds."""
        with contextlib.suppress(TimeoutError, CancelledError):
            self.exception(timeout)

    def ready(self) -> bool:
        """Return whether the task is done, in whatever way."""
        return self.done()

    def successful(self) -> bool:
        """Return whether the task returned a value.

        Raises:
            ValueError: it is not done yet.
        """
        if not self.done():
            raise ValueError(f"{self!r} is not ready")
        return not self.cancelled() and self.exception() is None

    def accepted(self) -> bool:
        """Return whether a worker has taken the task."""
        return self.claimed

    def worker_pids(self) -> list[int]:
        """Return the pid of the worker that runs the task, if one does."""
        member = self.member
        return [member.pid] if member is not None and member.pid and not self.done() else []

    def terminate(self, signum: int) -> None:
        """End the task: send ``signum`` to its worker, or take it from the queue; it fails with ``Terminated``.

        Args:
            signum: The signal's number. A task that survives the signal goes on.
        """
        self.dispatcher.terminate_job(self, signum)

    # concurrent.futures

    def cancel(self) -> bool:
        """Cancel the task if no worker has taken it; those who wait for it are told at once."""
        if not super().cancel():
            return False
        self.dispatcher.withdraw(self)
        if self.observer is not None:
            self.observer(self)
        return True

    def result(self, timeout: float | None = None) -> Any:
        """Return the task's value or raise its error, waiting at most ``timeout`` seconds."""
        return super().result(self.dispatcher.attend(self, timeout))

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Return the task's error or ``None``, waiting at most ``timeout`` seconds."""
        return super().exception(self.dispatcher.attend(self, timeout))

    def _invoke_callbacks(self) -> None:
        # A caller's code may take its time, for which nobody who reads answers has any; the callbacks' thread has.
        if not self._done_callbacks:
            return
        if self.dispatcher.in_service() and not all(map(_is_brief, self._done_callbacks)):
            self.dispatcher.courier.put(super()._invoke_callbacks)  # type: ignore[misc] # likewise
        else:
            super()._invoke_callbacks()  # type: ignore[misc] # likewise

    # What the dispatcher does with it.

    def wanted(self) -> bool:
        """Return whether the task still is to run, and let nobody cancel it unless its worker asks before it starts."""
        if self.flags & wire.AWAIT:
            return not self.withdrawn and not self.done()
        return self.claim()

    def claim(self) -> bool:
        """Mark the task as running; ``False`` if it was cancelled or ended before. The dispatcher's lock is held."""
        if self.claimed:
            return not self.done()
        if self.withdrawn or self._state == "FINISHED":
            return False
        if not self.set_running_or_notify_cancel():
            self.withdrawn = True
            return False
        self.claimed = True
        return True

    def settle(self, value: Any, error: BaseException | None) -> None:
        """Resolve the future, then run its callbacks; only the first outcome counts."""
        self.payload = []
        hooks = self.hooks
        if hooks is NO_HOOKS:
            self._resolve(value, error)
        elif hooks.propagate:
            try:
                self._tell(value, error)
            except hooks.propagate as raised:
                value, error = None, raised
            self._resolve(value, error)
        elif self._resolve(value, error):
            self._tell(value, error)

    def _resolve(self, value: Any, error: BaseException | None) -> bool:
        try:
            if error is None:
                self.set_result(value)
            else:
                if not self.done():
                    self.outcome_error = error
                self.set_exception(error)
        except InvalidStateError:
            return False
        if self.observer is not None:
            self.observer(self)
        return True

    def _tell(self, value: Any, error: BaseException | None) -> None:
        if error is None:
            self.call(self.hooks.callback, value)
        else:
            self.call(self.hooks.error_callback, error)

    def call(self, callback: Callable[..., Any] | None, *args: Any, **kwargs: Any) -> None:
        """Run one of the caller's callbacks; only the exceptions it asked to propagate come out."""
        if callback is None:
            return
        try:
            callback(*args, **kwargs)
        except self.hooks.propagate:
            raise
        except Exception:  # noqa: BLE001 - it is the caller's code; it is logged
            self.dispatcher.log_callback_failure(callback)
