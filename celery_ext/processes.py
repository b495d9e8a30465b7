"""The worker's free pool processes, as far as the consumer counts them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from celery_ext._compat import has_semaphore


class Processes:
    """Who gets a pool process next.

    A prefork worker with an event loop finds a free process before it hands over a request; one that does not need
    it gives it back. Other pools queue what they get, and there is nothing to count.

    Celery's pool says twice that a process is free which it replaces after its last task: with that task's result, and
    when the new one is there. Each time one task more would be handed over than there are processes, and wait for one
    with its slot; so whoever is found a process gets it only if there is one.

    Args:
        worker: The ``WorkController``.
        consumer: Its consumer.
    """

    def __init__(self, worker: Any, consumer: Any) -> None:
        self._worker, self._consumer = worker, consumer
        self.counted = has_semaphore(worker, consumer)
        self._owed = 0
        self._giving_back = self._in_hand = False
        if self.counted:
            worker._quick_acquire = self._acquire  # noqa: SLF001 - checked by check_worker

    def give_back(self) -> None:
        """Give back the process that the request at hand was found."""
        if not self.counted:
            return
        # Giving one back may start the next waiting request, which may give its own back at once, and so on: the
        # outermost call does it for all of them.
        self._owed += 1
        if self._giving_back:
            return
        self._giving_back = True
        try:
            while self._owed:
                self._owed -= 1
                self._worker._quick_release()  # noqa: SLF001 - checked by check_worker
        finally:
            self._giving_back = False

    @contextmanager
    def in_hand(self) -> Iterator[None]:
        """Let the request that is handed over inside have the process that was found before."""
        self._in_hand = self.counted
        try:
            yield
        finally:
            if self._in_hand:  # it was not handed over: it waits for a time, or will never run
                self._in_hand = False
                self.give_back()

    def _acquire(self, then: Callable[..., Any], *what: Any) -> Any:
        if self._in_hand:
            self._in_hand = False
            then(*what)
            return True
        return self._worker.semaphore.acquire(self._found, then, *what)

    def _found(self, then: Callable[..., Any], *what: Any) -> None:
        if self._overdrawn:
            self._wait_first(then, *what)  # the process that was found is none, and is given back to nobody
        else:
            then(*what)

    @property
    def _overdrawn(self) -> bool:
        """Whether the pool has more to run than processes; what has just ended may count still."""
        pool: Any = getattr(self._consumer.pool, "_pool", None)
        jobs: dict[int, Any] = getattr(pool, "_cache", {})
        processes: int = getattr(pool, "_processes", 0)
        if len(jobs) <= processes:
            return False
        # What has lost its process ends without another word of that.
        return sum(not job.ready() and job._worker_lost is None for job in jobs.values()) > processes  # noqa: SLF001 - billiard's

    def _wait_first(self, then: Callable[..., Any], *what: Any) -> None:
        self._worker.semaphore._waiting.appendleft((self._found, (then, *what), {}))  # noqa: SLF001 - checked by check_worker

    def take(self) -> bool:
        """Take a process if one is free and nobody waits for it; where none are counted, nothing is taken."""
        if not self.counted or self._worker.semaphore.value <= 0 or self._overdrawn:
            return False
        self._worker.semaphore.acquire(_nothing)
        return True

    def find(self, then: Callable[[Any], Any], what: Any) -> None:
        """Call ``then(what)`` when a process is free, in turn."""
        if self.counted:
            self._worker.semaphore.acquire(self._found, then, what)
        else:
            then(what)

    def find_first(self, then: Callable[[Any], Any], what: Any) -> None:
        """Call ``then(what)`` when a process is free, before all others who wait for one."""
        if not self.counted or self._worker.semaphore.value > 0:
            self.find(then, what)
        else:
            self._wait_first(then, what)


def _nothing() -> None:
    pass
