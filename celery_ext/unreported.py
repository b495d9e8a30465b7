"""Jobs that no child process has reported yet: still in the worker's hands, or in the pipe of a child."""

# ruff: noqa: SLF001 - a pool shows nobody what it has written to which child

from __future__ import annotations

import signal
from typing import Any

from celery_ext.tenure import process_lives


class Unreported:
    """Stops jobs of a prefork pool of which nobody knows whether they have begun; in any thread.

    Only the worker's event loop writes jobs to children, and hears from them. While it stands still, a child may have
    begun what it was sent just before; and what was still to be sent goes out when the loop goes on, however late.

    Args:
        pool: The worker's pool.
    """

    def __init__(self, pool: Any) -> None:
        self._pool = pool

    def withdraw(self, job: Any) -> bool:
        """Take a job back that no child was sent; return whether that was in time."""
        job.terminate(signal.SIGKILL)  # so that no other child gets it, should the one that was sent it die
        try:
            self._pool._pool.outbound_buffer.remove(job)  # the loop writes only what it has taken out itself
        except (AttributeError, ValueError):  # without an event loop there is no such buffer
            return False
        return True

    def child_of(self, job: Any) -> int | None:
        """Return the child that a job was sent to; ``None`` where none was, or where it may run another one, too."""
        from celery.concurrency.asynpool import SCHED_STRATEGY_FAIR  # noqa: PLC0415 - only prefork has it

        fair = getattr(self._pool._pool, "sched_strategy", None) == SCHED_STRATEGY_FAIR
        child = getattr(job, "_write_to", None)
        return child.pid if fair and child is not None and process_lives(child.pid) else None


def forget_unsent(pool: Any, request: Any) -> None:
    """Have a prefork pool forget a request that it could not pickle: it would count it as one that runs, for ever."""
    jobs: dict[int, Any] = getattr(getattr(pool, "_pool", None), "_cache", {})
    newest = next(reversed(jobs.values()), None)
    if newest is not None and newest.correlation_id == request.id:
        newest.discard()
