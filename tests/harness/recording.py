"""See every command that clients send to a Redis, in order, through MONITOR."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import redis


class Sent(NamedTuple):
    """One command as a client sent it.

    Attributes:
        client: The client's address, ``host:port``.
        name: The command in lower case.
        line: The command with its arguments as MONITOR shows it, separated by spaces, unprintable bytes escaped.
    """

    client: str
    name: str
    line: str


@contextmanager
def record(monitoring: redis.Redis, marking: redis.Redis) -> Iterator[list[Sent]]:
    """Yield a list that is filled when the block ends; what scripts call is left out."""
    sent: list[Sent] = []
    marking.ping()  # connects before the recording starts, so that its handshake is not recorded
    with monitoring.monitor() as monitor:
        yield sent
        end = uuid.uuid4().hex
        marking.echo(end)
        while True:
            seen = monitor.next_command()
            line = seen["command"]
            if end in line:
                return
            if seen["client_type"] != "lua":
                client = f"{seen['client_address']}:{seen['client_port']}"
                sent.append(Sent(client, line.partition(" ")[0].lower(), line))
