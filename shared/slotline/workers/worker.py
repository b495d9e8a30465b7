"""What runs in a worker process: take a packet, run its task, answer; one task at a time, in the main thread."""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import pickle
import resource
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from slotline.workers import _billiard, outcome, process_tree, wire
from slotline.workers.arena import RESULTS, TASKS, Arena
from slotline.workers.process_tree import EX_CHANNEL
from slotline.workers.streams import Streams

EX_OK: Final = 0
EX_RECYCLE: Final = 0x9B
"""The exit code of a worker that has done its share, as in billiard."""

_PAGE_KB: Final = resource.getpagesize() // 1024


@dataclass(frozen=True, slots=True)
class WorkerSpec:
    """What every worker of an executor is told, pickled once by the owner."""

    initializer: Callable[..., Any] | None
    initargs: tuple[Any, ...]
    maxtasks: int | None
    max_memory_kb: int | None
    on_exit: Callable[[int, int], Any] | None


class _SoftLimit:
    """The soft time limit of the running task: its deadline by the system's monotonic clock, or ``None``."""

    def __init__(self) -> None:
        self.deadline: float | None = None
        self.error = _billiard.exceptions().SoftTimeLimitExceeded

    def arm(self, deadline: float) -> None:
        # A task may have taken the signal for itself, so the handler is put in place for each task that needs it.
        signal.signal(signal.SIGUSR1, self._on_signal)
        self.deadline = deadline
        if time.monotonic() >= deadline:  # the signal came before the task could be begun
            self._on_signal(0, None)

    def _on_signal(self, _signum: int, _frame: Any) -> None:
        # A signal that was meant for the task before comes too early for this one and is ignored.
        if self.deadline is not None and time.monotonic() >= self.deadline:
            self.deadline = None
            raise self.error


class _Termination:
    """SIGTERM unwinds the task by ``SystemExit``, so that its ``finally`` blocks run, and then ends the worker."""

    def __init__(self) -> None:
        self.signum = 0

    def install(self) -> None:
        for name in ("SIGTERM", "SIGQUIT", "SIGHUP", "SIGXCPU"):
            signal.signal(getattr(signal, name), self._on_signal)

    def _on_signal(self, signum: int, _frame: Any) -> None:
        signal.signal(signum, signal.SIG_DFL)
        self.signum = signum
        raise SystemExit(-signum)


def main(packed_spec: bytes, sock: socket.socket, arena_fd: int, launcher: int, inherited: list[int]) -> None:
    """Run a worker until it is told to stop, has done its share, or is ended; never returns."""
    signal.set_wakeup_fd(-1)
    process_tree.own_session()
    process_tree.die_with_parent(launcher)
    process_tree.adopt_orphans()
    for fd in inherited:
        with contextlib.suppress(OSError):
            os.close(fd)
    for signum in (signal.SIGCHLD, signal.SIGALRM, signal.SIGUSR2, signal.SIGPIPE):
        signal.signal(signum, signal.SIG_IGN if signum == signal.SIGPIPE else signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    code, spec = 1, None
    worker = _Worker(sock, Arena(arena_fd))
    try:
        spec = worker.set_up(packed_spec)
        if spec is not None:
            code = worker.serve(spec)
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except (EOFError, ConnectionError):
        code = EX_OK  # the owner is gone or has closed the executor
    except Exception:  # noqa: BLE001 - what no task has raised ends the worker, and its exit code alone would not say why
        traceback.print_exc()
    finally:
        _leave(worker, spec, code)


def _leave(worker: _Worker, spec: WorkerSpec | None, code: int) -> None:
    """End the process; a signal that ended it is what its exit status says."""
    worker.soft.deadline = None
    try:
        if spec is not None and spec.on_exit is not None:
            spec.on_exit(os.getpid(), code)
    except BaseException:  # noqa: BLE001 - the process ends whatever the callback does
        traceback.print_exc()
    with contextlib.suppress(BaseException):
        sys.stdout.flush()
        sys.stderr.flush()
    if worker.termination.signum:
        signal.signal(worker.termination.signum, signal.SIG_DFL)
        os.kill(os.getpid(), worker.termination.signum)
    os._exit(code & 0xFF)


class _Worker:
    def __init__(self, sock: socket.socket, arena: Arena) -> None:
        self.sock, self.arena = sock, arena
        self.pid = os.getpid()
        self.soft = _SoftLimit()
        self.termination = _Termination()
        self.begin = arena.begin_marker()
        self.results_end = RESULTS  # where the next shared result goes

    def set_up(self, packed_spec: bytes) -> WorkerSpec | None:
        """Run the initializer and report for work; ``None`` if that failed."""
        try:
            spec: WorkerSpec = pickle.loads(packed_spec)  # noqa: S301 - the owner made it
            if spec.initializer is not None:
                spec.initializer(*spec.initargs)
        except Exception:  # noqa: BLE001 - it is reported to the owner
            text = traceback.format_exc()
            self.answer(wire.BROKEN, 0, 0, 0.0, [text.encode(errors="replace")[-wire.INLINE :]])
            return None
        self.termination.install()
        signal.signal(signal.SIGUSR1, self.soft._on_signal)  # noqa: SLF001 - both are this module's
        gc.collect()
        gc.freeze()
        self.answer(wire.READY, 0, self.pid, time.monotonic(), [])
        return spec

    def serve(self, spec: WorkerSpec) -> int:
        """Run tasks until there is a reason to leave; returns the exit code."""
        recv, unpack, size = self.sock.recv, wire.HEADER.unpack_from, wire.HEADER.size
        done, streams = 0, Streams()
        while True:
            packet = recv(wire.PACKET)
            if not packet:
                return EX_OK
            kind, flags, job, deadline, number, shared = unpack(packet)
            if kind != wire.RUN:
                return EX_OK
            self.begin(job)
            if flags & wire.CLEAN and self.results_end != RESULTS:
                self.results_end = RESULTS
            if flags & wire.CONFIRM and not self._confirmed(job, await_go=bool(flags & wire.AWAIT)):
                continue
            inline = None if flags & wire.SHARED else memoryview(packet)[size:]
            del packet
            kind, flags, payload = self._run(inline, shared, deadline, number)
            del inline
            done += 1
            if done == spec.maxtasks:
                self.answer(kind, flags | wire.LEAVING, job, time.monotonic(), payload)
                return EX_RECYCLE
            self.answer(kind, flags, job, time.monotonic(), payload)
            del payload
            # Looked at while the owner is busy with the answer; a task that is in the pipe by then is taken back.
            if (spec.max_memory_kb is not None and _resident_kb() > spec.max_memory_kb) or streams.damaged():
                return EX_RECYCLE

    def _confirmed(self, job: int, *, await_go: bool) -> bool:
        """Say that the task was taken; with ``await_go`` return whether it may start."""
        self.answer(wire.ACCEPTED, 0, job, time.monotonic(), [])
        if not await_go:
            return True
        reply = self.sock.recv(wire.PACKET)
        if not reply:
            raise EOFError
        return bool(reply[0] == wire.GO)

    def _run(
        self, inline: memoryview | None, shared: int, deadline: float, memory_kb: int
    ) -> tuple[int, int, wire.Payload]:
        """Run one task, which came in its packet or is ``shared`` bytes long, and pack its outcome."""
        before = resource.RLIM_INFINITY
        try:
            task = self.arena.read(TASKS, shared) if inline is None else inline
            func, args, kwargs = wire.load("task or argument", task)
            del task
            try:
                if memory_kb:
                    before = resource.getrlimit(resource.RLIMIT_DATA)[0]
                    _limit_data(memory_kb * 1024)
                if deadline:
                    self.soft.arm(deadline)
                value = func(*args, **kwargs)
            finally:
                self.soft.deadline = None
                if memory_kb:
                    _limit_data(before)
            self._only_here()
            return outcome.pack_value(value)
        except BaseException as error:  # noqa: BLE001 - whatever a task raises is its result
            self.soft.deadline = None
            self._only_here()
            if self.termination.signum:
                raise SystemExit(-self.termination.signum) from None
            return wire.FAILED, 0, outcome.pack_error(error)

    def _only_here(self) -> None:
        """End a copy of the worker that a task forked off and let return: the answer is the original's to give."""
        if os.getpid() != self.pid:
            os._exit(EX_OK)

    def answer(self, kind: int, flags: int, job: int, when: float, payload: wire.Payload) -> None:
        """Send one packet; a long payload goes to the shared memory first."""
        offset = size = 0
        if (length := wire.size_of(payload)) > wire.INLINE:
            offset, size = self.results_end, length
            try:
                self.arena.write(payload, offset, size)
            except (OSError, MemoryError) as error:
                self.answer(wire.FAILED, flags & wire.LEAVING, job, when, outcome.pack_error(error))
                return
            self.results_end += size
            payload, flags = [], flags | wire.SHARED
        packet = wire.HEADER.pack(kind, flags, job, when, offset, size)
        packet += payload[0] if len(payload) == 1 else b"".join(payload)
        try:
            self.sock.send(packet)
        except OSError as error:
            if error.errno in (errno.EPIPE, errno.ECONNRESET):
                raise EOFError from None
            # The task has closed descriptors that were not its own; there is nobody left to tell but the exit code.
            os._exit(EX_CHANNEL)


def _limit_data(limit: int) -> None:
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_DATA, (limit, resource.getrlimit(resource.RLIMIT_DATA)[1]))


def _resident_kb() -> int:
    """Return the most memory that this process has held, in kilobytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
