"""The process backend: worker processes whose work can be killed and never outlives its owner."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Mapping
from concurrent.futures import Executor, ProcessPoolExecutor
from functools import partial
from multiprocessing.context import BaseContext
from typing import Any, cast

from slotline._checks import refuse, whole_number
from slotline._gevent import under_gevent
from slotline.errors import UnsupportedBackendError
from slotline.leases._child import WorkerSetup
from slotline.leases._forwarding import ForwardedLogs, initializer_of
from slotline.leases._importable import keep_importable
from slotline.leases._process_threads import ProcessThreads
from slotline.leases._worker_process import WorkerProcess
from slotline.leases.backend import Backend, ExecutorBackend
from slotline.leases.process_logging import ProcessLoggingConfig


class ProcessBackend(Backend):
    """Processes with the options of ``ProcessPoolExecutor``, by default with the ``spawn`` start method.

    Forking a process that runs threads, as a manager's owner does, can copy a lock that nobody will ever release.
    """

    name = ExecutorBackend.PROCESS
    local = True
    killable = True

    def __init__(self, workers: int, prefix: str, options: Mapping[str, Any], logs: ProcessLoggingConfig) -> None:
        super().__init__(workers, prefix, options)
        self._logs = ForwardedLogs(logs)
        self._context = start_context(self.options.pop("mp_context", None))
        self._initializer, self._initargs = initializer_of(self.options)
        most = self.options.get("max_tasks_per_child")
        self._most_calls = None if most is None else whole_number("max_tasks_per_child", most)

    @classmethod
    def executor_class(cls) -> Callable[..., Executor]:
        """See :class:`Backend`."""
        return ProcessPoolExecutor  # its options, without the one pipe for all

    def check_process(self) -> None:
        """See :class:`Backend`."""
        if self._context.get_start_method() == "fork" and under_gevent():
            raise UnsupportedBackendError(
                "A process under gevent cannot fork workers, which would go on with its greenlets: "
                "leave mp_context out, or use 'spawn' or 'forkserver'."
            )

    def build(self) -> Executor:
        """See :class:`Backend`."""
        keep_importable()
        with self._logs.channel() as (logs, keep):
            setup = WorkerSetup(os.getpid(), logs, self._initializer, self._initargs)
            start = partial(WorkerProcess, self._context, setup)
            return keep(ProcessThreads(self.workers, self.prefix, start, self._most_calls))

    def kill(self, executor: Executor) -> None:
        """See :class:`Backend`."""
        cast("ProcessThreads", executor).kill()
        self._logs.close(executor, workers_gone=True)

    def close(self, executor: Executor, *, wait: bool) -> None:
        """See :class:`Backend`."""
        super().close(executor, wait=wait)
        self._logs.close(executor, workers_gone=wait)

    def forget(self, executor: Executor | None) -> None:
        """See :class:`Backend`."""
        if executor is not None:
            cast("ProcessThreads", executor).forget()


def start_context(value: Any) -> BaseContext:
    """Return the context that an ``mp_context`` option means: a context, a start method's name or ``None``."""
    methods = multiprocessing.get_all_start_methods()
    if value is None:
        return multiprocessing.get_context("spawn")
    if isinstance(value, str) and value in methods:
        return multiprocessing.get_context(value)
    if not isinstance(value, str) and hasattr(value, "get_start_method") and hasattr(value, "Process"):
        context: BaseContext = value  # billiard's contexts have the same shape and another base
        return context
    raise refuse("mp_context", value, f"a multiprocessing context, or one of {', '.join(map(repr, methods))}")
