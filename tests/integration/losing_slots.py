"""What runs that must end when their slots are lost write down, and what their history must say."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence

import redis

PULSE = 0.02
"""Seconds between two signs of life of a run."""


def beat(url: str, name: str, fence: int, seconds: float) -> int:
    """Give signs of life with a fence for so long, from whatever process this runs in."""
    with redis.Redis.from_url(url) as history:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            history.xadd(f"history:{name}", {"fence": fence, "pid": os.getpid()})
            time.sleep(PULSE)
    return fence


def fences(client: redis.Redis, name: str) -> list[int]:
    """Return the fences of the signs of life, in the order in which the server has seen them."""
    return [int(entry[b"fence"]) for _, entry in client.xrange(f"history:{name}")]


def pids(client: redis.Redis, name: str) -> list[int]:
    """Return the processes that have given signs of life, in order of their first."""
    return list(dict.fromkeys(int(entry[b"pid"]) for _, entry in client.xrange(f"history:{name}")))


def one_after_the_other(seen: Sequence[int]) -> bool:
    """Whether no run gave a sign of life after its successor's first."""
    return list(seen) == sorted(seen)
