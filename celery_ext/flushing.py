"""A task that a child process may have is not forgotten by its pool, although the pool has not heard of it yet.

When its connection breaks, and when the worker ends, the consumer has a prefork pool forget every task that no child
has reported yet, for the broker delivers it again. A child to which such a task was just written runs it all the same:
outside its limit, a second time, and its exit waits half a minute for somebody to read its result.
"""

# ruff: noqa: SLF001 - a pool shows nobody what it has written to which child

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any


class Flushing:
    """Stands before the ``flush`` of a prefork pool, and keeps what was written to a living child.

    Args:
        pool: The worker's pool.
        jobs: Gives the jobs that must not be forgotten once they were written.
    """

    def __init__(self, pool: Any, jobs: Callable[[], Iterable[Any]]) -> None:
        self._pool, self._jobs = pool, jobs
        self._flush: Callable[[], Any] | None = None

    def install(self) -> None:
        """Take the place of the pool's ``flush``, which the pool has from its start on."""
        pool = getattr(self._pool, "_pool", None)
        if hasattr(pool, "outbound_buffer") and self._pool.flush is not self:
            self._flush, self._pool.flush = self._pool.flush, self

    def __call__(self) -> None:
        """Forget what no child has."""
        assert self._flush is not None  # noqa: S101 - it has taken its place
        pool = self._pool._pool
        kept = [job for job in self._jobs() if _has_child(job, pool)]
        for job in kept:
            _finish_writing(job, pool)
            job._accepted = True
        self._flush()
        for job in kept:
            # Its child may have ended meanwhile, and told its end, or that it had begun, or nothing.
            job._accepted = job._worker_pid is not None
            if not job._accepted and not job._write_to._is_alive():
                job.discard()
            elif not job.ready():
                pool._cache[job._job] = job


def _has_child(job: Any, pool: Any) -> bool:
    """Return whether a child has begun a job, or has been sent at least the beginning of it."""
    if job is None or job.ready():
        return False
    child = job._write_to
    return bool(job._accepted or (child is not None and child._is_alive() and job not in pool.outbound_buffer))


def _finish_writing(job: Any, pool: Any) -> None:
    # Half a message in a child's pipe makes rubbish of the next one, and a worker that ends sends one more.
    writer = getattr(job, "_writer", None)
    unfinished = None if writer is None else writer()
    if unfinished is not None and unfinished.gi_frame is not None:
        pool._flush_writer(job._write_to, unfinished)
