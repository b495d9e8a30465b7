"""Connections of one process's threads to one server, kept at hand between exchanges.

An exchange is a redis-py connection's: bytes out, replies in. What comes before and after it in redis-py's clients
(taking a connection out of a pool, looking whether it still stands, counting, putting it back) costs as much again. So
a connection that was used just now is used again as it is; one that was not is looked at first.
"""

from __future__ import annotations

import inspect
import queue
import time
from collections.abc import Callable, Sequence
from typing import Any

import redis
from redis.exceptions import ResponseError

FRESH = 1.0
"""Seconds for which a connection that was used is taken to stand; if it does not, the exchange is repeated as ever."""


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
        self._named = takes_a_name(self._pool.get_connection)
        self._idle: list[tuple[Any, float]] = []
        self._broken_at = 0.0
        self._free: queue.SimpleQueue[None] = queue.SimpleQueue()  # a semaphore of Python's costs eight times as much
        for _ in range(limit):
            self._free.put(None)
        self._patience = patience

    def exchange(self, commands: Sequence[bytes]) -> list[Any]:
        """Send packed commands together and return their replies, and the server's errors, one in each place."""
        try:
            self._free.get(timeout=self._patience)
        except queue.Empty:
            raise redis.ConnectionError("all connections are busy") from None
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
            self._free.put(None)

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


def takes_a_name(get_connection: Callable[..., Any]) -> tuple[str, ...]:
    """Return what redis-py < 5.3 wants to know, and newer ones warn of."""
    name = inspect.signature(get_connection).parameters.get("command_name")
    return () if name is None or name.default is not name.empty else ("",)
