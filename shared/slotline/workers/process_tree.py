"""What keeps processes together in life and death, and what else Python does not offer of the kernel."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import signal
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, Final

EX_CHANNEL: Final = 0x9C
"""The exit code of a worker whose task has closed the worker's own connection."""

_PR_SET_PDEATHSIG: Final = 1
_PR_SET_CHILD_SUBREAPER: Final = 36
_FALLOC_PUNCH_HOLE_KEEP_SIZE: Final = 3
_ROUNDS: Final = 200
_ROUND_SECONDS: Final = 0.0005


@functools.cache
def _libc() -> Any:
    return ctypes.CDLL(None, use_errno=True)


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when the thread that forked it ends; end now if that has happened.

    The signal follows the forking *thread*, so this is right only where the parent forks in its main thread.
    """
    _libc().prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


def adopt_orphans() -> None:
    """Become the parent of every descendant whose own parent ends, however it has daemonised itself; on Linux."""
    with contextlib.suppress(AttributeError):
        _libc().prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def punch_hole(fd: int, offset: int, length: int) -> None:
    """Give a part of a file's memory back to the system; the file keeps its length and reads as zeros there."""
    _libc().fallocate(fd, _FALLOC_PUNCH_HOLE_KEEP_SIZE, ctypes.c_longlong(offset), ctypes.c_longlong(length))


def own_session() -> None:
    """Lead a session and a process group of one's own, out of reach of the terminal's signals."""
    with contextlib.suppress(OSError):
        os.setsid()


def kill_group(leader: int) -> None:
    """Kill every process of a group; none left is fine."""
    with contextlib.suppress(OSError):
        os.killpg(leader, signal.SIGKILL)


def children() -> list[int]:
    """Return the pids of this process's children, those that were adopted included."""
    try:
        return [int(pid) for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()]
    except OSError:
        return [
            int(entry.name)
            for entry in Path("/proc").iterdir()
            if entry.name.isdigit() and _parent(entry) == os.getpid()
        ]


def _parent(entry: Path) -> int | None:
    try:
        return int((entry / "stat").read_text().rpartition(")")[2].split()[1])
    except (OSError, IndexError, ValueError):
        return None


def descendants(pid: int) -> list[int]:
    """Return the pids of a process's children, of theirs, and so on, where the system shows them."""
    if not Path("/proc/self").exists():
        return []
    parents = {int(entry.name): _parent(entry) for entry in Path("/proc").iterdir() if entry.name.isdigit()}
    found = [pid]
    for one in found:
        found.extend(child for child, parent in parents.items() if parent == one)
    return found[1:]


def kill_with_descendants(pid: int, kill: Callable[[], object]) -> None:
    """Kill a process by ``kill()``, and with it all that it has started."""
    with contextlib.suppress(OSError):
        os.kill(pid, signal.SIGSTOP)  # it starts nothing any more
    begun = descendants(pid)
    kill()
    for other in begun:
        with contextlib.suppress(OSError):
            os.kill(other, signal.SIGKILL)


def kill_strangers(known: Collection[int]) -> None:
    """Kill and reap all children except those that are ``known``, and their children, until none is left.

    A process that cannot die now (it waits for a disk) is left after 0.1 s; the next call finds it again.
    """
    for _ in range(_ROUNDS):
        strangers = [pid for pid in children() if pid not in known]
        if not strangers:
            return
        for pid in strangers:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        gone = 0
        for pid in strangers:
            try:
                gone += os.waitpid(pid, os.WNOHANG)[0] == pid
            except ChildProcessError:
                gone += 1
        if not gone:
            time.sleep(_ROUND_SECONDS)


def how_it_ended(code: int | None) -> str:
    """Return in words what a process's exit code, as Python gives it, says of its end."""
    if code is None:
        return "its exit status is not known"
    if code == EX_CHANNEL:
        return "the task closed file descriptors that belong to the worker, so its result could not be sent"
    if code >= 0:
        return f"the task ended it with exit code {code} (os._exit or a crash)"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = "no known name"
    return f"it was killed by signal {-code} ({name})"
