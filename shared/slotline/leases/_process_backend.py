"""The process backend: ``ProcessPoolExecutor`` whose work can be killed and never outlives its owner."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import select
import signal
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Executor, ProcessPoolExecutor
from multiprocessing import process as process_module
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess, current_process
from typing import Any

from slotline._checks import refuse
from slotline.leases._child import WorkerSetup, start_worker
from slotline.leases._forwarding import ForwardedLogs, initializer_of
from slotline.leases._importable import keep_importable
from slotline.leases.backend import Backend, ExecutorBackend
from slotline.leases.process_logging import ProcessLoggingConfig


class ProcessBackend(Backend):
    """``ProcessPoolExecutor``, by default with the ``spawn`` start method.

    Forking a process that runs threads, as a manager's owner does, can copy a lock that nobody will ever release.
    """

    name = ExecutorBackend.PROCESS
    killable = True

    def __init__(self, workers: int, prefix: str, options: Mapping[str, Any], logs: ProcessLoggingConfig) -> None:
        super().__init__(workers, prefix, options)
        self._logs = ForwardedLogs(logs)
        self._context = start_context(self.options.pop("mp_context", None))
        self._initializer, self._initargs = initializer_of(self.options)

    @classmethod
    def executor_class(cls) -> Callable[..., Executor]:
        """See :class:`Backend`."""
        return ProcessPoolExecutor

    def build(self) -> Executor:
        """See :class:`Backend`."""
        allow_children()
        keep_importable()
        with self._logs.channel() as (setup, keep):
            worker = WorkerSetup(os.getpid(), setup, self._initializer, self._initargs)
            return keep(
                ProcessPoolExecutor(
                    max_workers=self.workers,
                    mp_context=self._context,
                    initializer=start_worker,
                    initargs=(worker,),
                    **self.options,
                )
            )

    def kill(self, executor: Executor) -> None:
        """See :class:`Backend`."""
        table: Mapping[int, BaseProcess] = getattr(executor, "_processes", None) or {}  # ``None`` once it has shut down
        killed: set[int] = set()
        # Until a pass finds nobody new: with max_tasks_per_child the executor may be starting a worker just now.
        while fresh := [process for process in list(table.values()) if process.pid and process.pid not in killed]:
            for process in fresh:
                kill_group(process)
                killed.add(process.pid or 0)
            executor.shutdown(wait=False, cancel_futures=True)
            for process in fresh:
                wait_until_dead(process)
        self._logs.close(executor, workers_gone=True)

    def close(self, executor: Executor, *, wait: bool) -> None:
        """See :class:`Backend`."""
        super().close(executor, wait=wait)
        self._logs.close(executor, workers_gone=wait)

    def forget(self, executor: Executor | None) -> None:
        """See :class:`Backend`."""
        # The parent's workers die when the last copy of its end of their pipes closes: drop the copies made here.
        for process in list((getattr(executor, "_processes", None) or {}).values()):
            finalizer = getattr(getattr(process, "_popen", None), "finalizer", None)
            for end in getattr(finalizer, "_args", None) or ():
                with contextlib.suppress(OSError, TypeError):
                    os.close(end)
            if finalizer is not None:
                finalizer.cancel()


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


def kill_group(process: BaseProcess) -> None:
    """Kill a worker and all that its work has started."""
    pid = process.pid
    if pid is None:
        return
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)  # its own group; none yet if it is just starting
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def wait_until_dead(process: BaseProcess) -> None:
    """Return once a killed process runs no more.

    Without reaping it: the executor's own thread does that, and of two that wait for one child only one is told.
    """
    if process.pid is None:
        return
    try:
        handle = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return
    except (AttributeError, OSError):  # no such call on this system
        while process.is_alive():
            time.sleep(0.01)
        return
    try:
        poll = select.poll()
        poll.register(handle, select.POLLIN)
        poll.poll()
    finally:
        os.close(handle)


def allow_children() -> None:
    """Let this process start worker processes even if it is itself a daemonic worker, as Celery's prefork children are.

    Such a process may normally start none, lest they outlive it; the guard in every worker sees to that here.
    """
    config: dict[str, Any] = vars(current_process()).get("_config", {})
    if config.get("daemon"):
        config["daemon"] = False
    key, key_class = config.get("authkey"), vars(process_module)["AuthenticationString"]
    if isinstance(key, bytes) and not isinstance(key, key_class):
        config["authkey"] = key_class(key)  # billiard's own class does not pickle
