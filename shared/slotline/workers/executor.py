"""``BilliardExecutor``: a process pool whose tasks can be killed without harm to anything else."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from slotline._gevent import under_gevent
from slotline.errors import UnsupportedBackendError
from slotline.workers import _billiard, lifetime, wire
from slotline.workers.dispatch import Phase, leave
from slotline.workers.errors import ExecutorClosedError, UnpicklableError
from slotline.workers.jobs import NO_HOOKS, ApplyResult, Hooks, Observer
from slotline.workers.management import PoolManagement
from slotline.workers.options import DEFAULT, TaskLimits, check_pool_options
from slotline.workers.places import Places
from slotline.workers.supervisor import Supervisor
from slotline.workers.tasks import TaskMethods
from slotline.workers.view import OptionsView
from slotline.workers.worker import WorkerSpec


class BilliardExecutor(PoolManagement, TaskMethods):
    """A pool of worker processes built on billiard, with limits that act and failures that stay with their task.

    It is a ``concurrent.futures.Executor`` and has the whole interface of billiard's ``Pool``. Every worker has its own
    connection; one thread watches them all. A worker that is killed, crashes or ends itself fails only the task that it
    was running and is replaced; a task that is killed takes its child processes with it; and when the process that owns
    the executor ends, by SIGKILL too, every worker and everything that the tasks started is killed.

    Args:
        processes: How many workers (default: the processors that this process may use).
        initializer: Called in each worker before its first task.
        initargs: The initializer's arguments.
        maxtasksperchild: Tasks after which a worker is replaced; ``None`` never replaces it.
        timeout: Seconds after which a task is killed, unless it has its own.
        soft_timeout: Seconds after which ``SoftTimeLimitExceeded`` is raised inside a task, unless it has its own.
        lost_worker_timeout: Seconds that a dead worker's exit status is waited for before its task fails
            (default 0.05; the status is there within milliseconds unless the machine is in trouble).
        max_restarts: How many workers may end unasked within ``max_restart_freq`` seconds without any taking a task,
            before the executor gives up with ``RestartFreqExceeded``. ``None``: it gives up when ten starts for each
            process have failed in a row.
        max_restart_freq: Seconds over which ``max_restarts`` is counted (default 1).
        on_process_up: Called with the pid when a worker has started; the pid has ``index``, ``name``, ``exitcode``.
        on_process_down: Called with the pid and the exit code when a worker has ended (with the pid alone if that is
            all that it takes).
        on_timeout_set: Called as ``(job, soft_timeout, timeout)`` when a task with a time limit is given to a worker.
        on_timeout_cancel: Called with the job when such a task is done.
        threads: ``False`` starts no threads: whoever waits for a result does the work, or an event loop that watches
            :meth:`fileno` and calls :meth:`handle_result_event`.
        semaphore: What ``waitforslot`` waits on, an object with ``acquire`` and ``release`` (default: one of
            ``processes`` places).
        putlocks: Whether handing in a task waits for a place by default.
        allow_restart: Whether :meth:`restart` may be called.
        synack: Have a worker ask before it starts a task, so that a task can be cancelled up to that moment.
        on_process_exit: Called in the worker as ``(pid, exitcode)`` when it ends in good order; it must be picklable.
        context: How the workers' launcher is started: ``None`` or ``"spawn"``, ``"forkserver"``, ``"fork"``, or a
            context of billiard or multiprocessing.
        max_memory_per_child: Kilobytes after which a worker is replaced at the end of its task.
        enable_timeouts: Accepted for completeness; limits always work.

    Raises:
        InvalidOptionError: an option has a value that it cannot have.
        UnsupportedBackendError: billiard is not installed, or this process runs under gevent.
        UnpicklableError: the initializer, its arguments or ``on_process_exit`` cannot be sent to a worker.
    """

    def __init__(
        self,
        processes: int | None = None,
        initializer: Callable[..., Any] | None = None,
        initargs: Iterable[Any] = (),
        *,
        maxtasksperchild: int | None = None,
        timeout: float | None = None,
        soft_timeout: float | None = None,
        lost_worker_timeout: float | None = None,
        max_restarts: int | None = None,
        max_restart_freq: float = 1,
        on_process_up: Callable[..., Any] | None = None,
        on_process_down: Callable[..., Any] | None = None,
        on_timeout_set: Callable[..., Any] | None = None,
        on_timeout_cancel: Callable[..., Any] | None = None,
        threads: bool = True,
        semaphore: Any = None,
        putlocks: bool = False,
        allow_restart: bool = False,
        synack: bool = False,
        on_process_exit: Callable[[int, int], Any] | None = None,
        context: Any = None,
        max_memory_per_child: int | None = None,
        enable_timeouts: bool = False,
    ) -> None:
        given = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        self._options = check_pool_options(given)
        _billiard.load("billiard.exceptions")
        spec = WorkerSpec(
            self._options.initializer,
            self._options.initargs,
            self._options.maxtasksperchild,
            self._options.max_memory_per_child,
            self._options.on_process_exit,
        )
        self._packed_spec = b"".join(wire.dump("initializer, initargs or on_process_exit", spec))
        self._limits = self._options.limits
        self._mutex = threading.Lock()
        self._places: Any = None
        self._running: Supervisor | None = None
        self._start()
        lifetime.follow(self)

    # One supervisor for each process that uses the executor.

    def _supervisor(self) -> Supervisor:
        # A process that was forked from the owner has none yet: forget() has seen to it.
        running = self._running
        if running is not None:
            return running
        with self._mutex:
            return self._start()

    def _start(self) -> Supervisor:
        if self._running is not None:
            return self._running
        if under_gevent():
            raise UnsupportedBackendError(
                "BilliardExecutor does not run under gevent, where its threads would be greenlets: use a "
                "LeasedExecutorManager with the 'process' backend there."
            )
        supervisor = Supervisor(self._options, self._packed_spec)
        self._places = self._options.semaphore or Places(self._options.processes)
        kind = type(self)
        if kind.send_ack is not PoolManagement.send_ack:
            supervisor.dispatcher.send_ack = _weakly(self.send_ack)
        if kind.on_job_ready is not PoolManagement.on_job_ready:
            supervisor.dispatcher.on_job_ready = _weakly(self.on_job_ready)
        supervisor.start()
        self._running = supervisor
        lifetime.end_with(self, supervisor)
        return supervisor

    def _hand_in(
        self,
        call: tuple[Callable[..., Any], tuple[Any, ...], Mapping[str, Any]],
        limits: TaskLimits,
        *,
        hooks: Hooks = NO_HOOKS,
        waitforslot: bool | None = None,
        correlation_id: Any = None,
        observer: Observer | None = None,
        index: int | None = None,
    ) -> ApplyResult:
        supervisor = self._supervisor()
        dispatcher = supervisor.dispatcher
        if dispatcher.phase is not Phase.RUN:
            raise dispatcher.refusal or ExecutorClosedError("The executor takes no more work: it was closed.")
        error: UnpicklableError | None = None
        try:
            short = not call[2] and all(map(wire.is_short, call[1]))
            payload = wire.dump("task or argument", call, short=short)
        except UnpicklableError as raised:
            payload, error = [], raised
        job = ApplyResult(dispatcher, payload, limits, hooks, correlation_id)
        if observer is not None:
            job.observer, job.index = observer, index
        if self._options.synack:
            job.flags, job.simple = wire.CONFIRM | wire.AWAIT, False
        elif hooks.accept_callback is not None:
            job.flags = wire.CONFIRM
        if error is not None:
            dispatcher.finish(job, None, error)
            return job
        if self._options.putlocks if waitforslot is None else waitforslot:
            self._take_place(supervisor, job)
        try:
            dispatcher.submit(job)
        except BaseException:
            if job.place is not None:
                job.place.release()
            raise
        return job

    def _take_place(self, supervisor: Supervisor, job: ApplyResult) -> None:
        places = self._places
        if self._options.threads:
            places.acquire()
        else:
            supervisor.drive(lambda: bool(places.acquire(blocking=False)), None)
        job.place = places

    def options(
        self,
        *,
        timeout: Any = DEFAULT,
        soft_timeout: Any = DEFAULT,
        lost_worker_timeout: Any = DEFAULT,
        max_memory: Any = DEFAULT,
    ) -> TaskMethods:
        """Return a view of this executor whose tasks have other limits; ``None`` lifts one.

        Args:
            timeout: Seconds after which a task is killed.
            soft_timeout: Seconds after which ``SoftTimeLimitExceeded`` is raised inside a task.
            lost_worker_timeout: Seconds that a dead worker's exit status is waited for.
            max_memory: Kilobytes of data that the worker may hold while a task runs; more is a ``MemoryError`` in it.

        Raises:
            InvalidOptionError: a value is not a positive number.
        """
        given = {
            "timeout": timeout,
            "soft_timeout": soft_timeout,
            "lost_worker_timeout": lost_worker_timeout,
            "max_memory": max_memory,
        }
        return OptionsView(self._supervisor, self._hand_in, self._limits.override(**given))

    def forget(self) -> None:
        """Drop the parent's workers in a process that was forked from it; the next use starts new ones."""
        self._mutex = threading.Lock()  # a thread of the parent may have held it
        if self._running is not None:
            self._running.dispatcher.attend = leave  # the answers are the parent's
        self._running = None

    def __reduce__(self) -> Any:
        raise NotImplementedError("An executor cannot be pickled: it belongs to the process that made it.")


def _weakly(method: Callable[..., Any]) -> Callable[..., Any]:
    """Return a call of a bound method that does not keep its object alive."""
    reference = weakref.WeakMethod(method)

    def call(*args: Any) -> Any:
        target = reference()
        return None if target is None else target(*args)

    return call
