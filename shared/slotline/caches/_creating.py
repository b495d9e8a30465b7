"""Running a creator, in a coroutine or in a plain thread, and what becomes of its failures."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from time import monotonic
from typing import TYPE_CHECKING, Any

from slotline.caches._flights import ABANDONED, Flight, Outcome, failed
from slotline.caches._portal import called
from slotline.errors import AsyncCreatorError, CreatorFailedError
from slotline.metrics import _telling
from slotline.steps import Step, Steps

if TYPE_CHECKING:
    from slotline.caches._options import EntryOptions
    from slotline.caches.base import Creator

logger = logging.getLogger("slotline.caches")


@dataclass(slots=True, frozen=True)
class Create(Step):
    """Call the creator of ``key``; the step's result is the value."""

    key: str
    creator: Creator

    def blocking(self) -> Any:
        return called(self.key, self.creator)

    async def awaiting(self) -> Any:
        value = self.creator()
        if not hasattr(type(value), "__await__"):
            return value
        try:
            value = await value
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            raise CreatorFailedError("asyncio.CancelledError", "the creator cancelled itself") from None
        if hasattr(type(value), "__await__"):
            if asyncio.iscoroutine(value):
                value.close()
            raise TypeError(
                f"The creator of {self.key!r} returned an awaitable of an awaitable; await the inner one in it."
            )
        return value


def create(flight: Flight, creator: Creator, options: EntryOptions) -> Steps[Outcome]:
    """Run the creator and return how it ended; what stops the whole thread or loop goes through."""
    logger.debug("creating %r", flight.key)
    own: tuple[type[BaseException], ...] = (AsyncCreatorError, *options.own_errors)
    began = monotonic()
    try:
        value = yield Create(flight.key, creator)
    except own as error:
        flight.own_error = error
        return ABANDONED
    except Exception as error:  # noqa: BLE001 - everyone who waits gets it
        outcome = failed(error)
    else:
        outcome = Outcome(value)
    if (observer := _telling.observer) is not None:
        observer.computed(monotonic() - began)
    return outcome


def broken(flight: Flight, error: Exception) -> Outcome:
    """Return the outcome of a flight that failed where nothing should: everyone is told, and nobody flies for ever."""
    logger.error("bringing %r failed", flight.key, exc_info=error)
    return failed(error)
