"""Leased executors: blocking work in a bounded number of pools, each lent to one owner at a time."""

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
