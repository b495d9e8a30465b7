"""A worker as its owner sees it."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import threading
from collections import deque
from enum import Enum
from typing import TYPE_CHECKING, Final

from slotline.workers import process_tree, wire
from slotline.workers.arena import Arena

if TYPE_CHECKING:
    from slotline.workers.jobs import ApplyResult

AHEAD: Final = 16
"""How many short tasks at most are in a worker's pipe, the running one included."""


class State(Enum):
    """What may be done with a worker."""

    STARTING = "starting"
    READY = "ready"
    LEAVING = "leaving"
    """It takes no more tasks and will end by itself or has been killed."""


class WorkerPid(int):
    """A worker's pid that also carries what billiard's callbacks expect of a process object."""

    index: int
    name: str
    exitcode: int | None

    @classmethod
    def of(cls, member: Member, exitcode: int | None = None) -> WorkerPid:
        """Return the pid of ``member``."""
        self = cls(member.pid)
        self.index, self.name, self.exitcode = member.index, f"SlotlineWorker-{member.index}", exitcode
        return self

    @property
    def pid(self) -> int:
        """The pid itself."""
        return int(self)

    ident = pid


class Member:
    """One worker: its connection, its memory and the tasks that it has been given, the running one first."""

    __slots__ = (
        "arena", "begun", "buried", "deliberate", "far", "fast", "fetching", "gone", "index", "inflight",
        "lent_to", "number", "pid", "pidfd", "poll", "reader", "reading", "retire", "sock", "state", "writing",
    )  # fmt: skip

    def __init__(self, number: int, index: int) -> None:
        self.number, self.index = number, index
        self.sock, self.far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.sock.settimeout(0)
        self.poll = select.poll()
        self.poll.register(self.sock, select.POLLIN)
        # The owner keeps the worker's end open too: what the worker has not taken yet can be taken back from it.
        self.arena = Arena.create()
        self.pid = 0
        self.pidfd = -1
        self.inflight: deque[ApplyResult] = deque()
        self.state = State.STARTING
        self.fast = False
        self.begun = 0.0
        self.retire = False
        """It is to end once it has finished its task."""
        self.deliberate = False
        """Its end was asked for."""
        self.gone = False
        """Its end has been dealt with."""
        self.buried = threading.Event()
        """Set once its end has been dealt with."""
        self.writing = False
        """A thread copies a task to its memory."""
        self.fetching = 0
        """How many results are being copied from its memory."""
        self.reading = threading.Lock()
        """Held by the thread that handles what it says."""
        self.lent_to: int | None = None
        """The thread that reads its answers while the supervisor does not listen to it."""
        self.reader: int | None = None
        """The thread that waits for its answer now."""

    @property
    def busy(self) -> bool:
        """Whether another thread uses what belongs to it, which must stay open until that is done."""
        return self.writing or self.reader is not None or self.fetching > 0

    def started(self, pid: int) -> None:
        """Note the worker's pid and get a descriptor that tells of its death."""
        self.pid = pid
        with contextlib.suppress(OSError):
            self.pidfd = os.pidfd_open(pid)

    def signal(self, signum: int) -> None:
        """Send a signal to the worker alone; one that is gone is fine."""
        with contextlib.suppress(OSError):
            if self.pidfd >= 0:
                signal.pidfd_send_signal(self.pidfd, signum)
            elif self.pid:
                os.kill(self.pid, signum)

    def kill(self) -> None:
        """Kill the worker and its process group; what has left the group is killed by the launcher."""
        self.state, self.deliberate = State.LEAVING, True
        if self.pid and not self.gone:
            self.signal(signal.SIGKILL)
            process_tree.kill_group(self.pid)

    def stop(self) -> None:
        """Have the worker end once it has nothing left to do."""
        self.state, self.deliberate = State.LEAVING, True
        with contextlib.suppress(OSError):
            self.sock.send(wire.HEADER.pack(wire.STOP, 0, 0, 0.0, 0, 0))

    def part_with(self, job: ApplyResult) -> None:
        """Note that a task is no longer the worker's; a thread that waits for it here looks elsewhere."""
        job.member = None
        self.call_reader()

    def call_reader(self) -> None:
        """Have a thread that waits for an answer of the worker look again at what it waits for."""
        if self.reader is not None and self.reader != threading.get_ident():
            with contextlib.suppress(OSError):  # what has come is so much that the thread cannot be asleep
                self.far.send(wire.HEADER.pack(wire.LOOK, 0, 0, 0.0, 0, 0), socket.MSG_DONTWAIT)

    def take_back(self) -> list[ApplyResult]:
        """Return the tasks that the worker has not taken from its pipe, in their order; they are its own no more."""
        numbers = set()
        while True:
            try:
                packet = self.far.recv(wire.PACKET, socket.MSG_DONTWAIT)
            except OSError:
                break
            if not packet:
                break
            kind, _, number, *_ = wire.HEADER.unpack_from(packet)
            if kind == wire.RUN:
                numbers.add(number)
        if not numbers:
            return []
        taken = [job for job in self.inflight if job.number in numbers]
        for job in taken:
            self.inflight.remove(job)
            self.part_with(job)
        return taken

    def close(self) -> None:
        """Close everything that belongs to the worker here."""
        self.sock.close()
        self.far.close()
        self.arena.close()
        fd, self.pidfd = self.pidfd, -1
        if fd >= 0:
            os.close(fd)
