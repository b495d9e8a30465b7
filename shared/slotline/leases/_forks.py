"""Managers that a fork has copied start afresh in the child."""

from __future__ import annotations

import os
import weakref
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from slotline.leases.manager import LeasedExecutorManager

_managers: weakref.WeakSet[LeasedExecutorManager] = weakref.WeakSet()
_watched: list[int] = []


def watch_forks(manager: LeasedExecutorManager) -> None:
    """Have a manager told when it finds itself in a forked child."""
    if not _watched:
        _watched.append(os.getpid())
        os.register_at_fork(after_in_child=_begin_anew)
    _managers.add(manager)


def _begin_anew() -> None:
    for manager in list(_managers):
        manager.begin_anew_after_fork()
