"""One worker process, as its owner sees it: it takes one call at a time, answers or dies, and can be killed."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import process as process_module
from multiprocessing.connection import wait
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess, current_process
from typing import Any

from slotline.leases._child import WorkerSetup
from slotline.leases._worker_main import STOP, serve
from slotline.workers import outcome, wire
from slotline.workers.process_tree import how_it_ended, kill_group, kill_with_descendants

_PATIENCE = 5.0
"""Seconds that a worker without work has to end in good order."""
_EXIT_STATUS = 0.5
"""Seconds that the exit status of a dead worker is waited for; it is normally there at once."""

# One start at a time: of two workers forked together, each could get copies of the other's pipes, and neither would
# ever see that the owner has ended.
_starting = threading.Lock()


def _renew_lock() -> None:
    global _starting  # noqa: PLW0603 - a fork may have copied it while another thread held it
    _starting = threading.Lock()


os.register_at_fork(after_in_child=_renew_lock)


class NotBegunError(BrokenProcessPool):
    """The process died before it had taken the call: another may run it."""


class WorkerProcess:
    """A process that runs calls for the one thread that made it; any thread may kill it.

    Args:
        context: How processes are started.
        setup: What the process is told at its start.

    Attributes:
        calls: How many calls it was given.
        usable: Whether it takes another call.
    """

    def __init__(self, context: BaseContext, setup: WorkerSetup) -> None:
        self.calls, self.usable = 0, True
        self._lock = threading.Lock()  # so that nobody is killed by the number of a process that is gone
        self._buried = self._unread = False
        allow_children()
        with _starting:
            self._connection, theirs = context.Pipe()
            for end in (self._connection, theirs):
                os.set_blocking(end.fileno(), True)  # under gevent they are not
            self._process: BaseProcess = context.Process(target=serve, args=(theirs, setup))  # type: ignore[attr-defined] # every context has it
            try:
                self._process.start()
            except BaseException:
                self._connection.close()
                raise
            finally:
                theirs.close()
        self._pid = self._process.pid or 0
        self._handle = _handle_of(self._process)
        self._ends = select.poll()
        self._ends.register(self._connection, select.POLLIN)
        self._ends.register(self._handle, select.POLLIN)

    def begin(self) -> None:
        """Wait until the process takes calls.

        Raises:
            BrokenProcessPool: It ended first, or its initializer failed.
        """
        answer = self._answer()
        if answer is not None and answer[0] == wire.READY:
            return
        why = answer[2:].decode(errors="replace") if answer is not None and answer[0] == wire.BROKEN else self._bury()
        self.end()
        raise BrokenProcessPool(f"A worker process could not begin: {why}")

    def call(self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run ``fn`` in the process and return what it returns.

        Raises:
            UnpicklableError: The call, what it returned or what it raised cannot travel.
            TaskExitError: The call raised something that ends a program.
            BrokenProcessPool: The process died.
            NotBegunError: It died before it had taken the call.
        """
        packet = b"".join(wire.dump("task or argument", (fn, args, kwargs)))
        self.calls += 1
        try:
            self._connection.send_bytes(packet)
        except OSError:  # it is dead, or has said why it reads no more
            self._unread = True
        del packet
        try:
            answer = self._answer()
        except MemoryError:
            self.kill()  # the rest of the answer would be taken for the next one
            raise
        if answer is None:
            name = getattr(fn, "__qualname__", None) or repr(fn)
            lost = NotBegunError if self._unread else BrokenProcessPool
            raise lost(f"The worker process of {name} was lost: {self._bury()}.")
        kind, flags, payload = answer[0], answer[1], memoryview(answer)[2:]
        self.usable = not flags & wire.LEAVING
        if kind != wire.DONE:
            raise outcome.unpack_error(bytes(payload))
        value, error = outcome.unpack_value(payload)
        if error is not None:
            raise error
        return value

    def has_ended(self) -> bool:
        """Whether the process is dead, for whatever reason."""
        return self._ready(self._handle, 0)

    def kill(self) -> None:
        """Kill the process with all that it has started, and return when it is dead."""
        with self._lock:
            self.usable = False
            if not self._buried:
                kill_with_descendants(self._pid, self._kill_itself)
                wait([self._handle])

    def end(self) -> None:
        """Have the process end, by force if it does not do so by itself."""
        with contextlib.suppress(OSError):
            self._connection.send_bytes(STOP)
        self._bury()

    def forget(self) -> None:
        """Drop the copies, made by a fork, of what belongs to the parent process."""
        if self._buried:
            return  # the numbers of its descriptors may be others' by now
        # The parent's workers die when the last copy of its end of their pipes closes.
        finalizer = getattr(getattr(self._process, "_popen", None), "finalizer", None)
        for end in {self._handle, *(getattr(finalizer, "_args", None) or ())}:
            with contextlib.suppress(OSError, TypeError):
                os.close(end)
        if finalizer is not None:
            finalizer.cancel()
        with contextlib.suppress(OSError):
            self._connection.close()

    def _answer(self) -> bytes | None:
        # Its death is watched too: what it has started may keep its end of the connection open.
        if not self._ready(self._connection.fileno()) and not self._ready(self._connection.fileno(), 0):
            return None  # asked twice: it may have answered and died between the two
        try:
            answer: bytes = self._connection.recv_bytes()
        except ConnectionResetError:  # what the kernel says of a socket that was closed with something unread in it
            self._unread = True
            return None
        except (EOFError, OSError):
            return None
        else:
            return answer

    def _ready(self, end: int, timeout: float | None = None) -> bool:
        return any(number == end for number, _ in self._ends.poll(timeout))

    def _kill_itself(self) -> None:
        kill_group(self._pid)  # none yet if it is just starting
        with contextlib.suppress(OSError):
            os.kill(self._pid, signal.SIGKILL)

    def _bury(self) -> str:
        """Let go of a process that has ended, or is about to; return in words how it ended."""
        if not self._buried and not wait([self._handle], _PATIENCE):
            self.kill()
        with self._lock:
            self.usable = False
            if self._buried:
                return how_it_ended(None)
            self._buried = True
            kill_group(self._pid)  # what it leaves behind: its number is its own until its exit status is read
            deadline = time.monotonic() + _EXIT_STATUS
            while (code := self._process.exitcode) is None and time.monotonic() < deadline:
                time.sleep(0.001)  # another thread that starts a process may be reading it just now
            self._connection.close()
            if self._handle != self._process.sentinel:
                os.close(self._handle)
            close: Callable[[], object] = getattr(self._process, "close", None) or vars(self._process)["_popen"].close
            with contextlib.suppress(ValueError):  # its exit status was not to be had
                close()
            return how_it_ended(code)


def _handle_of(process: BaseProcess) -> int:
    """Return a descriptor that is readable once a process has ended, whatever its children hold open."""
    try:
        return os.pidfd_open(process.pid or 0)
    except (AttributeError, OSError):  # no such call on this system, or it has ended already
        return process.sentinel


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
