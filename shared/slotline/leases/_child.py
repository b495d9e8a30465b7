"""What a worker process does before its first task: make sure that it never outlives its owner."""

from __future__ import annotations

import contextlib
import fcntl
import multiprocessing
import multiprocessing.connection
import os
import select
import signal
import threading
from collections.abc import Callable
from typing import Any, NamedTuple


class LogSetup(NamedTuple):
    """Where a worker's log records go."""

    address: str
    level: int | str
    clear_handlers: bool


class WorkerSetup(NamedTuple):
    """What the owner tells a new worker process."""

    owner: int
    logs: LogSetup | None
    initializer: Callable[..., object] | None
    initargs: tuple[Any, ...]


def start_worker(setup: WorkerSetup) -> None:
    """Prepare the calling worker process, then run the user's own initializer."""
    with contextlib.suppress(OSError):
        os.setpgid(0, 0)  # a group of its own, so that what a task starts is killed with it
    die_with(setup.owner)
    # A forked worker inherits its owner's handlers, which speak of the owner. Ctrl-C is for the owner to answer.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_DFL)
    start_logging(setup.logs, setup.initializer, *setup.initargs)


def start_logging(logs: LogSetup | None, initializer: Callable[..., object] | None, *initargs: Any) -> None:
    """Send the calling worker process's log records home, then run the user's own initializer."""
    if logs is not None:
        from slotline.leases._log_channel import send_logs  # noqa: PLC0415 - most workers never need it

        send_logs(logs.address, logs.level, clear_handlers=logs.clear_handlers)
    if initializer is not None:
        initializer(*initargs)


def die_with(owner: int) -> None:
    """Have the calling process killed when the process ``owner`` ends, however that ends."""
    parent = multiprocessing.parent_process()
    sentinel = parent.sentinel if parent is not None and parent.pid == owner else None
    if sentinel is not None and hasattr(fcntl, "F_SETSIG"):
        # The kernel sends the signal when the owner's end of the pipe closes: no thread is needed for it, and work
        # that never lets go of the interpreter lock cannot hold it up.
        group = os.getpgrp() == os.getpid()
        fcntl.fcntl(sentinel, fcntl.F_SETOWN, -os.getpid() if group else os.getpid())
        fcntl.fcntl(sentinel, fcntl.F_SETSIG, signal.SIGKILL)
        fcntl.fcntl(sentinel, fcntl.F_SETFL, fcntl.fcntl(sentinel, fcntl.F_GETFL) | os.O_ASYNC)
        if multiprocessing.connection.wait([sentinel], timeout=0):
            _end()  # it had ended before the signal was armed
        return
    handle = sentinel if sentinel is not None else _process_handle(owner)
    threading.Thread(target=watch, args=(handle, _end), name="slotline-guard", daemon=True).start()


def _process_handle(pid: int) -> int:
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError:
        _end()
        raise


def watch(handle: int, then: Callable[[], object]) -> None:
    """Wait until the process behind a descriptor has ended, then call ``then()``."""
    poll = select.poll()
    poll.register(handle, select.POLLIN)
    poll.poll()
    then()


def _end() -> None:
    if os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)
