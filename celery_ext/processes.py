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

    Args:
        worker: The ``WorkController``.
        consumer: Its consumer.
    """

    def __init__(self, worker: Any, consumer: Any) -> None:
        self._worker = worker
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
        return self._worker.semaphore.acquire(then, *what)

    def take(self) -> bool:
        """Take a process if one is free and nobody waits for it; where none are counted, nothing is taken."""
        if not self.counted or self._worker.semaphore.value <= 0:
            return False
        self._worker.semaphore.acquire(_nothing)
        return True

    def find(self, then: Callable[[Any], Any], what: Any) -> None:
        """Call ``then(what)`` when a process is free, in turn."""
        if self.counted:
            self._worker.semaphore.acquire(then, what)
        else:
            then(what)

    def find_first(self, then: Callable[[Any], Any], what: Any) -> None:
        """Call ``then(what)`` when a process is free, before all others who wait for one."""
        semaphore = self._worker.semaphore if self.counted else None
        if semaphore is None or semaphore.value > 0:
            self.find(then, what)
        else:
            semaphore._waiting.appendleft((then, (what,), {}))  # noqa: SLF001 - checked by check_worker


def _nothing() -> None:
    pass
