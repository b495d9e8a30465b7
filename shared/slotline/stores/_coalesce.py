"""The calls of one event loop, gathered into pipelines on few connections."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from typing import Any

from slotline.stores.base import Command

FLIGHTS = 2
"""Connections that one loop keeps busy at most; what comes while all are busy goes with the next one together."""
LARGEST_BATCH = 1000

Send = Callable[[Sequence[Command]], Awaitable[list[Any]]]


class Coalescer:
    """Gathers what an event loop asks for within one tick and sends it as one pipeline.

    A flight runs in a task of its own that no caller's cancellation reaches: cancelling a caller gives up its reply
    and disturbs neither the connection nor the calls that travel with it.

    Args:
        send: Sends commands together and returns their replies or errors, one in each place.
        close: Closes the loop's client.
        unwanted: Called with each command whose caller was cancelled while it travelled, when it has been answered.
    """

    def __init__(
        self, send: Send, close: Callable[[], Awaitable[None]], unwanted: Callable[[Command], None] = lambda _: None
    ) -> None:
        self._send = send
        self._close = close
        self._unwanted = unwanted
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[tuple[Command, asyncio.Future[Any]]] = deque()
        self._boarding = False
        self._newest: asyncio.Task[None] | None = None
        self._flights: set[asyncio.Task[None]] = set()
        self._loner: asyncio.Future[None] | None = None
        self._lifeline: AsyncGenerator[None, None] | None = None

    def submit(self, command: Command) -> asyncio.Future[Any]:
        """Send ``command`` with the next flight; the future has its reply or its error."""
        reply: asyncio.Future[Any] = self._loop.create_future()
        self._waiting.append((command, reply))
        self._board()
        return reply

    async def read(self, command: Command) -> Any:
        """Send a command that changes nothing and return its reply: in the caller's own task if nothing is under way.

        That saves what a task costs, and more is gained by travelling together only where there is company. Cancelling
        the caller then takes its connection along, and nobody else.
        """
        if self._flights or self._waiting or self._loner is not None:
            return await self.submit(command)
        await self._tie_to_loop()
        landed = self._loner = self._loop.create_future()
        try:
            (reply,) = await self._send((command,))
        finally:
            self._loner = None
            landed.set_result(None)
            if self._waiting:
                self._board()
        if isinstance(reply, Exception):
            raise reply
        return reply

    def _board(self) -> None:
        # The flight's task starts in the loop's next round: whatever else is asked for in this one travels with it.
        if not self._boarding and len(self._flights) + (self._loner is not None) < FLIGHTS:
            self._boarding = True
            flight = self._newest = self._loop.create_task(self._fly())
            self._flights.add(flight)
            flight.add_done_callback(self._landed)

    def _landed(self, flight: asyncio.Task[None]) -> None:
        self._flights.discard(flight)
        if flight is self._newest:  # it may have been cancelled before it began, by a loop that ends
            self._boarding = False
        if self._waiting:
            self._board()

    async def _fly(self) -> None:
        await self._tie_to_loop()
        flight, self._boarding = self._newest, False
        count = min(len(self._waiting), LARGEST_BATCH)
        batch = [entry for entry in (self._waiting.popleft() for _ in range(count)) if not entry[1].done()]
        if self._waiting:
            self._board()
        if not batch:
            return
        try:
            replies = await self._send([command for command, _ in batch])
        except Exception as error:  # noqa: BLE001 - it is the callers' to handle
            replies = [error] * len(batch)
        except BaseException:
            for _, reply in batch:
                reply.cancel()
            raise
        self._flights.discard(flight)  # before its callers go on: whoever reads next is alone
        for (command, reply), value in zip(batch, replies, strict=True):
            if reply.cancelled():
                self._unwanted(command)
            else:
                _settle(reply, value)

    async def _tie_to_loop(self) -> None:
        if self._lifeline is None:
            self._lifeline = self._until_loop_ends()
            await anext(self._lifeline)

    async def _until_loop_ends(self) -> AsyncGenerator[None, None]:
        # An event loop closes its asynchronous generators before it ends: the one place where a library can close
        # its connections in time without being told.
        try:
            yield
        finally:
            await self._close()

    async def land(self) -> None:
        """Return when nothing is under way."""
        while self._flights or self._loner is not None:
            await asyncio.wait([*self._flights, *([] if self._loner is None else [self._loner])])

    async def close(self) -> None:
        """Let what is under way land, then close the connections."""
        await self.land()
        lifeline, self._lifeline = self._lifeline, None
        if lifeline is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closing it already
                await lifeline.aclose()


def _settle(reply: asyncio.Future[Any], value: Any) -> None:
    if reply.done():
        return
    if isinstance(value, Exception):
        reply.set_exception(value)
    else:
        reply.set_result(value)
