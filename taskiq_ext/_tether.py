"""A plain function with a slot ends with the worker that renews the slot, in whatever process it runs.

Nothing ends it but that, so that its message can be over before it is.
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
    from concurrent.futures import Future

_tied = False


class AtWork:
    """Whether threads of this process, or a process of a pool of it, are at work on a run."""

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
        """Have ``then`` called in some thread when the thread, or the process, that is at work is done.

        Returns:
            Whether there is one; if not, none will begin any more.
        """
        with self._lock:
            self._then, self._over = then, not self._inside
        if not self._over:
            return True
        future = _handed_to_a_process(self)
        if future is None or future.done():
            return False
        future.add_done_callback(lambda _: then())
        return True


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

    def is_of(self, at_work: AtWork) -> bool:
        """Whether this is the function of the run that ``at_work`` knows about."""
        return self._at_work is at_work

    def __reduce__(self) -> tuple[Any, ...]:
        return Tethered, (self._function, self._worker)


def _handed_to_a_process(at_work: AtWork) -> Future[Any] | None:
    """Return what stands for a run that this process's pools of processes have not ended yet, cancelled or not.

    The pool is the receiver's, and the future is asyncio's alone; all pools have their work in one place, which is not
    documented. Where it is not there nobody can tell, and a run that goes on in a process has no slot.
    """
    pools = sys.modules.get("concurrent.futures.process")  # without it there are none
    for manager in list(getattr(pools, "_threads_wakeups", ())):
        for item in list(getattr(manager, "pending_work_items", {}).values()):
            if any(isinstance(given, Tethered) and given.is_of(at_work) for given in (item.fn, *item.args)):
                future: Future[Any] = item.future
                return future
    return None


def _tie(worker: int) -> None:
    global _tied  # noqa: PLW0603 - about the process
    if not _tied:
        _tied = True
        if sys.platform == "linux" and os.getppid() == worker:
            die_with_parent(worker)  # the worker's event loop forks it, in the main thread
        else:  # that of a fork server
            die_with(worker)
