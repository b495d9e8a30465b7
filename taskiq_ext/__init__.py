"""Slotline for Taskiq: limits, cached results and leased executors, as middlewares that read a task's labels.

Names are looked up when they are used: each ``taskiq`` command imports this package for its subcommand ``slotline``,
and needs nothing else of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from slotline._lazy import looked_up

if TYPE_CHECKING:
    from taskiq_ext._limits import PoolLimit
    from taskiq_ext.cache import CacheMiddleware
    from taskiq_ext.dependencies import current_slot, executor, executor_lease
    from taskiq_ext.executors import ExecutorMiddleware
    from taskiq_ext.invalidation import invalidate
    from taskiq_ext.pools import PoolLimitMiddleware

__all__ = [
    "CacheMiddleware",
    "ExecutorMiddleware",
    "PoolLimit",
    "PoolLimitMiddleware",
    "current_slot",
    "executor",
    "executor_lease",
    "invalidate",
]

_HOMES = {
    "CacheMiddleware": "cache",
    "ExecutorMiddleware": "executors",
    "PoolLimit": "_limits",
    "PoolLimitMiddleware": "pools",
    "current_slot": "dependencies",
    "executor": "dependencies",
    "executor_lease": "dependencies",
    "invalidate": "invalidation",
}

__getattr__ = looked_up(__name__, _HOMES)
