"""Process pools whose tasks can be killed: :class:`BilliardExecutor` and what it returns and raises.

Names are looked up when they are used: every worker process imports this package, and needs next to nothing of it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from billiard.exceptions import (
        RestartFreqExceeded,
        SoftTimeLimitExceeded,
        Terminated,
        TimeLimitExceeded,
        WorkerLostError,
    )

    from slotline.workers.errors import ExecutorClosedError, TaskExitError, UnpicklableError
    from slotline.workers.executor import BilliardExecutor
    from slotline.workers.jobs import ApplyResult
    from slotline.workers.mapping import IMapIterator, MapResult

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

_HOMES = {
    "ApplyResult": "jobs",
    "BilliardExecutor": "executor",
    "ExecutorClosedError": "errors",
    "IMapIterator": "mapping",
    "MapResult": "mapping",
    "TaskExitError": "errors",
    "UnpicklableError": "errors",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
        globals()[name] = value
        return value
    if name in __all__:  # billiard's own, which may be missing
        from slotline.workers import _billiard  # noqa: PLC0415 - most who import this package need none of it

        return getattr(_billiard.exceptions(), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
