"""A plain function with a slot ends with the worker that renews the slot, in whatever process it runs.

In a thread nothing ends it, so that its message can be over before it is.
"""

from __future__ import annotations

import asyncio
import functools
import os
import sys
import threading
from typing import TYPE_CHECKING, Any

from slotline.leases._child import die_with
from slotline.workers.process_tree import die_with_parent

if TYPE_CHECKING:
    from collections.abc import Callable

_tied = False


class AtWork:
    """Whether threads of this process are at work on a run."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._over = False
        self._then: Callable[[], None] | None = None

    def __enter__(self) -> None:
        with self._lock:
            if self._over:  # its slot has been given back, and nobody asks for its outcome
                raise asyncio.CancelledError
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            then = None if self._inside else self._then
        if then is not None:
            then()

    def when_over(self, then: Callable[[], None]) -> bool:
        """Have ``then`` called in the thread that is at work, when it is done.

        Returns:
            Whether there is one; if not, none will begin any more.
        """
        with self._lock:
            self._then, self._over = then, not self._inside
            return not self._over


class Tethered:
    """A function that runs as ever in a thread of this process, and in a process of its pool is killed with this one.

    Such a process would go on with its run after its worker was killed, beside whoever has its slot then.
    """

    def __init__(self, function: Callable[..., Any], worker: int, at_work: AtWork | None = None) -> None:
        # Whoever meets the task for the first time reads signature, hints and dependencies off what it runs, the
        # hints of an object off its ``__call__``.
        functools.update_wrapper(self, function)
        self.__dict__["__call__"] = function
        self._function, self._worker, self._at_work = function, worker, at_work

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self._at_work is not None:
            with self._at_work:
                return self._function(*args, **kwargs)
        if os.getpid() != self._worker:
            _tie(self._worker)
        return self._function(*args, **kwargs)

    def __reduce__(self) -> tuple[Any, ...]:
        return Tethered, (self._function, self._worker)


def _tie(worker: int) -> None:
    global _tied  # noqa: PLW0603 - about the process
    if not _tied:
        _tied = True
        if sys.platform == "linux" and os.getppid() == worker:
            die_with_parent(worker)  # the worker's event loop forks it, in the main thread
        else:  # that of a fork server
            die_with(worker)
