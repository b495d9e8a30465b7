"""One piece of work on a lease: who may decide its fate, and where its outcome goes.

Worker, canceller and revoker may reach a job at the same instant. The first of them to claim it decides; the others
leave it alone.
"""

from __future__ import annotations

import asyncio
import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import CancelledError, Executor, Future
from typing import TYPE_CHECKING, Any

from slotline.errors import LeaseExpiredError, WorkExitedError
from slotline.leases._mailbox import Mailbox

if TYPE_CHECKING:
    from slotline.leases._grants import Grant


class Sink(ABC):
    """Where a job's outcome goes.

    Attributes:
        brief: Whether handing an outcome over runs nobody's code and blocks nobody, so that any thread may do it.
    """

    __slots__ = ()
    brief = False

    @property
    def label(self) -> str | None:
        """Whom the outcome is for, if that is known."""
        return None

    @abstractmethod
    def starting(self) -> bool:
        """The job is about to run; ``False`` if nobody wants its outcome any more."""

    @abstractmethod
    def resolve(self, value: Any, error: BaseException | None) -> None:
        """Hand over the outcome, in any thread."""


class LoopSink(Sink):
    """A future of an event loop."""

    __slots__ = ("future", "mailbox")
    brief = True

    def __init__(self, future: asyncio.Future[Any], mailbox: Mailbox) -> None:
        self.future, self.mailbox = future, mailbox

    def starting(self) -> bool:
        return not self.future.done()

    def resolve(self, value: Any, error: BaseException | None) -> None:
        self.mailbox.post(self.future, value, error)


class LeaseFuture(Future[Any], Sink):
    """What ``lease.executor.submit`` returns: cancelling it takes the job out of the lease's queue."""

    job: Job

    def starting(self) -> bool:
        return self.set_running_or_notify_cancel()

    def resolve(self, value: Any, error: BaseException | None) -> None:
        if isinstance(error, CancelledError):
            super().cancel()
            self.set_running_or_notify_cancel()
        elif error is not None:
            self.set_exception(error)
        else:
            self.set_result(value)

    def cancel(self) -> bool:
        if self.cancelled():
            return True
        return self.job.cancel()

    def running(self) -> bool:
        return not self.done() and self.job.started()


class Job(ABC):
    """One call of a user's function on a lease."""

    __slots__ = ("_claim", "args", "fn", "grant", "kwargs", "sink", "verdict")

    def __init__(
        self, grant: Grant, sink: Sink, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> None:
        self.grant, self.sink, self.fn, self.args, self.kwargs = grant, sink, fn, args, kwargs
        self._claim = threading.Lock()  # held for good by the first that decides the job's fate
        self.verdict: LeaseExpiredError | None = None  # set before its worker is killed: what its owner will be told

    @abstractmethod
    def started(self) -> bool:
        """Whether a worker has taken it up."""

    @abstractmethod
    def cancel(self) -> bool:
        """Take it out of the queue; ``False`` if a worker has it or it is done."""

    @abstractmethod
    def fail_waiting(self, error: LeaseExpiredError) -> bool:
        """Have it fail with ``error`` unless a worker has it; ``True`` if it did."""

    def fail(self, error: LeaseExpiredError) -> None:
        """Have it fail with ``error`` unless its fate is decided."""
        if self._claim.acquire(blocking=False):
            self.sink.resolve(None, error)

    @property
    def name(self) -> str:
        """What messages call the work."""
        name = str(getattr(self.fn, "__qualname__", None) or repr(self.fn))
        return f"{name} for {self.sink.label!r}" if self.sink.label else name

    def done(self) -> None:
        """Tell the lease that this job occupies it no longer."""
        self.grant.core.job_done(self.grant, self)


class LocalJob(Job):
    """A job for threads of this process.

    Args:
        run: Calls what it is given, in a context of its own or in the process that belongs to the thread.
    """

    __slots__ = ("_run", "_running")

    def __init__(
        self,
        grant: Grant,
        sink: Sink,
        fn: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        run: Callable[..., Any],
    ) -> None:
        super().__init__(grant, sink, fn, args, kwargs)
        self._run = run
        self._running = False

    def __call__(self) -> None:
        if not self._claim.acquire(blocking=False):
            return
        self._running = True
        if not self.sink.starting():
            self.done()
            return
        value, error = None, None
        try:
            value = self._run(self.fn, *self.args, **self.kwargs)
        except BaseException as caught:  # noqa: BLE001 - whatever it is belongs to the caller
            error = self.verdict or contained(caught)
        self.done()  # before the outcome is out: whoever then releases the lease finds it idle
        self.sink.resolve(value, error)
        error = None  # its traceback holds this frame

    def started(self) -> bool:
        return self._running

    def cancel(self) -> bool:
        if not self._claim.acquire(blocking=False):
            return False
        self.done()
        self.sink.resolve(None, CancelledError())
        return True

    def fail_waiting(self, error: LeaseExpiredError) -> bool:
        if not self._claim.acquire(blocking=False):
            return False
        self.sink.resolve(None, error)
        return True


class RemoteJob(Job):
    """A job for another process or interpreter: the executor's own future reports its outcome."""

    __slots__ = ("executor", "inner", "limits")

    def __init__(
        self, grant: Grant, sink: Sink, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> None:
        super().__init__(grant, sink, fn, args, kwargs)
        self.inner: Future[Any] | None = None
        self.executor: Executor | None = None
        self.limits: dict[str, float | None] | None = None

    @property
    def brief(self) -> bool:
        """What an executor asks whose thread must not be held up: see :class:`Sink`."""
        return self.sink.brief

    def enter(self, executor: Executor) -> None:
        """Stand in an executor's queue."""
        self.executor = executor
        submit = executor.submit if self.limits is None else _limited(executor, self.limits).submit
        self.inner = submit(self.fn, *self.args, **self.kwargs)

    def watch(self) -> None:
        """Follow the executor's future; called without any lock, since it may report at once."""
        if self.inner is not None:
            self.inner.add_done_callback(self._report)

    def _report(self, inner: Future[Any]) -> None:
        error: BaseException | None = CancelledError() if inner.cancelled() else inner.exception()
        if isinstance(error, self.grant.core.backend.broken_by):
            # Only noted: an executor calls this under its own lock, so it cannot be shut down from here.
            self.grant.place.broken = self.executor
        if self.verdict is not None and error is not None:
            return  # the revoker says what happened, once the work is dead
        if not self._claim.acquire(blocking=False):
            return
        self.done()
        self.sink.resolve(None if error else inner.result(), contained(error))

    def started(self) -> bool:
        return self.inner is not None and (self.inner.running() or self.inner.done())

    def cancel(self) -> bool:
        return self.inner is not None and self.inner.cancel()

    def fail_waiting(self, error: LeaseExpiredError) -> bool:
        self.verdict = error
        if self.inner is not None and not self.inner.cancel():
            self.verdict = None
            return False
        self.fail(error)
        return True


def work_through(line: deque[LocalJob]) -> None:
    """Run the jobs of a shared line until none is left, in a worker thread."""
    while True:
        try:
            job = line.popleft()
        except IndexError:
            return
        job()


def _limited(executor: Any, limits: dict[str, float | None]) -> Executor:
    limited: Executor = executor.options(**limits)
    return limited


def contained(error: BaseException | None) -> BaseException | None:
    """Return ``error``, or a :class:`WorkExitedError` where it would end the caller's loop or thread."""
    if error is None or isinstance(error, Exception):
        return error
    wrapped = WorkExitedError(type(error).__name__, str(error))
    wrapped.__cause__ = error
    return wrapped
