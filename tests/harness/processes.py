"""Whether processes still live."""

from __future__ import annotations

import psutil


def alive(pid: int) -> bool:
    """Tell whether a process lives; one that only waits to be buried does not."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def gone(*pids: int) -> bool:
    """Tell whether all of these processes have ended."""
    return not any(map(alive, pids))
