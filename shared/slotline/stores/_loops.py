"""What one event loop has of a store: its connections, and the gathering of its calls."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from slotline.stores._coalesce import FLIGHTS, Coalescer
from slotline.stores._lines import AwaitingLines

if TYPE_CHECKING:
    import redis.asyncio

    from slotline.stores.base import Command

_MEETING = 16
"""How many servers' flights may meet at one, whose redirected calls they bring along."""


class LoopLinks:
    """The connections of one event loop to each server, and one coalescer each, so that none waits for another.

    Args:
        make: Makes a client of a server with at most so many connections.
        send: Sends commands together, wherever they go.
        unwanted: Called with each command whose caller was cancelled while it travelled.
        closed: Called when the connections are closed.
    """

    def __init__(
        self,
        make: Callable[[int, str], redis.asyncio.Redis],
        send: Callable[[Sequence[Command]], Any],
        unwanted: Callable[[Command], None],
        closed: Callable[[], None],
    ) -> None:
        self._make, self._send, self._unwanted, self._closed = make, send, unwanted, closed
        self._lines: dict[str, AwaitingLines] = {}
        self._coalescers: dict[str | None, Coalescer] = {}

    def submit(self, command: Command, lane: str | None) -> asyncio.Future[Any]:
        """Send ``command`` with the next flight of ``lane``, the server that it is probably for."""
        return self._coalescer(lane).submit(command)

    async def read(self, command: Command, lane: str | None) -> Any:
        """Send a command that changes nothing, see :meth:`Coalescer.read`."""
        return await self._coalescer(lane).read(command)

    def _coalescer(self, lane: str | None) -> Coalescer:
        coalescer = self._coalescers.get(lane)
        if coalescer is None:
            coalescer = self._coalescers[lane] = Coalescer(self._send, self._close, self._unwanted)
        return coalescer

    def lines(self, node: str) -> AwaitingLines:
        """Return the connections to a server."""
        lines = self._lines.get(node)
        if lines is None:
            client = self._make(FLIGHTS if node == "" else FLIGHTS * _MEETING, node)
            lines = self._lines[node] = AwaitingLines(client)
        return lines

    async def close(self) -> None:
        """Let what is under way land, then close the connections."""
        for coalescer in list(self._coalescers.values()):
            await coalescer.land()
        for coalescer in list(self._coalescers.values()):
            await coalescer.close()
        await self._close()

    async def _close(self) -> None:
        self._closed()
        lines, self._lines = self._lines, {}
        for each in lines.values():
            await each.close()
