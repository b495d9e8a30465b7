"""Places at which workers kill themselves when they are told to, once."""

from __future__ import annotations

import os
import signal
from typing import Any, NamedTuple

import redis

from tests.harness.workers import in_worker


class Kill(NamedTuple):
    """Who dies, where, and how often the message's task then runs, and ends, if it is acknowledged early or late."""

    who: str
    place: str
    early: tuple[int, int]
    late: tuple[int, int]


def order(client: redis.Redis, place: str, task: str, who: str = "worker") -> None:
    """Have a worker die at ``place`` with the task: its whole process group, or only ``"self"`` or the ``"parent"``."""
    client.set(f"die:{place}:{task}", who, ex=300)


class Places:
    """Looks for orders in a Redis.

    ``parked``: the message is in the room, and not acknowledged to its broker. ``admitted`` and ``taken``: it has its
    slot, the first as it comes from the broker and the second out of the room, and does not run yet. ``running`` is the
    task's own to call. ``ended``: its run has ended and, where that is done late, is not acknowledged.
    """

    def __init__(self, url: str) -> None:
        self._url = url

    def here(self, place: str, task: str) -> bool:
        """Die, if this is where it was ordered; return whether somebody else had to."""
        with redis.Redis.from_url(self._url) as orders:
            who = orders.getdel(f"die:{place}:{task}")
        if who == b"self":
            os.kill(os.getpid(), signal.SIGKILL)
        elif who == b"parent":
            os.kill(os.getppid(), signal.SIGKILL)
        elif who is not None:
            os.killpg(os.getpgrp(), signal.SIGKILL)
        return who is not None

    def prepare_celery(self) -> None:
        """Look at every place, if this is a Celery worker."""
        if not in_worker():
            return
        from celery_ext.parcel import TakenMessage
        from celery_ext.running import Running
        from celery_ext.tenure import Tenure
        from slotline.pools import Parked, SyncRoom

        park, start, is_over = SyncRoom.park, Running.start, Tenure._is_over

        def parked(room: Any, pool: Any, message: bytes, **options: Any) -> Any:
            outcome = park(room, pool, message, **options)
            if isinstance(outcome, Parked):
                self.here("parked", options["owner"].partition("[")[2][:-1])
            return outcome

        def started(running: Any, request: Any, *args: Any) -> None:
            self.here("taken" if isinstance(request.message, TakenMessage) else "admitted", request.id)
            start(running, request, *args)

        def ended(tenure: Any) -> None:
            self.here("ended", tenure.request.id)
            is_over(tenure)

        SyncRoom.park, Running.start, Tenure._is_over = parked, started, ended  # type: ignore[method-assign]

    def prepare_taskiq(self) -> None:
        """Look at every place but where a run has ended, which a middleware must see, if this is a Taskiq worker."""
        if not in_worker():
            return
        from taskiq_ext._delivery import Delivery
        from taskiq_ext.pools import PoolLimitMiddleware

        acknowledge, run_taken, hold = (
            Delivery.acknowledge_parked, PoolLimitMiddleware._run_taken, PoolLimitMiddleware._hold
        )  # fmt: skip

        async def parked(delivery: Any, task_id: str) -> None:
            self.here("parked", task_id)
            await acknowledge(delivery, task_id)

        async def taken(limits: Any, plan: Any, taken: Any, limit: Any) -> None:
            self.here("taken", plan.message_id)
            await run_taken(limits, plan, taken, limit)

        def admitted(limits: Any, plan: Any, pool: Any, slot: Any, limit: Any) -> None:
            self.here("admitted", plan.message_id)
            hold(limits, plan, pool, slot, limit)

        Delivery.acknowledge_parked = parked  # type: ignore[method-assign]
        PoolLimitMiddleware._run_taken, PoolLimitMiddleware._hold = taken, admitted  # type: ignore[method-assign]
