"""What becomes of the requests whose slots are lost, or are to go to others."""

from __future__ import annotations

import signal
from collections import Counter
from functools import partial
from typing import Any

from celery.concurrency.base import BasePool
from celery.utils.log import get_logger

from celery_ext import executors
from celery_ext.mailbox import Mailbox
from celery_ext.tenure import Tenure
from celery_ext.unreported import Unreported
from slotline.errors import SlotLostError
from slotline.metrics import _telling
from slotline.metrics.exporter import KillReason
from slotline.pools import Slot
from slotline.workers.process_tree import kill_with_descendants

logger = get_logger(__name__)


class Losses:
    """Ends the requests that must not go on without their slots, where they can be ended.

    A prefork child is killed with all that it has started, a greenlet is killed, and so is what runs in a lease of the
    worker's own process. It happens in the thread that brings the news: an event loop that waits for the very server
    that is away must not delay it.

    Args:
        pool: The worker's pool.
        mailbox: Where what follows is posted.
        has_children: Whether requests run in processes of their own.

    Attributes:
        counts: How many requests had to end: ``"ended"``, or ``"running"`` on.
    """

    def __init__(self, pool: Any, mailbox: Mailbox, *, has_children: bool) -> None:
        self._pool, self._mailbox, self._has_children = pool, mailbox, has_children
        # Celery 5.4's gevent pool cannot.
        kills = getattr(type(pool), "terminate_job", None) not in {None, BasePool.terminate_job}
        self._kills_greenlets = kills and getattr(pool, "is_green", False)
        self._unreported = Unreported(pool)
        self.counts: Counter[str] = Counter()
        self._tenures: dict[str, tuple[Tenure, str]] = {}

    def add(self, tenure: Tenure, on_lost: str) -> None:
        """Watch over a request that is about to run."""
        self._tenures[tenure.slot.token] = tenure, on_lost
        if tenure.slot.forfeited:  # before it was known here
            self.forfeit(tenure.slot)

    def remove(self, slot: Slot) -> None:
        """Its request has ended."""
        self._tenures.pop(slot.token, None)

    def forfeit(self, slot: Slot) -> None:
        """End the request that holds ``slot``, which is lost or evicted; called in any thread."""
        tenure, on_lost = self._tenures.pop(slot.token, (None, ""))
        if tenure is None:
            return
        loss = "is to give its slot up" if slot.evicted else "has lost its slot"
        error = SlotLostError(slot.key, slot.token, **({"reason": "it was evicted"} if slot.evicted else {}))
        if on_lost == "cancel" and self._end(tenure, error):
            self.counts["ended"] += 1
            logger.warning("%s %s of pool %r, and is ended", tenure.request, loss, slot.key)
            return
        self.counts["running"] += 1
        why = "what runs in a thread cannot be killed" if on_lost == "cancel" else 'pool_on_lost="warn"'
        beside = "" if slot.evicted else " beside its successor"
        logger.error("%s %s of pool %r, and runs on%s: %s", tenure.request, loss, slot.key, beside, why)

    def _end(self, tenure: Tenure, error: SlotLostError) -> bool:
        if self._has_children:
            kill = partial(self._kill_child, "evicted" if tenure.slot.evicted else "slot_lost")
            tenure.end(error, kill, self._unreported)
            self._mailbox.post(tenure.report_when_gone)
            return True
        if executors.end(tenure.slot.token, error):
            return True
        if self._kills_greenlets:
            tenure.end(error, self._pool.terminate_job)
            return True
        return tenure.prevent(error)

    def _kill_child(self, reason: KillReason, pid: int) -> None:
        if (observer := _telling.observer) is not None:
            observer.killed(reason)
        kill_with_descendants(pid, partial(self._pool.terminate_job, pid, signal.SIGKILL))
