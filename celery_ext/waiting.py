"""The requests that this worker holds until their pools have slots for them."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from celery.utils.log import get_logger
from celery.worker import state

from celery_ext import outcome
from celery_ext.held import Held, Line, LineName, ended, is_over
from celery_ext.mailbox import Mailbox
from celery_ext.parcel import TakenMessage
from celery_ext.pausing import Pausing
from celery_ext.processes import Processes
from celery_ext.reporting import Reporting
from celery_ext.store_watch import StoreWatch
from slotline.errors import PoolFullError, PoolTimeoutError, StoreError
from slotline.metrics import _telling
from slotline.pools import Place, Slot
from slotline.steps import Paused

logger = get_logger(__name__)

LOOK_AGAIN = 0.25
"""Seconds between two looks at the clocks and revocations of what is held; no store is asked."""
SOONEST = 0.005
"""Seconds between two looks at a pool whose slots come faster than that, by its rate or by their expiry."""


class Waiting:
    """Holds requests, one line for each pool and partition, and starts them as slots are granted.

    All methods are called in the mailbox's line of execution.

    Args:
        consumer: The worker's consumer.
        mailbox: Where what happens in other threads is posted.
        processes: The pool's free processes.
        watch: The way to the store.
        pausing: Asks it for those who do not wait.
        reporting: Tells how requests have ended.
        start: Starts a request that has a slot; a process is free for it.
        hand_over: Has a request admitted anew; a process is free for it.
    """

    def __init__(
        self,
        consumer: Any,
        mailbox: Mailbox,
        processes: Processes,
        watch: StoreWatch,
        pausing: Pausing,
        reporting: Reporting,
        *,
        start: Callable[[Held, Slot], None],
        hand_over: Callable[[Any], None],
    ) -> None:
        self._consumer, self._mailbox, self._processes, self._watch = consumer, mailbox, processes, watch
        self._start, self._hand_over = start, hand_over
        self._pausing, self._reporting = pausing, reporting
        self._lines: dict[LineName, Line] = {}
        self._called: dict[Held, Slot | None] = {}
        self._unasked: list[Held] = []
        self._ticking = self._warned = False
        self._connection = object()

    def __contains__(self, name: tuple[tuple[str, str | None], ...]) -> bool:
        return (name, ()) in self._lines

    def counts(self) -> dict[str, int]:
        """Return how many requests are held, by pool."""
        held: Counter[str] = Counter()
        for (pools, _), line in list(self._lines.items()):
            for key, _ in pools:
                held[key] += len(line.waiting)
        return dict(held)

    def take_or_hold(self, held: Held) -> Slot | None:
        """Return a slot for a request, or hold it until there is one.

        Raises:
            StoreError: The store cannot be asked; the request is not held.
            PoolTimeoutError: There is no slot now, and the request does not want to wait.
        """
        name = (held.limit.line, ())
        line = self._lines.get(name)
        if held.limit.timeout == 0:
            try:
                return self.take_now(held)
            except PoolFullError:
                raise PoolTimeoutError(held.limit.key, held.size, timeout=0.0) from None
        if line is None:
            line = Line(name)
            line.waiting.append(held)
            try:
                slot = self._stand(line)
            except StoreError:
                line.leave()
                raise
            if slot is not None:
                line.serve()
                return slot
            self._lines[line.name] = line
            self._wait_on(line)
        else:
            line.waiting.append(held)
            held.since = time.monotonic()
            if (observer := _telling.observer) is not None:
                observer.decided(held.pool.pools[0], "queued")
        self._keep(held)
        return None

    def take_now(self, held: Held) -> Slot | None:
        """Return a slot for a request that does not wait, or hold it for the moment in which one may only rest.

        Raises:
            PoolFullError: There is none, or others wait for it already.
            StoreError: The store cannot be asked.
        """
        if (held.limit.line, ()) in self._lines:
            if (observer := _telling.observer) is not None:
                observer.decided(held.pool.pools[0], "refused")
            raise PoolFullError(held.limit.key, held.size)
        outcome = self._pausing.acquire(held)
        if not isinstance(outcome, Paused):
            return outcome
        held.until = None  # it is asked for anew, and waits no longer than that
        self.hold_unasked(held)
        self._consumer.timer.call_after(outcome.seconds, self._mailbox.post, (self._ask_now, held))
        return None

    def _ask_now(self, held: Held) -> None:
        if held in self._unasked:
            self._unasked.remove(held)
            self._admit_anew(held)

    def hold_unasked(self, held: Held) -> None:
        """Hold a request whose pool cannot be asked, until it can; it is then admitted anew."""
        self._unasked.append(held)
        self._keep(held)

    def store_is_back(self) -> None:
        """Ask again for everything that could not be asked."""
        unasked, self._unasked = self._unasked, []
        for held in unasked:
            self._admit_anew(held)
        for line in list(self._lines.values()):
            self._pump(line)

    def _admit_anew(self, held: Held) -> None:
        self._consumer.qos.decrement_eventually()
        state.task_reserved(held.request)
        self._called[held] = None
        self._processes.find(self._process_found, held)

    def let_go(self) -> None:
        """Forget everything: the broker has the messages still, and the room has again what came out of it."""
        unasked, self._unasked = self._unasked, []
        lines, self._lines = self._lines, {}
        called, self._called = self._called, {}
        self._ticking, self._connection = False, object()
        for line in lines.values():
            line.leave()
            unasked += line.waiting
        for held, slot in called.items():
            if slot is not None:
                self._watch.release(held.pool, slot)
        for held in [*unasked, *called]:
            state.requests.pop(held.request.id, None)
            state.reserved_requests.discard(held.request)
            if isinstance(held.request.message, TakenMessage):
                held.request.message.requeue()

    def _keep(self, held: Held) -> None:
        # A held request is not one that the pool has: workers that count those must go on to take others.
        state.reserved_requests.discard(held.request)
        self._consumer.qos.increment_eventually()
        if not self._warned and self._prefetch_is_fixed():
            logger.warning(
                "%s is held. What a worker holds counts in its prefetch count, which is fixed on quorum queues: "
                "with as many held as that it takes no other tasks, as it would if they were parked.",
                held.request,
            )
        self._warned = True
        self._mailbox.wake()  # the loop tells the broker of it before its next wait, and not while it waits
        logger.debug("%s is held: pool %r has no slot for it", held.request, held.limit.key)
        self._processes.give_back()
        self._tick_later()

    def _prefetch_is_fixed(self) -> bool:
        consumer = self._consumer
        if getattr(consumer, "qos_global", None) is not False:  # before 5.7 it does not tell
            return False
        return bool(consumer.connection.transport.driver_type == "amqp")  # others have no such queues

    def _stand(self, line: Line) -> Slot | None:
        return self._watch.ask(
            lambda: line.stand(
                lambda *granted: self._mailbox.post(self._on_grant, *granted),
                lambda *nudged: self._mailbox.post(self._on_nudge, *nudged),
                self._pausing.evict,
            )
        )

    def _on_grant(self, line: Line, place: Place, slot: Slot) -> None:
        if line.place is place and self._lines.get(line.name) is line:
            self._serve(line, slot)
            self._pump(line)
        elif place not in line.served:  # it was given up while its slot was on the way
            self._watch.release(place.pool, slot)

    def _on_nudge(self, line: Line, place: Place) -> None:
        if line.place is place and self._lines.get(line.name) is line:
            self._pump(line)

    def _pump(self, line: Line) -> None:
        """Start what has a slot, and have the next one stand in line."""
        while line.waiting:
            try:
                slot = self._stand(line)
            except StoreError:
                return
            if slot is None:
                self._wait_on(line)
                return
            self._serve(line, slot)
        if self._lines.get(line.name) is line:
            del self._lines[line.name]

    def _wait_on(self, line: Line) -> None:
        """Wait for the slot of the first; or let the others go on where the store passes it over, too."""
        if line.name[1] or line.place is None or not line.place.is_passed_over:
            self._look_in_time(line)
            return
        rest = line.set_aside()
        aside = self._lines.setdefault(line.name, line)
        if aside is line:
            self._look_in_time(line)
        else:
            line.leave()
            aside.waiting += line.waiting
        self._lines[rest.name] = rest
        self._pump(rest)

    def _serve(self, line: Line, slot: Slot) -> None:
        held = line.serve()
        self._consumer.qos.decrement_eventually()
        if is_over(held.request):
            self._watch.release(held.pool, slot)
            return
        state.task_reserved(held.request)
        self._called[held] = slot
        # It has waited for its slot, which stands idle until a process is free: it comes first.
        self._processes.find_first(self._process_found, held)

    def _process_found(self, held: Held) -> None:
        self._mailbox.do(self._start_called, held)

    def _start_called(self, held: Held) -> None:
        if held not in self._called:  # the broker has it again
            self._processes.give_back()
            return
        slot = self._called.pop(held)
        if slot is None:
            self._hand_over(held.request)
        elif is_over(held.request):
            self._watch.release(held.pool, slot)
            self._processes.give_back()
        elif slot.lost and not slot.evicted:  # while no process was free for it
            self._watch.release(held.pool, slot)
            self._hand_over(held.request)
        else:
            self._start(held, slot)

    def _look_in_time(self, line: Line) -> None:
        """Look when a slot is due, by its pool's rate or by expiry, where the tick would come too late for that."""
        seconds = line.look_at - time.monotonic()
        if seconds < LOOK_AGAIN and not line.looking:
            line.looking = True
            self._consumer.timer.call_after(max(seconds, SOONEST), self._mailbox.post, (self._look, line))

    def _look(self, line: Line) -> None:
        line.looking = False
        if self._lines.get(line.name) is not line:
            return
        if time.monotonic() >= line.look_at:
            self._pump(line)
        else:
            self._look_in_time(line)

    def _tick_later(self) -> None:
        if not self._ticking and (self._lines or self._unasked):
            self._ticking = True
            self._consumer.timer.call_after(LOOK_AGAIN, self._mailbox.post, (self._tick, self._connection))

    def _tick(self, connection: object) -> None:
        if connection is not self._connection:  # Celery 5.4 forgets its timers with the connection, later versions not
            return
        self._ticking = False
        now = time.monotonic()
        for line in list(self._lines.values()):
            for held, why in list(ended(line.waiting, now)):
                line.remove(held)
                self._end(held, why)
            if line.place is None or now >= line.look_at:
                self._pump(line)
        for held, why in list(ended(self._unasked, now)):
            self._unasked.remove(held)
            self._end(held, why)
        self._tick_later()

    def _end(self, held: Held, why: str) -> None:
        self._consumer.qos.decrement_eventually()
        if why == "timeout":
            error = PoolTimeoutError(held.limit.key, held.size, timeout=held.limit.timeout)
            if (observer := _telling.observer) is not None:
                observer.decided(held.pool.pools[0], "timed_out")
            self._reporting.tell(outcome.fail, held.request, error)
