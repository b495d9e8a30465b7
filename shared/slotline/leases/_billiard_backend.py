"""The billiard backend: processes with time limits for each task, whose work can be killed."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from concurrent.futures import BrokenExecutor, Executor
from typing import Any

from slotline._gevent import under_gevent
from slotline.errors import LeaseExpiredError, UnsupportedBackendError
from slotline.leases._child import start_logging
from slotline.leases._forwarding import ForwardedLogs, initializer_of
from slotline.leases._importable import keep_importable
from slotline.leases.backend import Backend, ExecutorBackend
from slotline.leases.process_logging import ProcessLoggingConfig
from slotline.workers.options import check_pool_options


class BilliardBackend(Backend):
    """``slotline.workers.BilliardExecutor``."""

    name = ExecutorBackend.BILLIARD
    killable = True
    limits = True
    taken = {"processes": "workers_per_pool", "threads": "the manager", "putlocks": "the manager"}  # noqa: RUF012 - a constant

    def __init__(self, workers: int, prefix: str, options: Mapping[str, Any], logs: ProcessLoggingConfig) -> None:
        super().__init__(workers, prefix, options)
        self._logs = ForwardedLogs(logs)
        self._initializer, self._initargs = initializer_of(self.options)
        from slotline.workers import BilliardExecutor, ExecutorClosedError, RestartFreqExceeded  # noqa: PLC0415 - billiard is optional

        given = inspect.signature(BilliardExecutor).bind(self.workers, **self.options)
        given.apply_defaults()
        check_pool_options(given.arguments)
        self.broken_by = (BrokenExecutor, ExecutorClosedError, RestartFreqExceeded)

    @classmethod
    def executor_class(cls) -> Callable[..., Executor]:
        """See :class:`Backend`."""
        try:
            from slotline.workers import BilliardExecutor  # noqa: PLC0415 - billiard is optional
        except ImportError as error:
            raise UnsupportedBackendError(f"The billiard backend needs billiard, which is not here: {error}.") from None
        executor_class: Callable[..., Executor] = BilliardExecutor
        return executor_class

    def check_process(self) -> None:
        """See :class:`Backend`."""
        if under_gevent():
            raise UnsupportedBackendError("The billiard backend does not run under gevent: use 'process' there.")

    def build(self) -> Executor:
        """See :class:`Backend`."""
        keep_importable()
        with self._logs.channel() as (setup, keep):
            return keep(
                self.executor_class()(
                    processes=self.workers,
                    initializer=start_logging,
                    initargs=(setup, self._initializer, *self._initargs),
                    **self.options,
                )
            )

    def kill(self, executor: Executor) -> None:
        """See :class:`Backend`."""
        terminate: Callable[[Exception], object] = executor.terminate  # type: ignore[attr-defined] # Executor itself has none
        terminate(LeaseExpiredError("The lease was revoked."))
        executor.shutdown(wait=True)
        self._logs.close(executor, workers_gone=True)

    def close(self, executor: Executor, *, wait: bool) -> None:
        """See :class:`Backend`."""
        super().close(executor, wait=wait)
        self._logs.close(executor, workers_gone=wait)
