"""The threads of one process executor, each with a worker process of its own.

``ProcessPoolExecutor`` lets its workers share two pipes. So one that dies takes the work of all others with it, and so
does a result that cannot be rebuilt; one that leaves a forked copy of itself behind is never missed, and one that is
killed while it sends a long result blocks the rest for good. Here what happens to one worker is no other's business.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import util
from typing import Any

from slotline.leases._worker_process import NotBegunError, WorkerProcess
from slotline.leases._worker_threads import WorkerThreads, serve
from slotline.metrics import _telling

_here = threading.local()
_BEFORE_CHILDREN_ARE_JOINED = 10
_TRIES = 3


def in_own_process(fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    """Run a call in the worker process of the calling thread, which is one of :class:`ProcessThreads`."""
    seat: _Seat = _here.seat
    return seat.call(fn, args, kwargs)


class ProcessThreads(WorkerThreads):
    """Runs calls, which report their own outcome, in threads that have a worker process each.

    Args:
        most: How many threads there may be.
        prefix: First part of their names.
        start: Starts a worker process.
        most_calls: How many calls a process gets before it is replaced; ``None``: any number.
    """

    def __init__(self, most: int, prefix: str, start: Callable[[], WorkerProcess], most_calls: int | None) -> None:
        super().__init__(most, prefix)
        self.start, self.most_calls = start, most_calls
        self.closed = self.killed = False
        self._seats: list[_Seat] = []
        # A child of multiprocessing, as Taskiq's workers are, runs no atexit functions, and joins its children.
        util.Finalize(self, _finish, (weakref.ref(self),), exitpriority=_BEFORE_CHILDREN_ARE_JOINED)

    def kill(self) -> None:
        """End the processes by force and return when they are dead; calls that come later fail."""
        self.killed = True
        for seat in self._seats:
            seat.kill()
        self.shutdown(wait=False)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:  # noqa: FBT001, FBT002 - the signature of Executor
        """End the threads and their processes when they have done what they were given."""
        self.closed = True
        super().shutdown(wait=wait, cancel_futures=cancel_futures)

    def forget(self) -> None:
        """Drop the copies of what belongs to the process that this one was forked from."""
        for seat in self._seats:
            if seat.process is not None:
                seat.process.forget()

    def _main(self) -> Callable[[], object]:
        return self._serve

    def _serve(self) -> None:
        _here.seat = seat = _Seat(self)
        self._seats.append(seat)
        seat.prepare()
        serve(self._calls, seat.look_after)
        seat.leave()


class _Seat:
    """A thread's place for a process."""

    def __init__(self, crew: ProcessThreads) -> None:
        self._crew, self._lock = crew, threading.Lock()
        self._failure: Exception | None = None
        self.process: WorkerProcess | None = None

    def prepare(self) -> None:
        """Have a process ready for the next call; if there is none to be had, that call will try again."""
        self._failure = None
        try:
            with self._lock:
                self.process = None if self._crew.killed else self._crew.start()
            if self.process is not None:
                self.process.begin()
        except BrokenProcessPool as error:
            self.process, self._failure = None, error
        except Exception as error:  # noqa: BLE001 - whatever keeps a process from starting
            self._failure = BrokenProcessPool(f"A worker process could not be started: {type(error).__name__}: {error}")

    def call(self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run a call in the process; in another one, if that dies before it has taken the call."""
        for _ in range(_TRIES - 1):
            try:
                return self._ready_process().call(fn, args, kwargs)
            except NotBegunError:
                self.leave()
        return self._ready_process().call(fn, args, kwargs)

    def _ready_process(self) -> WorkerProcess:
        if self.process is not None and self.process.has_ended():
            self.leave()  # it died while it had nothing to do
        if self.process is None:
            self.prepare()
        if self.process is None:
            raise self._failure or BrokenProcessPool("The executor was killed.")
        return self.process

    def look_after(self) -> None:
        """Replace the process after a call if need be."""
        process, most = self.process, self._crew.most_calls
        if process is not None and process.usable and (most is None or process.calls < most):
            return
        self.leave()
        if not self._crew.closed:  # else not before somebody needs it
            self.prepare()

    def kill(self) -> None:
        """Kill the process, wherever its thread is."""
        with self._lock:
            process = self.process
        if process is not None:
            if (observer := _telling.observer) is not None:
                observer.killed("revoked")
            process.kill()

    def leave(self) -> None:
        """End the process, in the seat's thread."""
        process, self.process = self.process, None
        if process is not None:
            process.end()


def _finish(crew: weakref.ref[ProcessThreads]) -> None:
    executor = crew()
    if executor is not None:
        executor.shutdown(wait=True)
