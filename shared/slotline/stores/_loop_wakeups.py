"""Doorbells that an event loop hears by itself, without a thread between its socket and whoever waits in it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import redis

from slotline.stores import _hearing
from slotline.stores._hearing import Hearing
from slotline.stores.wakeups import Bell

if TYPE_CHECKING:
    from slotline.stores._redis_wakeups import RedisWakeups


class LoopWakeups(Hearing):
    """Listens in an event loop on a channel of its own, for those who wait in that loop.

    What many processes are told is heard by the process's own doorbells, in a thread: a loop that is held up must not
    keep it from others.

    Args:
        name: What logs and errors call the server.
        channel: The loop's channel.
        make: Makes a connection, not connected yet.
        tie: Sees to it that :meth:`close` is called before the loop ends.
        process: Returns the doorbells of the process.
        timeout: Seconds for an answer of the server.
    """

    def __init__(
        self,
        name: str,
        channel: str,
        *,
        make: Callable[[], Any],
        tie: Callable[[], Awaitable[None]],
        process: Callable[[], RedisWakeups],
        timeout: float,
    ) -> None:
        super().__init__(name, channel, timeout=timeout)
        self._make, self._tie, self._process = make, tie, process
        self._loop = asyncio.get_running_loop()
        self._connection: Any = None
        self._connecting: asyncio.Task[None] | None = None
        self._ear: _Ear | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._came_at = 0.0

    def bell(self, token: str) -> Bell:
        self._process().rouse()
        return super().bell(token)

    def _start(self) -> None:
        self._connect_after(0.0)

    def _resubscribe(self) -> None:
        if self._ear is not None:
            self._say(self._ear, self._subscribe())

    def _connect_after(self, pause: float) -> None:
        self._connecting = self._loop.create_task(self._connect(pause))
        self._connecting.add_done_callback(self._tried)

    async def _connect(self, pause: float) -> None:
        while True:
            await asyncio.sleep(pause)
            try:
                await self._connect_once()
            except Exception as error:  # noqa: BLE001 - whatever it was, it is tried again
                pause = self._lost(error)
            else:
                return

    def _tried(self, task: asyncio.Task[None]) -> None:
        if task.cancelled():  # by a loop that ends, and perhaps before it began
            self._end("its event loop ends")

    async def _connect_once(self) -> None:
        if self._connection is None:
            await self._tie()
            self._connection = self._make()
        async with asyncio.timeout(self._timeout):
            await self._connection.disconnect(nowait=True)  # what is left of the last one
            await self._connection.connect()
        parse_error = self._connection._parser.parse_error  # noqa: SLF001 - redis-py has no other way
        ear = self._ear = _Ear(self, self._connection)
        self._say(ear, self._open(parse_error))

    def came(self, ear: _Ear, data: bytes) -> None:
        """Take what has come."""
        if ear is not self._ear:
            return
        self._came_at = time.monotonic()
        try:
            words = self._receive(data)
        except Exception as error:  # noqa: BLE001 - whatever broke the connection, it is made anew
            self._break(error)
        else:
            if words:
                self._say(ear, words)

    def ended(self, ear: _Ear, error: Exception | None) -> None:
        """Take notice that a connection has ended."""
        if ear is self._ear:
            self._break(error or redis.ConnectionError("the server has closed the connection"))

    def _say(self, ear: _Ear, words: bytes) -> None:
        ear.transport.write(words)
        self._look_after(self._timeout)

    def _look_after(self, seconds: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(seconds, self._look)

    def _look(self) -> None:
        # One timer, which is set anew when it rings: messages come often, and need none of their own.
        if self._ear is None:
            return
        due = self._came_at + _hearing.CHECK if self._asked_at is None else self._asked_at + self._timeout
        left = due - time.monotonic()
        if left > 0:
            self._look_after(left)
            return
        try:
            words = self._silent()
        except TimeoutError as error:
            self._break(error)
        else:
            if words is None:
                self._hang_up()
            else:
                self._say(self._ear, words)

    def _break(self, error: Exception) -> None:
        self._hang_up()
        self._connect_after(self._lost(error))

    def _hang_up(self) -> None:
        ear, self._ear = self._ear, None
        if self._timer is not None:
            self._timer.cancel()
        if ear is not None:
            ear.transport.abort()

    async def close(self) -> None:
        """Listen no more; whoever waits finds the store's next doorbells when it looks again."""
        self._end("it was closed")
        self._hang_up()
        if self._connecting is not None:
            self._connecting.cancel()
            await asyncio.wait([self._connecting])
        if self._connection is not None:
            await self._connection.disconnect()


class _Ear(asyncio.Protocol):
    """One connection, whose bytes come here from now on.

    Args:
        hub: Whose it is.
        connection: One of redis-py's, connected.
    """

    def __init__(self, hub: LoopWakeups, connection: Any) -> None:
        self._hub = hub
        self.transport: asyncio.Transport = connection._writer.transport  # noqa: SLF001 - redis-py has no other way
        self._streams = self.transport.get_protocol()
        self.transport.set_protocol(self)

    def data_received(self, data: bytes) -> None:
        """See :class:`asyncio.Protocol`."""
        self._hub.came(self, data)

    def connection_lost(self, exc: Exception | None) -> None:
        """See :class:`asyncio.Protocol`."""
        self._streams.connection_lost(exc)  # redis-py waits for this when it closes
        self._hub.ended(self, exc)
