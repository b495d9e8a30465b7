"""Connections of one process's threads to one server, which redis-py makes and hands over.

redis-py connects and greets the server; the bytes of an exchange go through here. What comes before and after one in
redis-py's clients (taking a connection out of a pool, looking whether it still stands, counting, putting it back) costs
as much again. So a connection that was used just now is used again as it is; one that was not is looked at first.
"""

from __future__ import annotations

import inspect
import queue
import time
from collections.abc import Callable, Sequence
from typing import Any

import redis

from slotline.stores._resp import MORE, reader

FRESH = 1.0
"""Seconds for which a connection that was used is taken to stand; if it does not, the exchange is repeated as ever."""
_AT_ONCE = 65536
_BRIEFLY = 0.001
"""Seconds that are waited at least: none at all would mean another kind of socket."""


class _Line:
    """One connection: one exchange at a time.

    Args:
        connection: One of redis-py's.

    Attributes:
        used: When it was used last (monotonic); 0 when it has to be made anew.
    """

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self.used = 0.0

    def exchange(self, words: Sequence[bytes], broken_at: float, patience: float) -> list[Any]:
        """Send packed commands together and return their replies; look first if others have broken since.

        Args:
            words: The commands.
            broken_at: When another connection broke (monotonic).
            patience: Seconds to wait for each answer.
        """
        if self.used < max(broken_at, time.monotonic() - FRESH) and not self._stands():
            self._connect(patience)
        if self._socket.gettimeout() != patience:
            self._socket.settimeout(patience)
        receive, feed, gets = self._socket.recv, self._reader.feed, self._reader.gets
        self._socket.sendall(words[0] if len(words) == 1 else b"".join(words))
        replies = []
        for _ in words:
            while (reply := gets()) is MORE:
                data = receive(_AT_ONCE)
                if not data:
                    raise redis.ConnectionError("the server has closed the connection")
                feed(data)
            if isinstance(reply, redis.ConnectionError):  # it still loads its data, or misses a password
                raise reply
            replies.append(reply)
        if gets() is not MORE:
            raise redis.ConnectionError("the server has answered what nobody asked")
        self.used = time.monotonic()
        return replies

    def _connect(self, patience: float) -> None:
        connection = self._connection
        connection.disconnect()
        connection.socket_timeout = connection.socket_connect_timeout = patience
        connection.connect()
        self._socket = connection._sock  # noqa: SLF001 - redis-py has no other way
        self._reader = reader(connection._parser.parse_error)  # noqa: SLF001 - redis-py has no other way

    def _stands(self) -> bool:
        try:
            return self.used > 0 and not self._connection.can_read()  # the end of the stream, or what nobody asked for
        except (redis.ConnectionError, redis.TimeoutError, OSError):
            return False

    def cut(self) -> None:
        """End the connection: nobody knows what it would read next."""
        self.used = 0.0
        self._connection.disconnect()


class BlockingLines:
    """The connections of one process's threads to one server.

    Args:
        client: Whose pool makes them; closed with them.
        limit: The most connections that are busy at the same time.
        patience: Seconds to wait for an answer, and for a connection while all are busy.
    """

    def __init__(self, client: redis.Redis, limit: int, patience: float) -> None:
        self.client = client
        self._pool = client.connection_pool
        self._idle: list[_Line] = []
        self._broken_at = 0.0
        self._free: queue.SimpleQueue[None] = queue.SimpleQueue()  # a semaphore of Python's costs eight times as much
        for _ in range(limit):
            self._free.put(None)
        self._patience = patience

    def exchange(self, words: Sequence[bytes], until: float | None = None) -> list[Any]:
        """Send packed commands together and return their replies, and the server's errors, one in each place.

        Args:
            words: The commands.
            until: When nobody waits for an answer any more (monotonic), if that is earlier.
        """
        patience = self._patience
        if until is not None:
            patience = min(patience, max(until - time.monotonic(), _BRIEFLY))
        try:
            self._free.get(timeout=patience)
        except queue.Empty:
            raise redis.ConnectionError("all connections are busy") from None
        try:
            try:
                line = self._idle.pop()
            except IndexError:
                line = _Line(self._pool.make_connection())
            try:
                return line.exchange(words, self._broken_at, patience)
            except BaseException:
                line.cut()
                self._broken_at = time.monotonic()
                raise
            finally:
                self._idle.append(line)
        finally:
            self._free.put(None)

    def close(self) -> None:
        """Close the connections, and the client."""
        self.client.close()
        self._pool.disconnect()


def takes_a_name(get_connection: Callable[..., Any]) -> tuple[str, ...]:
    """Return what redis-py < 5.3 wants to know, and newer ones warn of."""
    name = inspect.signature(get_connection).parameters.get("command_name")
    return () if name is None or name.default is not name.empty else ("",)
