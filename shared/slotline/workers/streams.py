"""What a task may do to its process's standard streams, to the harm of the next one."""

from __future__ import annotations

import select
import sys
from typing import Any


class Streams:
    """Notices when a task closes stdin, stdout or stderr, the object or the descriptor."""

    def __init__(self) -> None:
        self.poll = select.poll()
        for fd in (0, 1, 2):
            self.poll.register(fd, 0)
        self.at_first = self.closed()

    def closed(self) -> list[Any]:
        """Return which are closed."""
        closed: list[Any] = [s for s in (sys.stdin, sys.stdout, sys.stderr) if getattr(s, "closed", False)]
        for fd, event in self.poll.poll(0):
            if event & select.POLLNVAL:
                closed.append(fd)
        return closed

    def damaged(self) -> bool:
        """Return whether any was closed since the first task."""
        return self.closed() != self.at_first
