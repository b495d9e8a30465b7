"""What runs write down that die, or must end when their slots are lost, and what their history must say."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Sequence

import redis

PULSE = 0.02
"""Seconds between two signs of life of a run."""


def beat(url: str, name: str, fence: int, seconds: float, task: str = "") -> int:
    """Give signs of life with a fence for so long, and one of its end, from whatever process this runs in."""
    with redis.Redis.from_url(url) as history:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            sign(history, name, fence, task)
            time.sleep(PULSE)
        sign(history, name, fence, task, "ends")
    return fence


def sign(history: redis.Redis, name: str, fence: int, task: str, what: str = "lives") -> None:
    """Write down that a run of a task lives, or ends, and when (us): a run may be dead by the time that is read."""
    now = time.time_ns() // 1000
    history.xadd(f"history:{name}", {"fence": fence, "pid": os.getpid(), "task": task, "what": what, "at": now})


def fences(client: redis.Redis, name: str) -> list[int]:
    """Return the fences of the signs of life, in the order in which the server has seen them."""
    return [int(entry[b"fence"]) for _, entry in client.xrange(f"history:{name}")]


def pids(client: redis.Redis, name: str) -> list[int]:
    """Return the processes that have given signs of life, in order of their first."""
    return list(dict.fromkeys(int(entry[b"pid"]) for _, entry in client.xrange(f"history:{name}")))


def one_after_the_other(seen: Sequence[int]) -> bool:
    """Whether no run gave a sign of life after its successor's first."""
    return list(seen) == sorted(seen)


def most_alive(seen: Sequence[int]) -> int:
    """Return how many runs lived at once at the most: each from its first sign of life to its last."""
    first = {fence: at for at, fence in reversed(list(enumerate(seen)))}
    last = {fence: at for at, fence in enumerate(seen)}
    alive = most = 0
    for at, fence in enumerate(seen):
        alive += first[fence] == at
        most = max(most, alive)
        alive -= last[fence] == at
    return most


def runs(client: redis.Redis, name: str) -> Counter[str]:
    """Return how many runs of each task there were, by their fences."""
    return Counter(task for task, _ in {(entry[b"task"].decode(), entry[b"fence"]) for entry in entries(client, name)})


def ends(client: redis.Redis, name: str) -> Counter[str]:
    """Return how many runs of each task have come to their end."""
    return Counter(entry[b"task"].decode() for entry in entries(client, name) if entry[b"what"] == b"ends")


def entries(client: redis.Redis, name: str) -> list[dict[bytes, bytes]]:
    """Return all that was written down, in the order in which the server has seen it."""
    return [entry for _, entry in client.xrange(f"history:{name}")]
