"""Slotline for Taskiq: limits, cached results and leased executors, as middlewares that read a task's labels."""

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
