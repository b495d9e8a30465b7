"""The kinds of executor that a manager can lease."""

from __future__ import annotations

import concurrent.futures
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from concurrent.futures import BrokenExecutor, Executor, ThreadPoolExecutor
from enum import StrEnum
from typing import Any

from slotline.errors import UnsupportedBackendError
from slotline.leases._forwarding import initializer_of
from slotline.leases._worker_threads import WorkerThreads


class ExecutorBackend(StrEnum):
    """Where leased work runs."""

    THREAD = "thread"
    PROCESS = "process"
    INTERPRETER = "interpreter"
    BILLIARD = "billiard"


class Backend(ABC):
    """How executors of one kind are made and ended.

    Args:
        workers: How many workers an executor has.
        prefix: The first part of the workers' names, where they have names.
        options: The user's keyword arguments for the executor's constructor.

    Attributes:
        in_process: Work runs in threads of this process, on the caller's own objects.
        local: Executors are :class:`WorkerThreads`, which take a lease's jobs as they are.
        killable: Work that runs can be stopped by force.
        broken_by: The errors after which an executor is of no more use.
        limits: An executor takes time limits for each task (``executor.options(timeout=..., soft_timeout=...)``).
    """

    name: ExecutorBackend
    in_process = False
    local = False
    killable = False
    limits = False
    broken_by: tuple[type[BaseException], ...] = (BrokenExecutor,)
    taken: Mapping[str, str] = {"max_workers": "workers_per_pool"}
    """Constructor arguments that the manager sets itself, and the option of the manager that sets them."""

    def __init__(self, workers: int, prefix: str, options: Mapping[str, Any]) -> None:
        self.workers, self.prefix, self.options = workers, prefix, dict(options)
        self.executor_class()  # an executor that is missing shows now, and so does a wrong initializer
        initializer_of({**options})

    @classmethod
    @abstractmethod
    def executor_class(cls) -> Callable[..., Executor]:
        """Return the class whose constructor gets the options; raises UnsupportedBackendError."""

    def check_process(self) -> None:  # noqa: B027 - most executors run anywhere
        """Refuse to run in this process; not before it is to be used here, since others may share the declaration.

        Raises:
            UnsupportedBackendError: Executors of this kind do not work in it.
        """

    @abstractmethod
    def build(self) -> Executor:
        """Return a new executor."""

    def kill(self, executor: Executor) -> None:
        """End all work of an executor by force and return when it is dead; only where ``killable``."""
        raise NotImplementedError

    def close(self, executor: Executor, *, wait: bool) -> None:
        """Shut an executor down that has no work left, or whose work may end in its own time."""
        executor.shutdown(wait=wait)

    def forget(self, executor: Executor | None) -> None:  # noqa: B027 - most executors hold nothing to let go of
        """Let go of an executor that belongs to the process that this one was forked from."""

    @classmethod
    def executor_options(cls) -> list[str]:
        """Return the constructor's arguments that a user may give; raises UnsupportedBackendError."""
        parameters = inspect.signature(cls.executor_class()).parameters.values()
        return [it.name for it in parameters if it.kind is not it.VAR_KEYWORD and it.name not in cls.taken]


class ThreadBackend(Backend):
    """Threads of this process, which cannot be killed; ``ThreadPoolExecutor`` where they need an initializer."""

    name = ExecutorBackend.THREAD
    in_process = True
    taken = {"max_workers": "workers_per_pool", "thread_name_prefix": "name_prefix"}  # noqa: RUF012 - a constant

    def __init__(self, workers: int, prefix: str, options: Mapping[str, Any]) -> None:
        super().__init__(workers, prefix, options)
        self.local = "initializer" not in options

    @classmethod
    def executor_class(cls) -> Callable[..., Executor]:
        """See :class:`Backend`."""
        return ThreadPoolExecutor

    def build(self) -> Executor:
        """See :class:`Backend`."""
        if self.local:
            return WorkerThreads(self.workers, self.prefix)
        return ThreadPoolExecutor(max_workers=self.workers, thread_name_prefix=self.prefix, **self.options)


class InterpreterBackend(Backend):
    """``InterpreterPoolExecutor`` of Python 3.14: threads with an interpreter each, which cannot be killed."""

    name = ExecutorBackend.INTERPRETER
    taken = {"max_workers": "workers_per_pool", "thread_name_prefix": "name_prefix"}  # noqa: RUF012 - a constant

    @classmethod
    def executor_class(cls) -> Callable[..., Executor]:
        """See :class:`Backend`."""
        found: Callable[..., Executor] | None = getattr(concurrent.futures, "InterpreterPoolExecutor", None)
        if found is None:
            raise UnsupportedBackendError(
                "The interpreter backend needs concurrent.futures.InterpreterPoolExecutor, which came with Python 3.14."
            )
        return found

    def build(self) -> Executor:
        """See :class:`Backend`."""
        return self.executor_class()(max_workers=self.workers, thread_name_prefix=self.prefix, **self.options)
