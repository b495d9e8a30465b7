"""Free TCP ports for servers of the tests."""

from __future__ import annotations

import random
import socket

_CHOICE = (
    random.SystemRandom()
)  # the global generator is seeded alike in every run, so two runs would try the same ports


def free_port() -> int:
    """Return a port of 127.0.0.1 that nobody listens on now.

    It lies below the range from which the kernel takes ports of outgoing connections, so that a server which is
    stopped and started again finds its port still free.
    """
    for _ in range(200):
        port = _CHOICE.randrange(20_000, 32_000)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise RuntimeError("no free port between 20000 and 32000")
