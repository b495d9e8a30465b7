"""A child process that has ended is replaced at once, also where its end is seen before it can be reaped.

A child's end is known by a pipe that closes, a moment before the system has the child ready to be waited for. Celery
looks at that moment, often in vain, and then once in five seconds: so long a process is missing, and a task that was
written to the old one just before waits there, with its slot.
"""

# ruff: noqa: SLF001 - a pool has no other place for what it does when a child ends

from __future__ import annotations

from collections.abc import Callable
from typing import Any

SOON, CELERYS = 0.01, 5.0
"""Seconds until a child is looked at again, twice as many each time, up to those of Celery's own look."""


class Reaping:
    """Looks at a child that has ended until its pool has noticed.

    Args:
        consumer: The worker's consumer.
    """

    def __init__(self, consumer: Any) -> None:
        self._consumer = consumer
        self._exited: Callable[[Any, Any], Any] | None = None

    def install(self) -> None:
        """Stand before what a prefork pool does when a child ends, which it has from its start on."""
        pool = self._pool
        if hasattr(pool, "_event_process_exit") and pool._event_process_exit is not self:
            self._exited, pool._event_process_exit = pool._event_process_exit, self

    def __call__(self, hub: Any, child: Any) -> None:
        """Do what the pool does when a child ends, and see to it that it is done."""
        assert self._exited is not None  # noqa: S101 - it has taken its place
        self._exited(hub, child)
        self._look_after(SOON, child)

    @property
    def _pool(self) -> Any:
        return getattr(self._consumer.pool, "_pool", None)

    def _look_after(self, seconds: float, child: Any) -> None:
        if child in self._pool._pool and seconds < CELERYS:
            self._consumer.timer.call_after(seconds, self._look, (2 * seconds, child))

    def _look(self, next_pause: float, child: Any) -> None:
        if child in self._pool._pool:
            self._pool.maintain_pool()
            self._look_after(next_pause, child)
