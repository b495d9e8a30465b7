"""One place of a manager: room for one executor, which is made when the first work arrives."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Executor
from functools import partial
from typing import TYPE_CHECKING, cast

from slotline.leases._jobs import LocalJob, RemoteJob, work_through
from slotline.leases._states import State
from slotline.leases._worker_threads import WorkerThreads

if TYPE_CHECKING:
    from slotline.leases._grants import Grant
    from slotline.leases.backend import Backend


class Place:
    """Room for one executor.

    Args:
        backend: Makes and ends the executors.

    Attributes:
        executor: The executor in this place, once there was work for it.
        broken: An executor that was seen to be broken; if it is still the one in place, the next work replaces it.
    """

    __slots__ = ("_backend", "_lock", "broken", "executor")

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._lock = threading.Lock()
        self.executor: Executor | None = None
        self.broken: Executor | None = None

    def start(self, grant: Grant, job: LocalJob | RemoteJob) -> None:
        """Put a job into the executor's queue, if its lease is active."""
        with self._lock:  # the revoker takes it too: nothing enters an executor that is being killed
            if grant.state is not State.ACTIVE:
                raise grant.refusal()
            executor = self._current()
            if isinstance(executor, WorkerThreads):
                executor.hand(cast("LocalJob", job), len(grant.jobs))
                return
            self._enter(cast("RemoteJob", job))
        cast("RemoteJob", job).watch()

    def start_many(self, grant: Grant, jobs: Sequence[LocalJob | RemoteJob]) -> None:
        """Put several jobs into the executor's queue; threads share them out among themselves."""
        with self._lock:
            if grant.state is not State.ACTIVE:
                raise grant.refusal()
            executor = self._current()
            if isinstance(executor, WorkerThreads):
                line = deque(cast("Sequence[LocalJob]", jobs))
                for number in range(min(self._backend.workers, len(jobs))):
                    executor.hand(partial(work_through, line), number + 1)
                return
            for job in cast("Sequence[RemoteJob]", jobs):
                self._enter(job)
        for job in cast("Sequence[RemoteJob]", jobs):
            job.watch()

    def _enter(self, job: RemoteJob) -> None:
        try:
            job.enter(self._current())
        except self._backend.broken_by:  # it broke while idle, and did not take the job
            self._retire()
            job.enter(self._current())

    def _current(self) -> Executor:
        executor = self.executor
        if executor is None or executor is self.broken:
            self._retire()
            executor = self.executor = self._backend.build()
        return executor

    def _retire(self) -> None:
        executor, self.executor, self.broken = self.executor, None, None
        if executor is not None:
            self._backend.close(executor, wait=False)

    def empty(self) -> Executor | None:
        """Wait until nobody is entering work, then empty the place and return what was in it."""
        with self._lock:
            executor, self.executor, self.broken = self.executor, None, None
            return executor
