"""How many workers may fail before the executor gives up."""

from __future__ import annotations

import time
from typing import Final

_FAILED_STARTS: Final = 10


class RestartPolicy:
    """Counts workers that ended without being told to.

    With ``max_restarts`` the limit is that many within ``max_restart_freq`` seconds, counted from zero again whenever a
    worker takes a task. Without it only starts count: ten for each process in a row, none of which became ready.
    """

    def __init__(self, processes: int, max_restarts: int | None, max_restart_freq: float) -> None:
        self.max_restarts, self.window = max_restarts, max_restart_freq
        self.max_failed_starts = _FAILED_STARTS * processes
        self.failed_starts = 0
        self._count = 0
        self._since: float | None = None

    def started(self) -> None:
        """Note that a worker became ready."""
        self.failed_starts = 0

    def accepted(self) -> None:
        """Note that a worker took a task."""
        self._count = 0

    def lost(self, *, was_ready: bool) -> str | None:
        """Note that a worker ended; returns why the executor must give up, or ``None``."""
        if not was_ready:
            self.failed_starts += 1
        if self.max_restarts is None:
            if self.failed_starts >= self.max_failed_starts:
                return f"{self.failed_starts} workers in a row ended before they were ready"
            return None
        now = time.monotonic()
        if self._since is None or now - self._since >= self.window:
            self._since, self._count = now, 0
        self._count += 1
        if self._count > self.max_restarts:
            return f"more than {self.max_restarts} restarts in {self.window:g} s"
        return None
