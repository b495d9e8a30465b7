"""Messages that wait for a value which another message's run makes: in the room, where they hold no worker."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from slotline.caches.line import failure_in, is_away, line_for, shared_part
from slotline.errors import StoreError
from slotline.pools import Parked
from slotline.steps import run_awaiting
from taskiq_ext._delivery import delivery_for
from taskiq_ext._room import broadcasts, waiting_room

if TYPE_CHECKING:
    from taskiq.abc.broker import AsyncBroker

    from slotline.caches import BaseCacheAdapter
    from slotline.caches.line import Line
    from slotline.pools import Slot, Taken
    from slotline.stores.base import Store
    from taskiq_ext._delivery import Delivery

logger = logging.getLogger(__name__)

_PART = "#cache"
_background: set[asyncio.Task[None]] = set()


class RunsLater:
    """What becomes of a message that has no business here now: it is parked, or runs elsewhere."""


class Lead:
    """The right of one message to make a value, or to look whether it is there; those behind it wait for the end.

    Args:
        line: The line.
        slot: Its slot.
        taken: What the message was taken from the line with; ``None`` where it came from the broker.
    """

    def __init__(self, line: Line, slot: Slot, taken: Taken | None) -> None:
        self._line, self._slot, self._taken = line, slot, taken

    @property
    def has_waited(self) -> bool:
        """Whether the message comes out of the line."""
        return self._taken is not None

    async def failed_before(self) -> Exception | None:
        """Return the exception of a run that this message was waiting for."""
        payload = None if self._taken is None else await run_awaiting(self._line.verdict(self._taken))
        return None if payload is None else failure_in(payload)

    async def end(self, error: BaseException | None = None) -> None:
        """Let the next message go on; with an error, let those who wait by now have that."""
        await run_awaiting(self._line.ending(self._slot, error))

    def abandon(self) -> None:
        """Let the next message go on, from where nothing can be awaited."""
        ending = asyncio.get_running_loop().create_task(self.end())
        _background.add(ending)
        ending.add_done_callback(_background.discard)


class Following:
    """The lines of one cache in the waiting room of one broker.

    Args:
        cache: The cache; one that processes do not share has no lines.
        broker: The broker.
    """

    def __init__(self, cache: BaseCacheAdapter, broker: AsyncBroker) -> None:
        self._broker = broker
        self._cache = shared_part(cache)
        self._room = waiting_room(broker).let(self._store, part=_PART)

    def _store(self) -> Store | None:
        return None if self._cache is None else self._cache.store

    @property
    def possible(self) -> bool:
        """Whether the message that this asyncio task handles may be parked."""
        return self._cache is not None and self._delivery is not None and not is_away(self._cache)

    async def taken(self, key: str) -> Lead | RunsLater | None:
        """Return the lead for an entry with which the message comes out of the line, if that is where it comes from."""
        delivery, line = self._delivery, self._line(key)
        taken = None if delivery is None or line is None else delivery.claimed(line)
        if taken is None or line is None:
            return None
        if not (taken.lost or taken.slot.lost):
            return Lead(line, taken.slot, taken)
        await taken.give_back()  # it waited too long in this worker, and runs elsewhere
        return RunsLater()

    async def join(self, key: str, task_id: str) -> Lead | RunsLater | None:
        """Take the lead for an entry, or park the message behind the one that has it.

        ``None``: there is no line for this message, which waits in its worker if it must.
        """
        delivery, line = self._delivery, self._line(key)
        room, lane = self._room.room(delivery), self._room.lane
        if delivery is None or line is None or room is None or lane is None or broadcasts(self._broker):
            return None
        try:
            slot = await run_awaiting(line.joining(room, delivery.sealed, lane, task_id))
        except StoreError as error:
            logger.debug("There is no line for %r now: %s", key, error)
            return None
        if not isinstance(slot, Parked):
            return Lead(line, slot, None)
        logger.debug("Message %s is parked: %r is being made, and %d come before it.", task_id, key, slot.place)
        await delivery.acknowledge_parked(task_id)
        return RunsLater()

    @property
    def _delivery(self) -> Delivery | None:
        return delivery_for(self._broker, asyncio.current_task())

    def _line(self, key: str) -> Line | None:
        return None if self._cache is None else line_for(self._cache, key, self._cache.store)
