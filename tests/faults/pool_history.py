"""Who was inside a pool when, in a stream of a Redis: at most so many at any instant, told apart by their fences.

An ``enter`` is written after a slot was taken and a ``leave`` before it is given back, so that whoever is inside by the
history held a slot.
"""

from __future__ import annotations

from collections import Counter

import redis

STREAM = "history"


class PoolHistory:
    """Writes the history, and checks it.

    Args:
        client: A client of the server that keeps it.
        stream: Its name.
    """

    def __init__(self, client: redis.Redis, stream: str = STREAM) -> None:
        self._client, self._stream = client, stream

    def enter(self, fence: int, process: str = "", message: str | bytes = "") -> None:
        """Somebody has a slot now, perhaps with a message."""
        self._write("enter", fence, process, message)

    def leave(self, fence: int, process: str = "", message: str | bytes = "") -> None:
        """Somebody is about to give a slot back."""
        self._write("leave", fence, process, message)

    def gone(self, process: str) -> None:
        """A process was killed, or stands still: it is inside no more."""
        self._write("gone", 0, process, "")

    def _write(self, what: str, fence: int, process: str, message: str | bytes) -> None:
        self._client.xadd(self._stream, {"what": what, "fence": fence, "process": process, "message": message})
        self._client.expire(self._stream, 3600)

    def entries(self) -> list[dict[bytes, bytes]]:
        """Return what was written, in order."""
        return [entry for _, entry in self._client.xrange(self._stream)]

    def runs(self) -> Counter[bytes]:
        """Return how often each message was begun."""
        begun = (entry[b"message"] for entry in self.entries() if entry[b"what"] == b"enter")
        return Counter(message for message in begun if message)

    def most_inside(self) -> int:
        """Return how many were inside at the same time at the most; each with a fence that no other ever had."""
        inside: dict[bytes, bytes] = {}
        fences: set[bytes] = set()
        most = 0
        for entry in self.entries():
            what, fence, process = entry[b"what"], entry[b"fence"], entry[b"process"]
            if what == b"enter":
                assert fence not in fences, "a fence was given twice"
                fences.add(fence)
                inside[fence] = process
                most = max(most, len(inside))
            elif what == b"leave":
                inside.pop(fence, None)
            else:
                inside = {fence: other for fence, other in inside.items() if other != process}
        return most
