"""Ending, resizing and repairing an executor, in the words of billiard's ``Pool`` and of ``concurrent.futures``."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from concurrent.futures import wait as wait_for
from typing import Any

from slotline import _checks
from slotline.workers import _billiard, dispatch
from slotline.workers.dispatch import Phase
from slotline.workers.member import State
from slotline.workers.options import PoolOptions, usable_cpus
from slotline.workers.supervisor import Supervisor


class PoolManagement(ABC):
    """What the owner of an executor does with its workers."""

    _options: PoolOptions
    _places: Any

    @abstractmethod
    def _supervisor(self) -> Supervisor:
        """Return the supervisor of this process, started."""

    # The end.

    def close(self) -> None:
        """Take no more tasks; those that were handed in are finished, then the workers end."""
        self._supervisor().close()
        self._open_places()

    def terminate(self, error: BaseException | None = None) -> None:
        """Kill every worker now; what is unfinished fails with ``error`` (default: ``Terminated``)."""
        self._supervisor().terminate(error)
        self._open_places()

    def join(self) -> None:
        """Wait until every worker has ended.

        Raises:
            ValueError: neither ``close()`` nor ``terminate()`` was called.
        """
        supervisor = self._supervisor()
        if supervisor.dispatcher.phase is Phase.RUN:
            raise ValueError("The executor is still running: call close() or terminate() before join().")
        supervisor.join()

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:  # noqa: FBT001, FBT002 - as in Executor
        """Take no more tasks and end once those that were handed in are finished.

        Args:
            wait: Return only when every worker has ended.
            cancel_futures: Cancel the tasks that no worker has taken.
        """
        supervisor = self._supervisor()
        self.close()
        if cancel_futures:
            with supervisor.dispatcher.lock:
                waiting = list(supervisor.dispatcher.queue)
            for job in waiting:
                job.cancel()
            supervisor.loop.wake()
        if wait:
            supervisor.join()

    def abort(self, error: BaseException | None = None, timeout: float | None = None) -> int:
        """Kill what runs and drop what waits, and stay in service with fresh workers.

        Args:
            error: What all of it fails with (default: ``Terminated``).
            timeout: Seconds to wait until all of it is dead; ``None`` waits as long as it takes.

        Returns:
            How many tasks were unfinished.
        """
        reason = error or _billiard.exceptions().Terminated("The task was aborted.")
        supervisor = self._supervisor()
        jobs, killed = supervisor.abort(reason)
        if self._options.threads:
            deadline = None if timeout is None else time.monotonic() + timeout
            wait_for(jobs, timeout)
            for member in killed:
                member.buried.wait(None if deadline is None else max(0.0, deadline - time.monotonic()))
        else:
            supervisor.drive(lambda: all(member.gone for member in killed), timeout)
        return len(jobs)

    def _open_places(self) -> None:
        clear = getattr(self._places, "clear", None)
        if callable(clear):
            clear()

    # Workers.

    def restart(self) -> None:
        """Replace every worker, each after the task that it runs.

        Raises:
            RuntimeError: the executor was made without ``allow_restart=True``.
        """
        if not self._options.allow_restart:
            raise RuntimeError("restart() needs an executor that was made with allow_restart=True.")
        self._supervisor().restart()

    def grow(self, n: int = 1) -> None:
        """Add ``n`` workers."""
        count = _checks.whole_number("n", n)
        self._supervisor().resize(count)
        for _ in range(count if hasattr(self._places, "grow") else 0):
            self._places.grow()

    def shrink(self, n: int = 1) -> None:
        """Remove ``n`` workers: those that have nothing to do at once, others after the task that they run.

        Raises:
            ValueError: none would be left; all but one are removed.
        """
        count = _checks.whole_number("n", n)
        removed = self._supervisor().resize(-count)
        for _ in range(removed if hasattr(self._places, "shrink") else 0):
            self._places.shrink()
        if removed < count:
            raise ValueError(f"The pool shrank by {removed} of {count} workers: one has to be left.")

    def terminate_job(self, pid: int, sig: int | None = None) -> None:
        """Send a signal to the worker with this pid; its task fails with ``Terminated`` if the worker ends.

        Args:
            pid: A worker's pid; that of no worker is ignored.
            sig: The signal (default SIGTERM).
        """
        self._supervisor().terminate_worker(pid, sig)

    def maintain_pool(self) -> None:
        """Replace workers that have ended. The supervisor does so by itself; with ``threads=False`` this is its turn.

        Raises:
            RestartFreqExceeded: the workers kept failing and the executor has given up.
        """
        supervisor = self._supervisor()
        if self._options.threads:
            supervisor.loop.wake()
        else:
            supervisor.poll()
        if supervisor.dispatcher.refusal is not None:
            raise supervisor.dispatcher.refusal

    def did_start_ok(self) -> bool:
        """Return whether no worker has ended unasked so far."""
        supervisor = self._supervisor()
        if not self._options.threads:
            supervisor.poll()
        return supervisor.crew.exits == 0 and supervisor.dispatcher.refusal is None

    @property
    def process_sentinels(self) -> list[int]:
        """A descriptor for each worker that can be read once the worker has ended; they belong to the executor."""
        dispatcher = self._supervisor().dispatcher
        with dispatcher.lock:
            return [member.pidfd for member in dispatcher.members.values() if member.pidfd >= 0]

    def worker_pids(self) -> list[int]:
        """Return the pids of the workers that take tasks."""
        dispatcher = self._supervisor().dispatcher
        with dispatcher.lock:
            return [member.pid for member in dispatcher.members.values() if member.pid and member.state is State.READY]

    def cpu_count(self) -> int:
        """Return how many processors this process may use, at least one."""
        return usable_cpus()

    # Hooks, and what an event loop calls.

    def send_ack(self, response: int, job: int, i: int | None, fd: int) -> None:
        """Answer a worker that asks whether it may start a task (``synack``); may be overridden.

        Args:
            response: 0 for yes, 3 for no.
            job: The task's number.
            i: Which part of a map it is, or ``None``.
            fd: The connection to the worker.
        """
        dispatch.send_ack(response, job, i, fd)

    def on_job_ready(self, job: int, i: int | None, obj: tuple[bool, Any], inqW_fd: int) -> None:  # noqa: B027, N803 - a hook that may stay empty; billiard's name
        """Do nothing; override it to see every outcome before its future does.

        Args:
            job: The task's number.
            i: Which part of a map it is, or ``None``.
            obj: Whether the task returned, and its value or error.
            inqW_fd: The connection to the worker, or -1 where the worker has gone on.
        """

    def handle_result_event(self, *args: Any) -> None:  # noqa: ARG002 - a descriptor and its events, which it finds itself
        """Handle what the workers have said, without waiting; for event loops that drive ``threads=False``."""
        if not self._options.threads:
            self._supervisor().poll()

    def fileno(self) -> int:
        """Return a descriptor that can be read whenever :meth:`handle_result_event` has something to do."""
        return self._supervisor().loop.fileno()
