"""Redis's language: how commands are written, and replies read from pieces of any size."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import DataError

Reader: Callable[..., Any] | None
pack_command: Callable[[tuple[Any, ...]], bytes] | None
try:
    from hiredis import Reader, pack_command
except ImportError:  # redis-py works without it, and so does this
    Reader = pack_command = None

MORE: Any = object()
"""Stands for a reply that has not come whole yet."""
_END = b"\r\n"


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


def reader(error: Callable[[str], Exception]) -> Any:
    """Return what is fed with bytes and gives replies: ``bytes``, ``int``, ``None``, lists of these, and errors.

    ``gets()`` returns :data:`MORE` while the next reply is not there, and raises redis-py's ``ConnectionError``
    for what is none.

    Args:
        error: Makes an exception of what the server says.
    """
    if Reader is None:
        return PlainReader(error)
    return Reader(protocolError=RedisConnectionError, replyError=error, errors="replace", notEnoughData=MORE)


class PlainReader:
    """See :func:`reader`."""

    def __init__(self, error: Callable[[str], Exception]) -> None:
        self._error = error
        self._come = bytearray()
        self._needed = 0

    def feed(self, data: bytes) -> None:
        """Take what has come."""
        self._come += data

    def gets(self) -> Any:
        """Return the next reply."""
        if len(self._come) < self._needed:
            return MORE
        try:
            reply, end = self._reply(0)
        except _IncompleteError as short:
            self._needed = short.needed
            return MORE
        del self._come[:end]
        self._needed = 0
        return reply

    def _reply(self, start: int) -> tuple[Any, int]:
        line, at = self._line(start)
        kind, said = line[:1], line[1:]
        if kind == b"+":
            return said, at
        if kind == b"-":
            return self._error(said.decode("utf-8", "replace")), at
        try:
            number = int(said)
        except ValueError:
            kind = b""
        if kind == b":":
            return number, at
        if kind in {b"$", b"*"} and number == -1:
            return None, at
        if kind == b"$":
            end = at + number + len(_END)
            if len(self._come) < end:
                raise _IncompleteError(end)
            return bytes(self._come[at : at + number]), end
        if kind in {b"*", b">"}:  # what a server says unasked is a kind of its own in RESP3
            replies = []
            for _ in range(number):
                reply, at = self._reply(at)
                replies.append(reply)
            return replies, at
        raise RedisConnectionError(f"no reply begins with {line!r}")

    def _line(self, start: int) -> tuple[bytes, int]:
        end = self._come.find(_END, start)
        if end < 0:
            raise _IncompleteError(len(self._come) + 1)
        return bytes(self._come[start:end]), end + len(_END)


class _IncompleteError(Exception):
    """What has come ends within a reply; ``needed``: as many bytes have to be there."""

    def __init__(self, needed: int) -> None:
        self.needed = needed
