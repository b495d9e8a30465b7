"""How executors end with the process, with their last reference, and at a fork."""

from __future__ import annotations

import atexit
import contextlib
import os
import weakref
from typing import Protocol

from slotline.workers.supervisor import Supervisor


class Forgetful(Protocol):
    """An executor, as far as a fork is concerned."""

    def forget(self) -> None:
        """Drop the parent's workers."""


_executors: weakref.WeakSet[Forgetful] = weakref.WeakSet()
_supervisors: weakref.WeakSet[Supervisor] = weakref.WeakSet()
_registered = False


def follow(executor: Forgetful) -> None:
    """Have executors end before the interpreter does, and start afresh in a process forked from this one."""
    global _registered  # noqa: PLW0603 - the two registrations are the process's, made for its first executor
    _executors.add(executor)
    if not _registered:
        _registered = True
        atexit.register(_finish_all)
        os.register_at_fork(after_in_child=_forget_all)


def end_with(executor: object, supervisor: Supervisor) -> None:
    """Have a supervisor end, once its tasks are finished, when nobody can reach its executor any more."""
    _supervisors.add(supervisor)
    weakref.finalize(executor, _close_unused, supervisor).atexit = False


def _close_unused(supervisor: Supervisor) -> None:
    if supervisor.owner == os.getpid():
        supervisor.close_unlocked()


def _finish_all() -> None:
    """Finish the work of every executor of this process, as the standard library's executors do at exit."""
    mine = [supervisor for supervisor in _supervisors if supervisor.owner == os.getpid()]
    for supervisor in mine:
        supervisor.close()
    for supervisor in mine:
        with contextlib.suppress(Exception):
            supervisor.join()


def _forget_all() -> None:
    for executor in list(_executors):
        executor.forget()
