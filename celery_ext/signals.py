"""What a process of a worker has started ends with it.

No kind of pool sends all of these signals, and a killed process sends none: worker processes of executors watch their
owner by themselves, and slots and flights end by their leases. The signals only make the ordinary end an orderly one.
"""

from __future__ import annotations

from typing import Any

from celery import signals

from celery_ext.config import runtimes


def connect() -> None:
    """Have the executors of a process stopped when it ends."""
    # Prefork children send the first; threads, solo and green workers only the second, as does the main process.
    signals.worker_process_shutdown.connect(_stop, weak=False, dispatch_uid="slotline-stop")
    signals.worker_shutdown.connect(_stop, weak=False, dispatch_uid="slotline-stop")


def _stop(**_: Any) -> None:
    for runtime in runtimes():
        runtime.close()
