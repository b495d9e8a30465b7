"""What a worker is fed with: its broker's messages and those of the waiting room, in one stream.

The receiver asks for the next message when it has capacity for one. At that moment, and only then, the room is looked
into as well. A read from the broker that the room has overtaken goes on and is the next message.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections import deque
from typing import TYPE_CHECKING, Any, Self

from taskiq.receiver import Receiver

from slotline.pools import Room
from taskiq_ext._delivery import Delivery, RecordingFormatter, TakenDelivery

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping, Sequence

    from taskiq.abc.broker import AsyncBroker
    from taskiq.acks import AckableMessage

    from slotline.pools import Limit, Slot
    from slotline.stores.base import Store

logger = logging.getLogger(__name__)

_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 5.0
_PATIENCE = 0.25
"""Seconds that a broker's message waits for a look into the room that has begun."""
_ROUNDS = 20
"""Rounds of the event loop, a few more than the receiver needs to begin with a message that it has a place for."""
_CLOSING = 2.0
_KEEPS_LATE_MESSAGES = hasattr(Receiver, "_close_prefetch_state")  # Taskiq 0.12 drops what its last read returns


class Rest:
    """How long a room is not asked that could not be, each time longer."""

    def __init__(self) -> None:
        self._until, self._pause = 0.0, _FIRST_PAUSE

    @property
    def left(self) -> float:
        """Seconds until it may be asked again."""
        return max(0.0, self._until - time.monotonic())

    def begin(self) -> None:
        """Note a failure."""
        self._until = time.monotonic() + self._pause * random.uniform(0.75, 1.25)  # noqa: S311 - jitter
        self._pause = min(2 * self._pause, _LONGEST_PAUSE)

    def end(self) -> None:
        """Note that the room could be asked."""
        self._pause = _FIRST_PAUSE


class Feed:
    """The messages of one listening receiver, which it iterates over.

    Args:
        broker: Whose messages.
        own: What the broker's own ``listen()`` has returned.
        lanes: The lanes to serve on each store.
        queue: What the broker's queue is called.
        on_lost: Called, in any thread, with the slot of a taken message that is lost or evicted.
    """

    def __init__(
        self,
        broker: AsyncBroker,
        own: AsyncGenerator[bytes | AckableMessage, None],
        lanes: Mapping[Store, Sequence[str]],
        queue: str,
        on_lost: Callable[[Slot], None],
    ) -> None:
        self.broker, self.queue = broker, queue
        self.rooms = {
            store: Room(store, served, on_call=self._called, on_lost=on_lost) for store, served in lanes.items()
        }
        self._rests = {room: Rest() for room in self.rooms.values()}
        self._own = own
        self._loop = asyncio.get_running_loop()
        self._call: asyncio.Future[None] = self._loop.create_future()
        self._reading: asyncio.Task[bytes | AckableMessage] | None = None
        self._looking: asyncio.Task[TakenDelivery | None] | None = None
        self._overdue: asyncio.Task[TakenDelivery | None] | None = None
        self._found: deque[TakenDelivery] = deque()
        self._passing = 0
        self._leaving: set[TakenDelivery] = set()
        self._asked = self._closed = False
        self._giving_back: set[asyncio.Task[None]] = set()
        self._unstarted: set[TakenDelivery] = set()
        self._timer: asyncio.TimerHandle | None = None
        if not isinstance(broker.formatter, RecordingFormatter):
            broker.formatter = RecordingFormatter(broker.formatter)

    def __aiter__(self) -> Self:
        return self

    def __anext__(self) -> Coroutine[Any, Any, bytes | AckableMessage]:
        """Return the next message; there is none when the broker has no more.

        A read from the broker begins when the receiver asks, and not when its task for the answer does.
        """
        self._asked = True
        if self._reading is None and not self._closed:
            self._reading = self._loop.create_task(self._read())
        return self._next_or_late()

    async def aclose(self) -> None:
        """End, and give back what nobody has got."""
        if not self._closed:
            await self._close()

    def started(self, delivery: TakenDelivery) -> None:
        """Note that the receiver handles ``delivery``: it may have capacity for another."""
        self._unstarted.discard(delivery)
        self._ring()

    def left(self, delivery: TakenDelivery) -> None:
        """Note that the receiver has done all that it had to do with ``delivery``."""
        self._leaving.discard(delivery)

    def has_place_of(self, leaving: TakenDelivery) -> bool:
        """Whether a message may come in place of ``leaving``, whose run has ended: the receiver asks for one.

        One that waits in the receiver's own queue holds its slot idle. There are no more of those than of runs that
        have just ended, which are about to leave their places.
        """
        self._leaving.add(leaving)
        coming = len(self._found) + len(self._unstarted) + self._passing
        return self._asked and not (self._looking or self._overdue) and coming < len(self._leaving)

    async def pass_on(self, pool: Limit[Any], slot: Slot) -> None:
        """Give back the slot of a message from the room, and have the next one of its pool with it.

        Raises:
            StoreError: The slot is given back in the background.
        """
        self._passing += 1
        delivery = None
        try:
            taken = await self.rooms[pool.store].pass_on(pool, slot)
            if taken is not None:
                delivery = TakenDelivery.from_room(taken, self)
                self._hand_out(delivery)
        finally:
            self._passing -= 1
            self._ring()
        # Its run begins before the result of the last one is written: that takes the processor for as long as all this.
        for _ in range(_ROUNDS):
            if delivery is None or delivery.has_begun:
                break
            await asyncio.sleep(0)

    def freed(self, pool: Limit[Any]) -> None:
        """Look for who waits behind a message from the room whose slot is about to be sent back.

        The call that the release makes comes over another connection and another thread.
        """
        room = self.rooms.get(pool.store)
        if room is not None:
            for one in pool.pools:
                self._loop.call_soon(room.call, one.name)

    async def give_back(self) -> None:
        """Give back what was taken and will not be handled any more."""
        try:
            await self.aclose()  # Taskiq 0.12 does not
        except Exception:
            logger.exception("The broker of queue %r could not be read to the end", self.queue)
        while self._unstarted:
            await self._unstarted.pop().give_back()
        if self._giving_back:
            await asyncio.wait(self._giving_back)

    async def _next_or_late(self) -> bytes | AckableMessage:
        message = None
        try:
            message = None if self._closed else await self._next()
        except asyncio.CancelledError:
            # A worker that stops breaks the read off, and takes what it returns all the same.
            message = await self._late() if _KEEPS_LATE_MESSAGES else None
            if message is None:
                raise
        finally:
            self._asked = False
            if message is None:
                await self.aclose()
        if message is None:
            raise StopAsyncIteration
        return message

    async def _next(self) -> bytes | AckableMessage | None:
        if self._reading is not None and self._reading.done():
            return self._read_message()  # it has been overtaken, once is enough
        while self._reading is not None:
            if self._call.done():
                self._call = self._loop.create_future()
            self._look()
            if not self._found:
                await self._call
            if (self._found or self._looking) and (delivery := await self._taken()) is not None:
                self._unstarted.add(delivery)
                return delivery.as_message()
            if self._reading is not None and self._reading.done():
                return self._read_message()
        return None  # it was closed

    def _read_message(self) -> bytes | AckableMessage | None:
        reading, self._reading = self._reading, None
        assert reading is not None  # noqa: S101 - only called when it is done
        try:
            return Delivery.of(reading.result(), self).as_message()
        except StopAsyncIteration:
            return None

    async def _read(self) -> bytes | AckableMessage:
        try:
            return await anext(self._own)
        finally:
            self._ring()  # a round of the event loop before the task's own callbacks, with all that waits in it

    def _look(self) -> None:
        # One that waits in the receiver's own queue holds its slot idle: one at a time is enough.
        if self._timer or self._looking or self._overdue or self._passing or self._found or self._unstarted:
            return  # its end rings
        pause = min(map(self._wait_for, self._rests))
        if pause <= 0:
            self._looking = self._loop.create_task(self._take())
            self._looking.add_done_callback(self._ring)
        else:
            self._timer = self._loop.call_later(pause, self._look_now)

    def _look_now(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._ring()

    def _wait_for(self, room: Room) -> float:
        rested = self._rests[room].left
        return rested if room.due else max(room.look_after, rested)

    async def _take(self) -> TakenDelivery | None:
        for room, rest in list(self._rests.items()):
            if self._wait_for(room) > 0:
                continue
            self._rests[room] = self._rests.pop(room)  # the other comes first next time
            try:
                taken = await room.take()
            except Exception as error:  # noqa: BLE001 - whatever is wrong with the room, the broker's messages go on
                logger.warning("The waiting room of queue %r cannot be asked now: %r", self.queue, error)
                rest.begin()
                continue
            rest.end()
            if taken is not None:
                return TakenDelivery.from_room(taken, self)
        return None

    async def _taken(self) -> TakenDelivery | None:
        if self._found:
            return self._found.popleft()
        looking = self._looking
        if looking is None:
            return None
        if not looking.done():
            if self._reading is None or not self._reading.done():
                return None
            await asyncio.wait({looking}, timeout=_PATIENCE)
        self._looking = None
        if looking.done():
            return looking.result()
        # The store is slow or away: what it still takes goes back, unless the worker waits for a message then.
        self._overdue = looking
        looking.add_done_callback(self._came_too_late)
        return None

    def _came_too_late(self, looking: asyncio.Task[TakenDelivery | None]) -> None:
        self._overdue = None
        delivery = None if looking.cancelled() else looking.result()
        if delivery is not None and self._asked:
            self._found.append(delivery)
        elif delivery is not None:
            self._send_back(delivery)
        self._ring()

    def _hand_out(self, delivery: TakenDelivery) -> None:
        if self._closed:
            self._send_back(delivery)
        else:
            self._found.append(delivery)
            self._loop.call_later(_PATIENCE, self._send_back_unless_handed_out, delivery)

    def _send_back_unless_handed_out(self, delivery: TakenDelivery) -> None:
        # The receiver has got another message instead, and has no place left.
        if delivery in self._found:
            self._found.remove(delivery)
            self._send_back(delivery)

    def _send_back(self, delivery: TakenDelivery) -> None:
        giving_back = self._loop.create_task(delivery.give_back())
        self._giving_back.add(giving_back)
        giving_back.add_done_callback(self._giving_back.discard)

    async def _late(self) -> bytes | AckableMessage | None:
        reading, self._reading = self._reading, None
        if reading is None:
            return None
        reading.cancel()
        try:
            return Delivery.of(await reading, self).as_message()
        except (asyncio.CancelledError, StopAsyncIteration):
            return None

    async def _close(self) -> None:
        self._closed = True
        for room in self._rests:
            room.close()
        if self._timer is not None:
            self._timer.cancel()
        if looking := self._looking or self._overdue:
            self._looking = self._overdue = None
            looking.remove_done_callback(self._came_too_late)
            await asyncio.wait({looking}, timeout=_CLOSING)
            looking.cancel()
            await asyncio.wait({looking})
            if not looking.cancelled() and (found := looking.result()) is not None:
                self._found.append(found)
        while self._found:
            await self._found.popleft().give_back()
        try:
            late = await self._late()
            if late is not None:
                await self._put_back(Delivery.of(late, self))
        finally:
            if hasattr(self._own, "aclose"):  # not all iterators have it
                await self._own.aclose()

    async def _put_back(self, delivery: Delivery) -> None:
        try:
            await delivery.put_back(self.broker)
        except Exception:
            logger.exception("A message that came while the worker stopped could not be sent again: %s", delivery)

    def _called(self) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody asks any more
            self._loop.call_soon_threadsafe(self._look_now)

    def _ring(self, _done: object = None) -> None:
        if not self._call.done():
            self._call.set_result(None)
