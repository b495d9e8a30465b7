"""Connections to one server, kept at hand between exchanges.

An exchange is a redis-py connection's: bytes out, replies in. What comes before and after it in redis-py's clients
(taking a connection out of a pool, looking whether it still stands, counting, putting it back) costs as much again. So
a connection that was used just now is used again as it is; one that was not is looked at first.
"""

from __future__ import annotations

import asyncio
import inspect
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import redis
import redis.asyncio
from redis.exceptions import DataError, ResponseError

pack_command: Callable[[tuple[Any, ...]], bytes] | None
try:
    from hiredis import pack_command
except ImportError:  # redis-py works without it, and so does this
    pack_command = None

FRESH = 1.0
"""Seconds for which a connection that was used is taken to stand; if it does not, the exchange is repeated as ever."""


def packed(words: Sequence[Any]) -> bytes:
    """Return one command as the server reads it.

    Raises:
        UnicodeError: Text that has no UTF-8 form.
        DataError: Something that is neither text, bytes nor a number.
    """
    if pack_command is not None:
        try:
            return pack_command(tuple(words))
        except TypeError as error:
            raise DataError(str(error)) from None
    parts = [b"*%d\r\n" % len(words)]
    for word in words:
        if not isinstance(word, str | bytes | int | float) or isinstance(word, bool):
            raise DataError(f"a command has no place for {word!r}")
        data = word if isinstance(word, bytes) else str(word).encode()
        parts.append(b"$%d\r\n%b\r\n" % (len(data), data))
    return b"".join(parts)


class BlockingLines:
    """The connections of one process's threads to one server.

    Args:
        client: Whose pool makes them; closed with them.
        limit: The most connections that are busy at the same time.
        patience: Seconds to wait for one while all are busy.
    """

    def __init__(self, client: redis.Redis, limit: int, patience: float) -> None:
        self.client = client
        self._pool = client.connection_pool
        self._named = _takes_a_name(self._pool.get_connection)
        self._idle: list[tuple[Any, float]] = []
        self._broken_at = 0.0
        self._free, self._patience = threading.Semaphore(limit), patience

    def exchange(self, commands: Sequence[bytes]) -> list[Any]:
        """Send packed commands together and return their replies, and the server's errors, one in each place."""
        if not self._free.acquire(timeout=self._patience):
            raise redis.ConnectionError("all connections are busy")
        try:
            try:
                connection, used = self._idle.pop()
            except IndexError:
                connection, used = self._pool.get_connection(*self._named), time.monotonic()
            try:
                if used < max(self._broken_at, time.monotonic() - FRESH):
                    _let_go_if_broken(connection)
                connection.send_packed_command((b"".join(commands),))
                replies = [_read(connection) for _ in commands]
            except BaseException:
                connection.disconnect()  # nobody knows what it would read next; the next exchange connects it again
                self._broken_at = time.monotonic()
                self._idle.append((connection, 0.0))
                raise
            self._idle.append((connection, time.monotonic()))
            return replies
        finally:
            self._free.release()

    def close(self) -> None:
        """Close the connections, and the client."""
        self.client.close()
        self._pool.disconnect()


def _let_go_if_broken(connection: Any) -> None:
    try:
        broken = connection.can_read()  # the end of the stream
    except (redis.ConnectionError, redis.TimeoutError, OSError):
        broken = True
    if broken:
        connection.disconnect()


def _read(connection: Any) -> Any:
    try:
        return connection.read_response()
    except ResponseError as error:
        return error


class AwaitingLines:
    """The connections of one event loop to one server.

    Args:
        client: Whose pool makes them; closed with them.
    """

    def __init__(self, client: redis.asyncio.Redis) -> None:
        self.client = client
        self._pool = client.connection_pool
        self._named = _takes_a_name(self._pool.get_connection)
        self._idle: list[tuple[Any, float]] = []
        self._broken_at = 0.0

    async def exchange(self, commands: Sequence[bytes], timeout: float) -> list[Any]:
        """Send packed commands together and return their replies, and the server's errors, one in each place."""
        async with asyncio.timeout(timeout):
            if self._idle:
                connection, used = self._idle.pop()
            else:
                connection, used = await self._pool.get_connection(*self._named), time.monotonic()
            try:
                if used < max(self._broken_at, time.monotonic() - FRESH):
                    await _let_go_if_broken_awaiting(connection)
                await connection.send_packed_command((b"".join(commands),))
                replies = [await _read_awaiting(connection) for _ in commands]
            except BaseException:
                self._broken_at = time.monotonic()
                self._idle.append((connection, 0.0))
                await connection.disconnect(nowait=True)
                raise
        self._idle.append((connection, time.monotonic()))
        return replies

    async def close(self) -> None:
        """Close the connections, and the client."""
        await self.client.aclose()
        await self._pool.disconnect()
        for connection, _ in self._idle:
            await connection.disconnect()


async def _let_go_if_broken_awaiting(connection: Any) -> None:
    try:
        can_read = getattr(connection, "can_read", None) or connection.can_read_destructive  # redis-py >= 8, and before
        broken = await can_read()
    except (redis.ConnectionError, redis.TimeoutError, OSError):
        broken = True
    if broken:
        await connection.disconnect(nowait=True)


async def _read_awaiting(connection: Any) -> Any:
    try:
        return await connection.read_response()
    except ResponseError as error:
        return error


def _takes_a_name(get_connection: Callable[..., Any]) -> tuple[str, ...]:
    """Return what redis-py < 5.3 wants to know, and newer ones warn of."""
    name = inspect.signature(get_connection).parameters.get("command_name")
    return () if name is None or name.default is not name.empty else ("",)
