"""The worker's side of the waiting room: messages over their limit wait in Redis, in no worker.

A parked message is acknowledged to its broker. A worker that has a process for it takes the longest waiter of the
queues that it serves, together with a slot, and handles it as if the broker had just delivered it: revokes, expiry,
events, time limits and both ways of acknowledging are Celery's own. Until the run is acknowledged the room keeps the
message under a claim, which lapses with its worker.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any, TypeVar

from celery.utils.log import get_logger
from celery.worker import state

from celery_ext.ending import Ending
from celery_ext.hearing import hear_now
from celery_ext.held import owner_of
from celery_ext.lanes import Lanes
from celery_ext.mailbox import Mailbox
from celery_ext.parcel import TakenMessage, pack
from celery_ext.processes import Processes
from celery_ext.store_watch import StoreWatch
from slotline.errors import StoreError
from slotline.pools import Limit, Parked, Room, Slot, Taken

logger = get_logger(__name__)
T = TypeVar("T")

BUSY = 0.05
"""Seconds between two looks at a worker that has no capacity now, or is not ready yet."""
IN_TURN = 0.25
"""Seconds after which a pool that queues what it gets, and never has a place, gets a parked message all the same."""
NOTED = 10_000
"""Pools of which it is known that messages wait for them; what is forgotten costs a round trip."""


class Parking:
    """Parks requests, and takes parked messages when this worker has capacity for one.

    All methods are called in the mailbox's line of execution.

    Args:
        consumer: The worker's consumer.
        mailbox: Where calls of the room are posted.
        processes: The pool's free processes.
        watch: The way to the store, which processes share.
        name: Part of the lanes' names; default: the broker's virtual host.
        on_lost: Called, in any thread, with the slot of a taken message that is lost or evicted.
    """

    def __init__(
        self,
        consumer: Any,
        mailbox: Mailbox,
        processes: Processes,
        watch: StoreWatch,
        name: str | None,
        on_lost: Callable[[Slot], None],
    ) -> None:
        self._consumer, self._mailbox, self._processes, self._watch = consumer, mailbox, processes, watch
        self._lanes, self._on_lost = Lanes(consumer, name, self._lanes_changed), on_lost
        self._ending = Ending(consumer.controller)
        self._room: Room | None = None
        self._in_hand: set[TakenMessage] = set()
        self._at_hand: TakenMessage | None = None
        self._waited_for: set[str] = set()
        self._seeking, self._look_at = False, math.inf
        self._full_since: float | None = None

    def open(self) -> None:
        """Serve the lanes of the queues that the worker consumes from."""
        self._lanes.open()
        self._seeking = False
        self._enter()

    def _enter(self) -> None:
        self._room = Room(
            *(self._watch.store, self._lanes.served),
            on_call=lambda: self._mailbox.post(self.take_soon),
            on_lost=self._on_lost,
        )
        self._look_at = math.inf
        self._look_later(0.0)

    def _lanes_changed(self) -> None:
        self._mailbox.do(self._enter_anew)

    def _enter_anew(self) -> None:
        if self._room is not None:
            self._room.close()
            self._enter()

    def let_go(self) -> None:
        """Take nothing any more, put back what has not begun, and settle what the event loop has not come to."""
        room, self._room = self._room, None
        if room is not None:
            room.close()
        for message in list(self._in_hand):
            if message.decided is not None:
                message.decided()
            elif not message.started:
                message.requeue()

    def lane_of(self, request: Any) -> str | None:
        """Return the lane of a request's message; ``None`` if it cannot be parked."""
        came = request.message
        return came.taken.lane if isinstance(came, TakenMessage) else self._lanes.of(came)

    def park(self, request: Any, ask: Callable[[Room, bytes, str], T | Parked]) -> T | None:
        """Return what ``ask`` gets for a request, or acknowledge its message if that was parked (``None``).

        Args:
            request: The request.
            ask: Asks the room, given that, the message and its owner.

        Raises:
            StoreError: The store cannot be asked; the request is as it was.
        """
        room, came = self._room, request.message
        assert room is not None  # noqa: S101 - nothing is admitted before the gate is open
        message = came.taken.message if isinstance(came, TakenMessage) else pack(came)
        outcome = self._watch.ask(lambda: ask(room, message, owner_of(request)))
        if not isinstance(outcome, Parked):
            return outcome
        logger.debug("%s is parked, %d of its lane before it", request, outcome.place)
        state.task_ready(request)
        request.acknowledge()
        self._mailbox.wake()  # the loop sends it before its next wait, and the broker the next message on it
        self._processes.give_back()
        hear_now(self._consumer)
        return None

    def note(self, pool: Limit[Any]) -> None:
        """Take notice that a message was parked which waits for a pool."""
        if len(self._waited_for) >= NOTED:
            self._waited_for.clear()
        self._waited_for.add(pool.key)

    def has_next(self, request: Any, pool: Limit[Any]) -> bool:
        """Whether a message may come with a request's slot: it came from the room itself, or one was parked here."""
        return isinstance(request.message, TakenMessage) or pool.key in self._waited_for

    def pass_on(self, pool: Limit[Any], slot: Slot) -> None:
        """Give back the slot of a run that has ended, and take the next message with it if that can run here.

        Called in any thread.
        """
        if self._room is not None and self._processes.counted:
            self._mailbox.post(self._pass_on, pool, slot)
        else:
            self._pass_on(pool, slot)

    def _pass_on(self, pool: Limit[Any], slot: Slot) -> None:
        room = self._room
        if room is None or not self._has_place():
            self._watch.release(pool, slot)
            return
        taken = None
        try:
            taken = self._watch.release_by(lambda: room.sync.pass_on(pool, slot), pool, slot)
        finally:
            if taken is None:
                self._processes.give_back()
        if taken is None:
            self._waited_for.discard(pool.key)
        elif self._processes.counted:
            self._passed(taken)
        else:
            self._mailbox.do_here(self._passed, taken)

    def _has_place(self) -> bool:
        """Whether a message could run at once; where processes are counted, one is taken for it."""
        if self._ending.has_begun:
            return False
        if self._processes.counted:
            return self._processes.take()
        return bool(len(state.reserved_requests) < self._consumer.pool.limit)

    def _passed(self, taken: Taken) -> None:
        handler = self._handler
        if self._room is not None and handler is not None:
            self._deliver(taken, handler)
            return
        self._processes.give_back()
        try:
            taken.sync.give_back()
        except StoreError as error:
            logger.warning("a parked message of pool %r is put back later: %s", taken.slot.key, error)

    @property
    def _handler(self) -> Callable[[Any], Any] | None:
        """What takes the broker's messages; ``None`` while the consumer is not ready."""
        return getattr(self._consumer.task_consumer, "on_message", None)

    def take_soon(self) -> None:
        """Take a message as soon as the worker has a process for it."""
        room = self._room
        if room is None or self._seeking or self._ending.has_begun:
            return
        if not room.due:
            self._look_later(room.look_after)
        elif self._processes.counted:
            self._seeking = True
            self._processes.find(lambda _: self._mailbox.do(self._take), None)
        elif len(state.reserved_requests) < self._consumer.pool.limit or self._is_in_turn():
            self._full_since = None
            self._take()
        else:
            self._look_later(BUSY)

    def _is_in_turn(self) -> bool:
        """Whether a message is to queue behind what the broker has sent: others had the time to take it.

        Its slot is idle meanwhile, so that there is one at a time; a backlog of other tasks would never let it run.
        """
        if len(state.reserved_requests) <= self._consumer.pool.limit:  # nothing is queued: the next place is its
            self._full_since = None
            return False
        now = time.monotonic()
        self._full_since = self._full_since or now
        return now - self._full_since >= IN_TURN and not any(
            isinstance(request.message, TakenMessage) and request.time_start is None
            for request in list(state.requests.values())
            if request in state.reserved_requests
        )

    def _take(self) -> None:
        self._seeking = False
        room, handler = self._room, self._handler
        taken = None
        if room is not None and handler is not None and not self._ending.has_begun:
            try:
                taken = self._watch.ask(room.sync.take)
            except StoreError as error:
                logger.debug("the waiting room cannot be asked: %s", error)
        if room is None or handler is None or taken is None:
            self._processes.give_back()
            if room is not None:
                self._look_later(BUSY if handler is None or room.due else room.look_after)
            return
        self._deliver(taken, handler)
        self._mailbox.post(self.take_soon)

    def _deliver(self, taken: Taken, handler: Callable[[Any], Any]) -> None:
        try:
            message = TakenMessage(taken, self._consumer.task_consumer.accept, self._in_hand.discard)
        except Exception:
            logger.exception("a parked message of lane %r cannot be read, and goes back in a while", taken.lane)
            self._set_aside(taken)
            self._processes.give_back()
            return
        self._in_hand.add(message)
        if self._needs_timer(message):  # which may only be set in the loop's thread
            self._mailbox.post(self._hand_over, message, handler)
        else:
            self._hand_over(message, handler)

    def _needs_timer(self, message: TakenMessage) -> bool:
        name = message.headers.get("task")
        return not name or bool(message.headers.get("eta")) or self._consumer.task_buckets.get(name) is not None

    def _hand_over(self, message: TakenMessage, handler: Callable[[Any], Any]) -> None:
        self._at_hand = message
        try:
            with self._processes.in_hand():
                handler(message)
        except Exception:
            logger.exception("a parked message of lane %r cannot be handled", message.taken.lane)
            if not message.started and not message.acknowledged:
                self._forget(message)
        finally:
            self._at_hand = None

    def _forget(self, message: TakenMessage) -> None:
        self._in_hand.discard(message)
        request = state.requests.get(message.headers.get("id"))
        if request is not None and request.message is message:
            state.task_ready(request)
        self._set_aside(message.taken)

    def _set_aside(self, taken: Taken) -> None:
        """Leave a message alone until its claim ends, for at once this worker would only take it again."""
        taken.abandon()
        self._watch.release(taken.pool, taken.slot)

    def hands_over(self, message: Any) -> bool:
        """Whether a message is being handed to the consumer just now, in the mailbox's line of execution."""
        return self._at_hand is message

    def _look_later(self, seconds: float) -> None:
        seconds = max(seconds, BUSY)
        at = time.monotonic() + seconds
        if at < self._look_at:
            self._look_at = at
            self._consumer.timer.call_after(seconds, self._mailbox.post, (self._look, self._room, at))

    def _look(self, room: Room | None, at: float) -> None:
        # One that a sooner one has overtaken comes all the same; whether one from before the connection broke does
        # depends on Celery's version.
        if room is self._room and at == self._look_at:
            self._look_at = math.inf
            self.take_soon()
