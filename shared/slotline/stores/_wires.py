"""Connections of one event loop to one server, which redis-py makes and hands over.

redis-py connects, with TLS, names and passwords, and greets the server. From then on the connection's bytes come and go
here: an exchange needs no task, no streams and no timer of its own, and what it brings is told at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import redis
import redis.asyncio

from slotline.stores._lines import takes_a_name
from slotline.stores._resp import MORE, reader

Outcome = list[Any] | Exception
"""The replies, and the server's errors, one in each place; or the error that broke the connection."""


class Wire(asyncio.Protocol):
    """One connection: one exchange at a time.

    A connection that breaks within an exchange breaks all of it, since nobody knows what the server has done.

    Args:
        connection: One of redis-py's, connected.
        home: Where it goes when its exchange has ended, whatever became of it.

    Attributes:
        stands: Whether it can be used.
    """

    def __init__(self, connection: Any, home: list[Wire]) -> None:
        self.connection = connection
        self._home = home
        self._loop = asyncio.get_running_loop()
        self._reader = reader(connection._parser.parse_error)  # noqa: SLF001 - redis-py has no other way
        self._transport: asyncio.Transport = connection._writer.transport  # noqa: SLF001 - redis-py has no other way
        self._streams = self._transport.get_protocol()
        self._broken = False
        self._arrived: Callable[[Outcome], None] | None = None
        self._replies: list[Any] = []
        self._due = 0
        self._deadline = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._transport.set_protocol(self)

    @property
    def stands(self) -> bool:
        """See the class."""
        return not self._broken and not self._transport.is_closing()

    def exchange(self, words: Sequence[bytes], timeout: float, arrived: Callable[[Outcome], None]) -> None:
        """Send packed commands together; ``arrived`` is called once, within ``timeout`` seconds, with the outcome."""
        self._arrived, self._replies, self._due = arrived, [], len(words)
        self._deadline = self._loop.time() + timeout
        if self._timer is None:  # one that is set rings no later than this exchange has to end
            self._timer = self._loop.call_at(self._deadline, self._look_at_the_clock)
        # Whatever the transport cannot send at once it keeps: never more than this, since nothing follows before its
        # replies are here.
        self._transport.write(words[0] if len(words) == 1 else b"".join(words))

    def data_received(self, data: bytes) -> None:
        """Read replies."""
        if self._arrived is None:
            self.cut(redis.ConnectionError("the server says what nobody asked"))
            return
        replies, gets = self._replies, self._reader.gets
        try:
            self._reader.feed(data)
            while (reply := gets()) is not MORE:
                replies.append(reply)
        except Exception as error:  # noqa: BLE001 - it is told
            self.cut(error)
            return
        if len(replies) > self._due:
            self.cut(redis.ConnectionError("the server has answered what nobody asked"))
        elif len(replies) == self._due:
            for reply in replies:
                if isinstance(reply, redis.ConnectionError):  # it still loads its data, or misses a password
                    self.cut(reply)
                    return
            self._end(replies)

    def connection_lost(self, exc: Exception | None) -> None:
        """It has ended, from whichever side."""
        self._streams.connection_lost(exc)  # redis-py waits for this when it closes
        if self._timer is not None:
            self._timer.cancel()
        self._broken = True
        said = "the server has closed the connection" if exc is None else f"{type(exc).__name__}: {exc}"
        self._end(redis.ConnectionError(said))

    def cut(self, error: Exception) -> None:
        """End the connection, and with it the exchange, where one is under way."""
        self._broken = True
        self._transport.abort()
        self._end(error)

    def _look_at_the_clock(self) -> None:
        self._timer = None
        if self._arrived is None:
            return
        if self._loop.time() < self._deadline:
            self._timer = self._loop.call_at(self._deadline, self._look_at_the_clock)
        else:
            self.cut(redis.TimeoutError("the server has not answered in time"))

    def _end(self, outcome: Outcome) -> None:
        arrived, self._arrived = self._arrived, None
        if arrived is not None:
            self._home.append(self)
            arrived(outcome)


class Wires:
    """The connections of one event loop to one server.

    Args:
        client: Whose pool makes them; closed with them.
    """

    def __init__(self, client: redis.asyncio.Redis) -> None:
        self.client = client
        self._pool = client.connection_pool
        self._named = takes_a_name(self._pool.get_connection)
        self._idle: list[Wire] = []
        self._broken: list[Any] = []

    def idle(self) -> Wire | None:
        """Take one that stands and that nobody uses, if there is one."""
        while self._idle:
            wire = self._idle.pop()
            if wire.stands:
                return wire
            self._broken.append(wire.connection)
        return None

    async def exchange(self, words: Sequence[bytes], timeout: float) -> list[Any]:
        """Send packed commands together, over a new connection if need be, and return the outcome.

        Raises:
            Exception: What broke the connection, or that there was none.
        """
        async with asyncio.timeout(timeout):
            wire = self.idle() or await self._connect()
            outcome: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
            wire.exchange(words, timeout, partial(_tell, outcome))
            try:
                replies = await outcome
            finally:
                if outcome.cancelled():
                    wire.cut(redis.ConnectionError("nobody waits for the answer any more"))
        if isinstance(replies, Exception):
            raise replies
        return replies

    async def _connect(self) -> Wire:
        if not self._broken:
            return Wire(await self._pool.get_connection(*self._named), self._idle)
        connection = self._broken.pop()
        try:
            await connection.disconnect(nowait=True)
            await connection.connect()
        except BaseException:
            self._broken.append(connection)
            raise
        return Wire(connection, self._idle)

    async def close(self) -> None:
        """Close the connections, and the client."""
        await self.client.aclose()
        await self._pool.disconnect()


def _tell(outcome: asyncio.Future[Outcome], what: Outcome) -> None:
    if not outcome.done():
        outcome.set_result(what)
