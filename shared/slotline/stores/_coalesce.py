"""The calls of one event loop to one server, gathered into pipelines on few connections."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeAlias

from slotline.stores.base import Command

FLIGHTS = 2
"""Connections that one loop keeps busy at most; what comes while all are busy goes with the next one together."""
LARGEST_BATCH = 1000

Landed: TypeAlias = Callable[[list[Any] | None], None]
"""Takes replies and errors, one for each command; ``None``: the flight was cancelled."""
Fly: TypeAlias = Callable[[Sequence[Command], Landed], None]


class Coalescer:
    """Sends what is asked for at once if nothing is under way, and gathers into one pipeline what is asked for then.

    No caller's cancellation reaches a flight: it gives up a reply, and disturbs neither the connection nor the calls
    that travel with it.

    Args:
        fly: Sends commands together, and calls back once with what became of them.
        unwanted: Called with each command whose caller was cancelled while it travelled, when it has been answered.
    """

    def __init__(self, fly: Fly, unwanted: Callable[[Command], None] = lambda _: None) -> None:
        self._fly = fly
        self._unwanted = unwanted
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[tuple[Command, asyncio.Future[Any]]] = deque()
        self._boarding = False
        self._flights = 0
        self._landing: asyncio.Future[None] | None = None

    def submit(self, command: Command) -> asyncio.Future[Any]:
        """Send ``command``; the future has its reply or its error."""
        reply = self._loop.create_future()
        if self._flights or self._boarding:
            self._waiting.append((command, reply))
            self._board()
        else:
            self._take_off([(command, reply)])
        return reply

    def submit_all(self, commands: Sequence[Command]) -> list[asyncio.Future[Any]]:
        """Send ``commands``, together if they are not too many."""
        entries = [(command, self._loop.create_future()) for command in commands]
        self._waiting.extend(entries)
        if self._flights or self._boarding:
            self._board()
        else:
            self._depart()
        return [reply for _, reply in entries]

    def _board(self) -> None:
        # It departs in the loop's next round: whatever else is asked for in this one travels with it.
        if not self._boarding and self._flights < FLIGHTS:
            self._boarding = True
            self._loop.call_soon(self._depart)

    def _depart(self) -> None:
        self._boarding = False
        count = min(len(self._waiting), LARGEST_BATCH)
        batch = [entry for entry in (self._waiting.popleft() for _ in range(count)) if not entry[1].done()]
        if batch:
            self._take_off(batch)
        if self._waiting:
            self._board()
        self._rest()

    def _take_off(self, batch: Sequence[tuple[Command, asyncio.Future[Any]]]) -> None:
        self._flights += 1
        try:
            self._fly([command for command, _ in batch], partial(self._landed, batch))
        except Exception as error:  # noqa: BLE001 - it is the callers' to handle
            self._landed(batch, [error] * len(batch))

    def _landed(self, batch: Sequence[tuple[Command, asyncio.Future[Any]]], outcomes: list[Any] | None) -> None:
        self._flights -= 1
        unwanted = []
        for at, (command, reply) in enumerate(batch):
            if reply.cancelled():
                unwanted.append(command)
            elif outcomes is None:
                reply.cancel()
            elif isinstance(outcomes[at], Exception):
                reply.set_exception(outcomes[at])
            else:
                reply.set_result(outcomes[at])
        if len(batch) > 1 or self._waiting:  # the callers who go on now travel together again
            self._board()
        self._rest()
        for command in unwanted:
            self._unwanted(command)

    def _rest(self) -> None:
        if self._landing is not None and not self._flights and not self._waiting:
            self._landing.set_result(None)
            self._landing = None

    async def land(self) -> None:
        """Return when nothing is under way."""
        while self._flights or self._waiting:
            if self._landing is None:
                self._landing = self._loop.create_future()
            await asyncio.shield(self._landing)
