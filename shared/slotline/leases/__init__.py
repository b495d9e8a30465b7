"""Leased executors: blocking work in a bounded number of pools, each lent to one owner at a time.

Names are looked up when they are used: every worker process imports this package, and needs next to nothing of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from slotline._lazy import looked_up

if TYPE_CHECKING:
    from slotline.leases.backend import ExecutorBackend
    from slotline.leases.grinder import WorkGrinder
    from slotline.leases.lease import ExecutorLease
    from slotline.leases.manager import LeasedExecutorManager
    from slotline.leases.process_logging import ProcessLoggingConfig
    from slotline.leases.registry import ManagerRegistry
    from slotline.leases.running import Limits, limits_for, run_in_lease, run_in_lease_sync

__all__ = [
    "ExecutorBackend",
    "ExecutorLease",
    "LeasedExecutorManager",
    "Limits",
    "ManagerRegistry",
    "ProcessLoggingConfig",
    "WorkGrinder",
    "limits_for",
    "run_in_lease",
    "run_in_lease_sync",
]

_HOMES = {
    "ExecutorBackend": "backend",
    "ExecutorLease": "lease",
    "LeasedExecutorManager": "manager",
    "Limits": "running",
    "ManagerRegistry": "registry",
    "ProcessLoggingConfig": "process_logging",
    "WorkGrinder": "grinder",
    "limits_for": "running",
    "run_in_lease": "running",
    "run_in_lease_sync": "running",
}

__getattr__ = looked_up(__name__, _HOMES)
