"""The threads of one thread executor.

``ThreadPoolExecutor`` makes a future for each call and keeps count with semaphores; a lease has its own futures and
knows how much work it holds, and a hand-off to one of these threads costs half as much.
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Executor, Future
from functools import partial
from queue import SimpleQueue
from typing import Any

Call = Callable[[], object]


class WorkerThreads(Executor):
    """Runs calls, which report their own outcome, in threads that are started as they are needed.

    When the interpreter ends, it first lets them finish what they were given, as it does with ``ThreadPoolExecutor``;
    those of revoked leases it leaves behind.

    Args:
        most: How many threads there may be.
        prefix: First part of their names.
    """

    def __init__(self, most: int, prefix: str) -> None:
        self._most, self._prefix = most, prefix
        self._calls: SimpleQueue[Call | None] = SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._owner = os.getpid()
        _remember(self)

    def hand(self, call: Call, needed: int) -> None:
        """Give a call to the threads, of which ``needed`` have something to do then; for one caller at a time."""
        if len(self._threads) < needed and len(self._threads) < self._most:
            name = f"{self._prefix}_{len(self._threads)}"
            thread = threading.Thread(target=self._main(), name=name, daemon=True)
            thread.start()
            self._threads.append(thread)
        self._calls.put(call)

    def _main(self) -> Call:
        return partial(serve, self._calls)  # without the executor, which ends with its last reference

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Refuse: work enters through a lease."""
        raise NotImplementedError

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:  # noqa: ARG002, FBT001, FBT002 - the signature of Executor
        """End the threads when they have done what they were given."""
        _executors.discard(self)
        for _ in self._threads:
            self._calls.put(None)
        if wait and os.getpid() == self._owner:
            for thread in self._threads:
                thread.join()


def serve(calls: SimpleQueue[Call | None], after: Callable[[], None] = lambda: None) -> None:
    """Make the calls of a queue until it says ``None``, with ``after()`` after each."""
    while (call := calls.get()) is not None:
        try:
            call()
        except BaseException:
            logging.getLogger("slotline.leases").exception("The outcome of leased work could not be handed over.")
        del call  # its arguments and its result must not live until the next call
        after()


_executors: weakref.WeakSet[WorkerThreads] = weakref.WeakSet()
_registered: list[bool] = []


def _remember(executor: WorkerThreads) -> None:
    if not _registered:
        _registered.append(True)
        atexit.register(_finish)
    _executors.add(executor)


def _finish() -> None:
    for executor in list(_executors):
        executor.shutdown(wait=True)
