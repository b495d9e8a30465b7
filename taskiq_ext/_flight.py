"""One run for all messages that ask for the same value at the same time.

The cache decides who runs: it calls the creator of one message and lets the others wait. That creator does not run
the function; it tells its own message to, and ends with what the receiver made of it. So the function runs exactly as
it would without a cache, in a thread or a process if it is a plain function, with its dependencies and its timeout.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, NamedTuple

from slotline.errors import StoreError
from taskiq_ext._entry import NobodyRanError
from taskiq_ext._errors import error_from_cache, error_to_cache

if TYPE_CHECKING:
    from taskiq_ext._entry import CacheEntry
    from taskiq_ext._following import Lead

logger = logging.getLogger(__name__)


class Served(NamedTuple):
    """What the cache, or a run that another message has made, had for this one: a value or the function's error."""

    value: Any
    error: BaseException | None = None


class _FunctionError(Exception):
    """The function raised ``error``; this tells it from an error of a cache that knows nothing of such things."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(error)
        self.error = error


class Flight:
    """One message's way to the value of an entry.

    Args:
        entry: The entry.
        lead: What the message has in the line for the entry, if it has one; it ends with the flight.
    """

    __slots__ = ("_asking", "_boarding", "_landing", "_lead", "_news", "entry")

    def __init__(self, entry: CacheEntry, lead: Lead | None = None) -> None:
        self.entry = entry
        self._lead = lead
        self._asking: asyncio.Future[Any] | None = None
        self._boarding = True

    async def awaited(self, *, errors: bool) -> Served | None:
        """Return what a message that comes out of the line has waited for, if it is there.

        Args:
            errors: Whether the error of a run that failed counts.
        """
        if self._lead is None or not self._lead.has_waited:
            return None
        hit = await self.entry.peek()
        if hit is not None:
            return Served(hit.value, hit.error)
        error = await self._lead.failed_before() if errors else None
        return None if error is None else Served(None, error)

    async def board(self) -> Served | None:
        """Wait for the value; ``None``: this message is the one to run, and :meth:`land` or its like must follow.

        Raises:
            StoreError: The cache could not be asked.
        """
        while True:
            loop = asyncio.get_running_loop()
            self._news: asyncio.Future[None] = loop.create_future()
            self._landing: asyncio.Future[Any] = loop.create_future()
            asking = self._asking = asyncio.ensure_future(self.entry.ask(self._create))
            asking.add_done_callback(self._answered)
            try:
                await self._news  # the answer, or the request to make it
            except BaseException:
                self._boarding = False
                self.abandon()
                asking.cancel()
                raise
            if not asking.done():
                return None
            served = self._served(asking)
            if served is not None:
                self._boarding = False
                return served

    async def land(self, value: Any) -> None:
        """Hand in what the function returned, and wait until it is in the cache."""
        if not self._landing.done():
            self._landing.set_result(value)
        await self._arrived()
        await self.give_way()

    async def fail(self, error: BaseException) -> None:
        """Hand in what the function raised: those who wait now get it, those who come later if errors are kept."""
        if not self.entry.capable and self.entry.keep_errors:
            await self.land(error_to_cache(error))
            return
        self._raise(error if self.entry.capable else _FunctionError(error))
        await self._arrived()
        await self.give_way(error)

    async def turn_back(self) -> None:
        """Say that the function did not run to an end: another message takes its place."""
        self._raise(NobodyRanError())
        await self._arrived()
        await self.give_way()

    def abandon(self) -> None:
        """Say the same from where nothing can be awaited."""
        self._raise(NobodyRanError())
        if self._lead is not None:
            self._lead.abandon()
            self._lead = None

    async def give_way(self, error: BaseException | None = None) -> None:
        """Let the next message of the line go on; with an error, let those who wait by now have that."""
        lead, self._lead = self._lead, None
        if lead is not None:
            await lead.end(error)

    def _raise(self, error: BaseException) -> None:
        if not self._landing.done():
            try:
                self._landing.set_exception(error)
            except TypeError:  # a StopIteration cannot be carried by a future
                self._landing.set_exception(NobodyRanError())
            self._landing.exception()  # whether anybody looks at it or not

    async def _create(self) -> Any:
        if not self._boarding:
            raise NobodyRanError  # the message has its answer: a refresh in the background is not its business
        self._tell()
        return await self._landing

    def _answered(self, asking: asyncio.Future[Any]) -> None:
        # A message that was broken off asks no more; asyncio need not complain that nobody saw how that ended.
        if not asking.cancelled():
            asking.exception()
        self._tell()

    def _tell(self) -> None:
        if not self._news.done():
            self._news.set_result(None)

    def _served(self, asking: asyncio.Future[Any]) -> Served | None:
        try:
            value = asking.result()
        except NobodyRanError:
            return None
        except _FunctionError as failure:
            return Served(None, failure.error)
        except StoreError:
            raise
        except Exception as error:
            if self.entry.capable:  # such a cache raises nothing of its own but StoreError
                return Served(None, error)
            raise
        return Served(value, None if self.entry.capable else error_from_cache(value))

    async def _arrived(self) -> None:
        asking = self._asking
        if asking is None:
            return
        await asyncio.wait((asking,))
        if asking.cancelled() or self._landing.cancelled():
            return
        error = asking.exception()
        if error is not None and error is not self._landing.exception():
            logger.error("The result of %r could not be cached; its task goes on.", self.entry.key, exc_info=error)
