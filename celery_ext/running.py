"""The requests that the worker's pool has, with what each of them holds, from their start to their very end."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from celery.worker import state

from celery_ext import outcome
from celery_ext.flushing import Flushing
from celery_ext.parcel import TakenMessage
from celery_ext.reaping import Reaping
from celery_ext.tenure import NotBegunError, Tenure, process_lives
from celery_ext.unreported import forget_unsent
from celery_ext.writing import write_now
from slotline.pools import Relay
from slotline.pools.fleeting import is_line

if TYPE_CHECKING:
    from celery_ext.following import Lead
    from celery_ext.losses import Losses
    from celery_ext.parking import Parking
    from celery_ext.processes import Processes
    from celery_ext.reporting import Reporting
    from celery_ext.store_watch import StoreWatch
    from slotline.pools import Limit, Slot

LOOK_FOR_CHILD = 0.05
"""Seconds between two looks at a child that is being killed."""


class Running:
    """Starts the requests that have what their limits ask for, and gives that back when they have ended.

    Args:
        consumer: The worker's consumer.
        run: Has the worker's pool run a request.
        processes: The pool's free processes.
        watch: The way to the store.
        losses: What becomes of those that lose their slots.
        parking: The waiting room, from which a message may come with a slot; ``None`` without one.
        reporting: Tells how requests have ended.
        has_children: Whether they run in processes of their own.
        on_lost_of: Gives the ``pool_on_lost`` of a request.
        admit_anew: Called with a request that was taken back from the pool; a process is free for it.

    Attributes:
        relay: The slots that are kept for the next request.
    """

    def __init__(
        self,
        consumer: Any,
        run: Callable[[Any], Any],
        processes: Processes,
        watch: StoreWatch,
        losses: Losses,
        parking: Parking | None,
        reporting: Reporting,
        *,
        has_children: bool,
        on_lost_of: Callable[[Any], str],
        admit_anew: Callable[[Any], None],
    ) -> None:
        self._consumer, self._run = consumer, run
        self._processes, self._watch, self._losses, self._parking = processes, watch, losses, parking
        self._reporting, self._on_lost_of, self._admit_anew = reporting, on_lost_of, admit_anew
        self._has_children = has_children
        self._tenures: set[Tenure] = set()
        self.relay = Relay()
        self._reaping = Reaping(consumer)
        self._flushing = Flushing(consumer.pool, lambda: [tenure.job for tenure in list(self._tenures)])

    def open(self) -> None:
        """Take part in a pool that has started, and in a connection that is new."""
        self._flushing.install()
        self._reaping.install()
        for tenure in list(self._tenures):
            tenure.look_again()

    def close(self) -> bool:
        """Give back what is still held, for the pool has ended; return whether nothing runs any more."""
        for tenure in list(self._tenures):
            if self._has_children or tenure.request.time_start is None:
                self._give_back(tenure)
        self.relay.close()
        return not self._tenures

    def counts(self) -> dict[str, int]:
        """Return how many requests run with a slot, by pool."""
        running: dict[str, int] = {}
        for key in [slot.key for tenure in list(self._tenures) for slot in tenure.slot.slots if not is_line(slot.key)]:
            running[key] = running.get(key, 0) + 1
        return running

    def start(
        self, request: Any, pool: Limit[Any] | None = None, slot: Slot | None = None, lead: Lead | None = None
    ) -> None:
        """Start a request for which a process is free, with the slot and the lead that it has."""
        counts = slot if slot is not None or lead is None else lead.slot
        if counts is None and isinstance(request.message, TakenMessage):
            counts = request.message.taken.slot  # given back with what it waited for; but its end is still to be seen
        if counts is None:
            self._hand_over(request)
            return

        def release() -> None:
            if pool is not None and slot is not None:
                self._let_go(tenure, pool, slot)
            if lead is not None:
                lead.end(tenure.error)

        tenure = Tenure(
            request,
            counts,
            release=release,
            has_child=self._has_children,
            when_gone=self._when_gone,
            on_free=self._ended,
            report=self._reporting.tell,
            told=slot is not None,
        )
        self._tenures.add(tenure)
        if slot is not None:
            self._losses.add(tenure, self._on_lost_of(request))
        self._hand_over(request, tenure)

    def _hand_over(self, request: Any, tenure: Tenure | None = None) -> None:
        try:
            self._run(request)
            if tenure is not None and tenure.may_begin:
                write_now(self._consumer)
        except NotBegunError:
            return
        except BaseException as error:
            if tenure is not None:
                tenure.free()
            if not (self._has_children and isinstance(error, Exception)):
                raise
            self._refuse(request, error)
            return
        if tenure is not None and request._already_revoked:  # noqa: SLF001 - it expired just now: no callback will come
            tenure.free()

    def _refuse(self, request: Any, error: Exception) -> None:
        """Fail a request that cannot be sent to a child, as with arguments that cannot be pickled."""
        try:
            forget_unsent(self._consumer.pool, request)
            self._reporting.tell(outcome.fail, request, error)
        finally:
            self._processes.give_back()

    def free_discarded(self) -> None:
        """Free what the pool has thrown away: on a broken connection it drops the tasks that no process has yet.

        Celery counts on the broker to deliver those again; no callback of theirs will ever come.
        """
        if not (self._has_children and getattr(self._consumer.pool, "flush", None)):
            return  # only prefork throws work away; the others forget a job's handle as soon as they have it
        for tenure in [tenure for tenure in list(self._tenures) if tenure.discarded]:
            self._give_back(tenure)

    def _let_go(self, tenure: Tenure, pool: Limit[Any], slot: Slot) -> None:
        self._losses.remove(slot)  # it may be another's at once
        if self._parking is not None and self._parking.has_next(tenure.request, pool):
            state.reserved_requests.discard(tenure.request)  # it takes no place, though Celery is still to be told
            self._parking.pass_on(pool, slot)
        elif not (tenure.ended_well and self.relay.keep(pool, slot)):
            self._watch.release(pool, slot)

    def _ended(self, tenure: Tenure) -> None:
        self._tenures.discard(tenure)
        if not tenure.withdrawn:
            return
        # Its process is still found for it.
        if tenure.error is None and not isinstance(tenure.request.message, TakenMessage):
            self._admit_anew(tenure.request)
            return
        if tenure.error is None:
            outcome.give_back(tenure.request)
        self._processes.give_back()

    def _give_back(self, tenure: Tenure) -> None:
        message = tenure.request.message
        if isinstance(message, TakenMessage):
            message.requeue()  # unless its run was acknowledged
        tenure.free()

    def _when_gone(self, pid: int, then: Callable[[], None]) -> None:
        if process_lives(pid):
            self._consumer.timer.call_after(LOOK_FOR_CHILD, self._when_gone, (pid, then))
        else:
            then()
