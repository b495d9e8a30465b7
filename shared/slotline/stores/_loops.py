"""What one event loop has of a store: its connections, and the gathering of its calls."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from slotline.steps import run_awaiting
from slotline.stores._coalesce import FLIGHTS, Coalescer, Landed
from slotline.stores._loop_wakeups import LoopWakeups
from slotline.stores._sending import Fleet, Flown, is_plain, received, sendable, sending
from slotline.stores._wires import Outcome, Wires

if TYPE_CHECKING:
    import redis.asyncio

    from slotline.stores.base import Command

_MEETING = 16
"""How many servers' flights may meet at one, whose redirected calls they bring along."""


class LoopLinks:
    """The connections of one event loop to each server, and one coalescer each, so that none waits for another.

    A flight over a connection that stands needs no task. One that has to connect first, or that does not bring the
    replies that were asked for, goes on in a task of its own, in which calls are repeated, redirected and given up.

    Args:
        fleet: The store.
        make: Makes a client of a server with at most so many connections.
        unwanted: Called with each command whose caller was cancelled while it travelled.
        listens: Makes the loop's doorbells.
        closed: Called when the connections are closed.
    """

    def __init__(
        self,
        fleet: Fleet,
        make: Callable[[int, str], redis.asyncio.Redis],
        unwanted: Callable[[Command], None],
        listens: Callable[[LoopLinks], LoopWakeups],
        closed: Callable[[], None],
    ) -> None:
        self._fleet, self._make, self._unwanted, self._closed = fleet, make, unwanted, closed
        self._listens = listens
        self._wakeups: LoopWakeups | None = None
        self._loop = asyncio.get_running_loop()
        self._wires: dict[str, Wires] = {}
        self._coalescers: dict[str | None, Coalescer] = {}
        self._tasks: set[asyncio.Task[list[Any]]] = set()
        self._lifeline: AsyncGenerator[None, None] | None = None
        self._ended = False

    def lane(self, node: str | None) -> Coalescer:
        """Return what gathers the calls to a server; ``None``: to whichever it will turn out to be."""
        coalescer = self._coalescers.get(node)
        if coalescer is None:
            coalescer = self._coalescers[node] = Coalescer(partial(self._fly, node), self._unwanted)
        return coalescer

    def wires(self, node: str) -> Wires:
        """Return the connections to a server."""
        wires = self._wires.get(node)
        if wires is None:
            client = self._make(FLIGHTS if node == "" else FLIGHTS * _MEETING, node)
            wires = self._wires[node] = Wires(client)
        return wires

    @property
    def wakeups(self) -> LoopWakeups:
        """The loop's doorbells, where there is one server."""
        if self._wakeups is None:
            self._wakeups = self._listens(self)
        return self._wakeups

    def make_connection(self) -> Any:
        """Return a new connection to the one server, not connected yet, for somebody who closes it."""
        return self.wires("").client.connection_pool.make_connection()

    def _fly(self, node: str | None, commands: Sequence[Command], landed: Landed) -> None:
        wires = None if node is None else self._wires.get(node)
        if node is not None and wires is not None:
            words = sendable(self._fleet.topology, node, commands)
            wire = None if words is None else wires.idle()
            if words is not None and wire is not None:
                arrived = partial(self._arrived, node, time.monotonic(), commands, landed)
                wire.exchange(words, self._fleet.timeout, arrived)
                return
        self._travel(commands, None, landed)

    def _arrived(self, node: str, since: float, commands: Sequence[Command], landed: Landed, outcome: Outcome) -> None:
        if is_plain(outcome):
            landed(received(self._fleet.topology, node, commands, outcome))
        else:
            self._travel(commands, Flown(node, since, outcome), landed)

    def _travel(self, commands: Sequence[Command], flown: Flown | None, landed: Landed) -> None:
        if self._ended:
            landed(None)
            return
        task = self._loop.create_task(self._send(commands, flown))
        self._tasks.add(task)
        task.add_done_callback(partial(self._back, commands, landed))

    async def tie(self) -> None:
        """See to it that everything is closed when the loop ends."""
        if self._lifeline is None:
            self._lifeline = self._until_loop_ends()
            await anext(self._lifeline)

    async def _send(self, commands: Sequence[Command], flown: Flown | None) -> list[Any]:
        await self.tie()
        return await run_awaiting(sending(self._fleet, commands, flown))

    def _back(self, commands: Sequence[Command], landed: Landed, task: asyncio.Task[list[Any]]) -> None:
        self._tasks.discard(task)
        if task.cancelled():  # by a loop that ends, and perhaps before it began
            landed(None)
        else:
            error = task.exception()
            landed(task.result() if error is None else [error] * len(commands))

    async def _until_loop_ends(self) -> AsyncGenerator[None, None]:
        # An event loop closes its asynchronous generators before it ends: the one place where a library can close
        # its connections in time without being told.
        try:
            yield
        finally:
            self._ended = True
            await self._close()

    async def close(self) -> None:
        """Let what is under way land, then close the connections."""
        for coalescer in list(self._coalescers.values()):
            await coalescer.land()
        lifeline, self._lifeline = self._lifeline, None
        if lifeline is None:
            await self._close()
        else:
            with contextlib.suppress(RuntimeError):  # the loop is closing it already
                await lifeline.aclose()

    async def _close(self) -> None:
        self._closed()
        if self._wakeups is not None:
            await self._wakeups.close()
        wires, self._wires = self._wires, {}
        for each in wires.values():
            await each.close()
