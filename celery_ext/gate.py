"""The gate: what stands between the worker's consumer and its pool of processes or threads.

Every request that the consumer hands over, at once, after an ETA or after a rate limit, comes to :meth:`Gate.process`.
Its message is not acknowledged yet, whatever ``acks_late`` says, and a prefork worker has a free process for it. A
request without a limit goes on at once; one with a limit takes a slot, or is held, refused or dropped.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from celery.utils.log import get_logger

from celery_ext import outcome
from celery_ext._compat import check_worker
from celery_ext.answers import tell_answer
from celery_ext.config import runtime
from celery_ext.following import Following, Lead
from celery_ext.held import Held, is_over, owner_of
from celery_ext.limits import LimitReader
from celery_ext.losses import Losses
from celery_ext.mailbox import attempt, mailbox_for
from celery_ext.parcel import TakenMessage
from celery_ext.parking import Parking
from celery_ext.pausing import Pausing
from celery_ext.processes import Processes
from celery_ext.reporting import Reporting
from celery_ext.running import Running
from celery_ext.slot import failure_of
from celery_ext.store_watch import StoreWatch
from celery_ext.waiting import Waiting
from slotline._checks import refuse
from slotline.errors import (
    InvalidOptionError,
    PoolFullError,
    StoreError,
    StoreUnavailableError,
)
from slotline.metrics import _telling
from slotline.pools import Limit, Slot
from slotline.pools.demand import KeptLimits
from slotline.pools.fleeting import is_line
from slotline.stores import Store

logger = get_logger(__name__)


class Gate:
    """Admits, holds, refuses and drops the requests of one worker.

    Nothing that is held is lost: its message stays unacknowledged, so the broker delivers it again when this worker
    ends or dies.

    Args:
        worker: The ``WorkController``.
        consumer: Its consumer, whose strategies are not built yet.

    Raises:
        UnsupportedFrameworkError: This Celery lacks a part that the gate needs.
        InvalidOptionError: A task of the app, or its settings, cannot be used.
    """

    def __init__(self, worker: Any, consumer: Any) -> None:
        check_worker(worker, consumer)
        using = runtime(worker.app)
        self._consumer = consumer
        self._on_store_error = using.on_store_error
        self._run: Callable[[Any], Any] = worker._process_task  # noqa: SLF001 - checked by check_worker
        self._mailbox = mailbox_for(consumer)
        self._processes = Processes(worker, consumer)
        self._store, self._owns_store = using.store_for_gate()
        self._watch = StoreWatch(self._store, lambda: self._mailbox.post(self._store_is_back))
        self._pausing = Pausing(consumer, self._mailbox, self._watch)
        has_children = bool(getattr(consumer.pool, "uses_semaphore", False))
        self._losses = Losses(consumer.pool, self._mailbox, has_children=has_children)
        self._reporting = Reporting(self._mailbox)
        self._waiting = Waiting(
            consumer,
            self._mailbox,
            self._processes,
            self._watch,
            self._pausing,
            self._reporting,
            start=lambda held, slot: self._begin(held.request, held.pool, slot),
            hand_over=self.process,
        )
        self._parking: Parking | None = None
        self._following: Following | None = None
        if self._store.shared:
            self._parking = Parking(
                consumer, self._mailbox, self._processes, self._watch, using.config.room, self._losses.forfeit
            )
            self._following = Following.of(using, self._watch, self._parking)
        self._reader = LimitReader(worker.app, using.config, self._store, follows=self._following is not None)
        self._limits = KeptLimits(self._store, self._losses.forfeit)
        self._running = Running(
            consumer,
            self._run,
            self._processes,
            self._watch,
            self._losses,
            self._parking,
            self._reporting,
            has_children=has_children,
            on_lost_of=self._reader.on_lost_of,
            admit_anew=lambda request: self._mailbox.do(self._admit, request),
        )
        self._open = True
        if self._parking is None and "park" in self._reader.policies:
            raise _cannot_park(self._store)
        worker._process_task = self.process  # noqa: SLF001 - checked by check_worker
        if not self._processes.counted:
            consumer.on_task_request = self.process

    def process(self, request: Any) -> Any:
        """Take over a request; called by the consumer, or by the semaphore that found a free process for it."""
        if self._reader.is_free(request):
            return self._run(request)
        if self._parking is not None and self._parking.hands_over(request.message):
            attempt(self._admit, request)
        else:
            self._mailbox.do(self._admit, request)
        return None

    def register(self, hub: Any) -> None:
        """Take part in the consumer's event loop."""
        self._mailbox.register(hub)

    def open(self) -> None:
        """Admit requests from now on; the consumer has a connection."""
        self._open = True
        self._running.open()
        if self._parking is not None:
            self._mailbox.do(self._parking.open)

    def let_go(self) -> None:
        """Forget what is held: the connection is gone or the worker ends, and the broker has its messages still."""
        self._open = False
        if self._parking is not None:
            self._mailbox.do(self._parking.let_go)
        self._mailbox.do(self._waiting.let_go)
        self._mailbox.do(self._running.free_discarded)

    def close(self) -> None:
        """Give back what the worker still has; its pool has ended."""
        self.let_go()
        self._reporting.close()
        if not self._running.close():  # threads that a cold shutdown has not waited for keep their slots to the end
            return
        self._watch.close()
        self._mailbox.close()
        if self._owns_store:
            self._store.sync.close()

    def counts(self) -> dict[str, Any]:
        """Return how many requests run with a slot and how many are held, by pool."""
        losses = {"losses": dict(self._losses.counts)} if self._losses.counts else {}
        return {"running": self._running.counts(), "held": self._waiting.counts(), **losses}

    def _admit(self, request: Any) -> None:
        if isinstance(request.message, TakenMessage):
            self._admit_taken(request, request.message)
            return
        if is_over(request) or not self._open:
            self._processes.give_back()
            return
        self._admit_here(request)

    def _admit_taken(self, request: Any, message: TakenMessage) -> None:
        taken = message.taken
        if is_over(request):  # acknowledged, and its slot with it
            self._processes.give_back()
        elif (
            not self._open
            or message.acknowledged  # given back with a connection that is gone, while this one came about
            or taken.runs_elsewhere
        ):
            outcome.give_back(request)
            self._processes.give_back()
        else:
            message.begin(request)
            if self._following is not None and is_line(taken.pool.key):
                lead = self._following.resume(request, message)
                self._admit_here(request, lead, looked=True)
            else:
                self._begin(request, taken.pool, taken.slot)

    def _admit_here(self, request: Any, lead: Lead | None = None, *, looked: bool = False) -> None:
        """Have a request take the slot that its limit asks for, and begin.

        Args:
            request: The request; a process is free for it.
            lead: Its right to make a value; if it cannot begin at once it gives that back.
            looked: Whether the cache was looked at by now.
        """
        begun = False
        try:
            limit = None if failure_of(request) else self._reader.limit_of(request)
            if limit is None:
                begun = True
                self._begin(request, lead=lead, looked=looked)
                return
            if self._following is not None and tell_answer(request, self._watch, old=False):
                self._running.start(request)
                return
            held = Held.from_now(request, limit, self._limits.of(limit))
            slot = self._slot_or_turn_away(held)
            if slot is not None:
                begun = True
                self._begin(request, held.pool, slot, lead=lead, looked=looked)
        except (InvalidOptionError, TypeError) as error:
            self._refuse(request, error)
        finally:
            if lead is not None and not begun:
                lead.end()

    def _slot_or_turn_away(self, held: Held) -> Slot | None:
        try:
            return self._slot_for(held)
        except PoolFullError as error:
            try:
                self._reporting.tell(outcome.turn_away, held.request, held.limit.on_full, error)
            finally:
                self._processes.give_back()
        except StoreUnavailableError as error:
            self._without_store(held, error)
        except (StoreError, InvalidOptionError, UnicodeError) as error:  # asking again brings nothing else
            self._refuse(held.request, error)
        return None

    def _begin(
        self,
        request: Any,
        pool: Limit[Any] | None = None,
        slot: Slot | None = None,
        *,
        lead: Lead | None = None,
        looked: bool = False,
    ) -> None:
        """Start a request that has what its limit asks for, unless it is parked for a value that is being made."""
        if not looked and self._following is not None:
            found = self._following.lead(request)
            if isinstance(found, Lead):
                lead = found
            elif found is not None:
                if pool is not None and slot is not None:
                    self._watch.release(pool, slot)
                return
        self._running.start(request, pool, slot, lead)

    def _slot_for(self, held: Held) -> Slot | None:
        passed = self._passed_on(held)
        if passed is not None:
            return passed
        policy = held.limit.on_full
        if policy == "stale":
            try:
                return self._waiting.take_now(held)
            except PoolFullError as error:
                if tell_answer(held.request, self._watch, old=True):
                    _telling.turned_away(error, "stale")
                    self._running.start(held.request)
                    return None
            policy = None
        evict = policy == "cancel_oldest"
        if evict:
            policy = None
        if policy == "park" and self._parking is None:
            raise _cannot_park(self._store)
        lane = self._parking.lane_of(held.request) if self._parking is not None and held.limit.parks else None
        if self._parking is not None and lane is not None:
            slot = self._parking.park(
                held.request,
                lambda room, message, owner: room.sync.park(
                    held.pool, message, lane=lane, owner=owner, **held.limit.share
                ),
            )
            if slot is None:
                self._parking.note(held.pool)
                if evict:
                    self._pausing.evict(held)
            return slot
        return self._waiting.take_or_hold(held) if policy in {"park", "wait", None} else self._waiting.take_now(held)

    def _passed_on(self, held: Held) -> Slot | None:
        limit, request = held.limit, held.request
        # The first copy of what is delivered again may be in the room, or run from there: only the store knows.
        if not limit.is_plain or limit.line in self._waiting or request.delivery_info.get("redelivered"):
            return None
        return self._running.relay.take(held.pool, owner_of(request))

    def _without_store(self, held: Held, error: StoreError) -> None:
        if self._on_store_error == "open":
            self._running.start(held.request)
        elif self._on_store_error == "fail":
            self._refuse(held.request, error)
        else:
            logger.warning("%s is held until its limit can be asked: %s", held.request, error)
            self._waiting.hold_unasked(held)

    def _refuse(self, request: Any, error: Exception) -> None:
        try:
            self._reporting.tell(outcome.fail, request, error)
        finally:
            self._processes.give_back()

    def _store_is_back(self) -> None:
        self._waiting.store_is_back()
        if self._parking is not None:
            self._parking.take_soon()


def _cannot_park(store: Store) -> InvalidOptionError:
    return refuse("pool_on_full", "park", f"used with a store that processes share, unlike the {store.name} store")
