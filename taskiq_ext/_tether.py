"""A plain function with a slot ends with the worker that renews the slot, in whatever process it runs."""

from __future__ import annotations

import functools
import os
import sys
from typing import TYPE_CHECKING, Any

from slotline.leases._child import die_with
from slotline.workers.process_tree import die_with_parent

if TYPE_CHECKING:
    from collections.abc import Callable

_tied = False


class Tethered:
    """A function that runs as ever in a thread of this process, and in a process of its pool is killed with this one.

    Such a process would go on with its run after its worker was killed, beside whoever has its slot then.
    """

    def __init__(self, function: Callable[..., Any], worker: int) -> None:
        # Whoever meets the task for the first time reads signature, hints and dependencies off what it runs, the
        # hints of an object off its ``__call__``.
        functools.update_wrapper(self, function)
        self.__dict__["__call__"] = function
        self._function, self._worker = function, worker

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
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
