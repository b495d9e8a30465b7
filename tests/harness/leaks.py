"""What a test may leave behind: processes, threads, event loops, keys, file descriptors, shared memory."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterable
from fnmatch import fnmatch
from functools import wraps
from pathlib import Path
from types import FrameType
from typing import NamedTuple

import psutil
import redis

from tests.harness import guardian
from tests.harness.workers import parent_worker

FRAMEWORK_KEYS = ("_kombu.*", "unacked*", "celery*", "taskiq*", "autoclaim:*")
"""Keys that the queues themselves leave without a TTL; tests name their queues so that they match."""

_TRACKERS = ("resource_tracker", "semaphore_tracker", "multiprocessing.forkserver", "billiard.forkserver")
"""Helper processes that the standard library and billiard keep until the interpreter ends."""


class Resources(NamedTuple):
    """What a process holds: open file descriptors, threads, and the machine's segments in ``/dev/shm``."""

    fds: int
    threads: int
    shm: frozenset[str]

    def exceeds(self, before: Resources) -> bool:
        """Return whether there are more descriptors or more threads than before."""
        return self.fds > before.fds or self.threads > before.threads


def measure(pid: int | None = None) -> Resources:
    """Return what the process ``pid`` (by default this one) holds now."""
    process = psutil.Process(pid)
    shm = Path("/dev/shm")
    segments = frozenset(path.name for path in shm.iterdir()) if shm.is_dir() else frozenset[str]()
    return Resources(process.num_fds(), process.num_threads(), segments)


class Snapshot:
    """What exists at one moment, so that what was added later can be named."""

    def __init__(self) -> None:
        self.processes = _related_processes()
        self.threads = set(threading.enumerate())
        self.loops = set(_open_loops())

    def new_processes(self, *, except_pids: Iterable[int] = ()) -> list[str]:
        """Return the living child processes, and those of them that lost their parent, that were not there before.

        A worker that was there before may have new children: it replaces those that were killed, in its own time.
        """
        spared, older = {*except_pids, guardian.pid()}, {pid for pid, _ in self.processes}
        return [
            described
            for pid, _ in sorted(_related_processes() - self.processes)
            if pid not in spared and parent_worker(pid) not in older and (described := _describe(pid))
        ]

    def new_threads(self) -> list[str]:
        """Return the threads that keep the interpreter from ending, and Slotline's own, that were not there before."""
        return [
            repr(thread)
            for thread in threading.enumerate()
            if thread not in self.threads and (not thread.daemon or thread.name.startswith("slotline-"))
        ]

    def new_loops(self) -> list[str]:
        """Return the event loops made since then that nobody closed."""
        return [repr(loop) for loop in _open_loops() if loop not in self.loops]


def remaining(look: Callable[[], list[str]]) -> list[str]:
    """Return what ``look()`` still finds after 3 s (``HARNESS_PATIENCE``), or nothing as soon as it finds none."""
    deadline = time.monotonic() + float(os.environ.get("HARNESS_PATIENCE", "3"))
    while True:
        found = look()
        if not found or time.monotonic() > deadline:
            return found
        time.sleep(0.02)


def keys_without_ttl(client: redis.Redis, spared: Iterable[str] = FRAMEWORK_KEYS) -> list[str]:
    """Return the keys that would stay for ever, those that match a pattern in ``spared`` left out."""
    patterns = tuple(spared)
    names = [key.decode(errors="backslashreplace") for key in client.scan_iter(count=1000)]
    suspects = [name for name in names if not any(fnmatch(name, pattern) for pattern in patterns)]
    with client.pipeline(transaction=False) as pipeline:
        for name in suspects:
            pipeline.pttl(name)
        return sorted(name for name, ttl in zip(suspects, pipeline.execute(), strict=True) if ttl == -1)


_loops: weakref.WeakSet[asyncio.BaseEventLoop] = weakref.WeakSet()


def watch_loops() -> None:
    """Remember every event loop made from now on; called once, before the first test."""
    original = asyncio.BaseEventLoop.__init__

    @wraps(original)
    def remember(self: asyncio.BaseEventLoop) -> None:
        original(self)
        if not _made_by("pytest_asyncio"):  # some of its versions leave a loop of their own for the next test
            _loops.add(self)

    setattr(asyncio.BaseEventLoop, "__init__", remember)  # noqa: B010 - an assignment is refused by the type checker


def _made_by(package: str) -> bool:
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_globals.get("__name__", "").partition(".")[0] == package:
            return True
        if frame.f_code.co_name.startswith("test_"):
            return False
        frame = frame.f_back
    return False


def _open_loops() -> list[asyncio.BaseEventLoop]:
    return [loop for loop in _loops if not loop.is_closed()]


def _related_processes() -> set[tuple[int, int]]:
    """Return pid and start time of this process's descendants and of its orphans.

    A child of a killed child has a parent outside of the process group, but it still carries the group that it was
    born into. Read from ``/proc`` directly, because this runs twice in every test.
    """
    table: dict[int, tuple[int, int, int]] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            stat = (entry / "stat").read_bytes()
        except OSError:
            continue
        fields = stat[stat.rindex(b")") + 2 :].split()  # the command's name before it may hold anything
        if fields[0] != b"Z":
            table[int(entry.name)] = (int(fields[1]), int(fields[2]), int(fields[19]))

    def descends(pid: int) -> bool:
        while pid in table:
            pid = table[pid][0]
            if pid == own:
                return True
        return False

    own, group = os.getpid(), os.getpgrp()
    return {
        (pid, started)
        for pid, (parent, its_group, started) in table.items()
        if pid != own
        and (descends(pid) or (its_group == group and table.get(parent, (0, 0, 0))[1] != group and pid != os.getppid()))
    }


def _describe(pid: int) -> str:
    try:
        command = " ".join(psutil.Process(pid).cmdline())
    except psutil.Error:
        return ""
    return "" if any(name in command for name in _TRACKERS) else f"pid {pid}: {command[:200]}"
