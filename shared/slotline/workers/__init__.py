"""Process pools whose tasks can be killed: :class:`BilliardExecutor` and what it returns and raises."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from slotline.workers import _billiard
from slotline.workers.errors import ExecutorClosedError, TaskExitError, UnpicklableError
from slotline.workers.executor import BilliardExecutor
from slotline.workers.jobs import ApplyResult
from slotline.workers.mapping import IMapIterator, MapResult

if TYPE_CHECKING:
    from billiard.exceptions import (
        RestartFreqExceeded,
        SoftTimeLimitExceeded,
        Terminated,
        TimeLimitExceeded,
        WorkerLostError,
    )

__all__ = [
    "ApplyResult",
    "BilliardExecutor",
    "ExecutorClosedError",
    "IMapIterator",
    "MapResult",
    "RestartFreqExceeded",
    "SoftTimeLimitExceeded",
    "TaskExitError",
    "Terminated",
    "TimeLimitExceeded",
    "UnpicklableError",
    "WorkerLostError",
]


def __getattr__(name: str) -> Any:
    if name in _billiard.EXCEPTIONS:
        return getattr(_billiard.exceptions(), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
