"""The limits of the soak run's tasks, which write down that they live, in the history of each of their pools."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Mapping
from typing import Any

import redis

from tests.integration.losing_slots import PULSE, sign

LIMITS: dict[str, dict[str, Any]] = {
    "both": {"pool": "both", "pool_size": 3},
    "tenants": {"pool": "tenants", "pool_size": 3, "pool_partition": "{tenant}", "pool_max_per_partition": 1},
    "held": {"pool": "held", "pool_size": 2, "pool_on_full": "wait"},
    "paced": {"pool": "paced", "pool_rate": "3/s", "pool_burst": 3},
    "heavy": {"pool": "scale", "pool_size": 3, "pool_weight": 2},
    "light": {"pool": "scale", "pool_size": 3},
    "left": {"pool": "left", "pool_size": 2, "pool_rate": "6/s", "pool_burst": 2, "pool_group": "pairs"},
    "right": {"pool": "right", "pool_size": 3, "pool_group": "pairs"},
    "pair": {
        "pool": ["left", "right"],
        "pool_size": [2, 3],
        "pool_rate": ["6/s", None],
        "pool_burst": [2, None],
        "pool_weight": [1, 2],
        "pool_group": "pairs",
    },
}
"""The tasks that have limits, and which, in both queues."""


def live(url: str, fences: Mapping[str, int], seconds: float, task: str) -> None:
    """Give signs of life for so long, and one of its end, from whatever process this runs in."""
    with redis.Redis.from_url(url) as history:
        for pulse in _pulses(history, fences, seconds, task):
            time.sleep(pulse)


async def alive(history: redis.Redis, fences: Mapping[str, int], seconds: float, task: str) -> None:
    """Give signs of life for so long, and one of its end, in an event loop."""
    for pulse in _pulses(history, fences, seconds, task):
        await asyncio.sleep(pulse)


def fences_of(slot: Any) -> dict[str, int]:
    """Return the fence of each pool that a run has a slot of."""
    return {one.key: one.fence for one in getattr(slot, "slots", (slot,))}


def _pulses(history: redis.Redis, fences: Mapping[str, int], seconds: float, task: str) -> Iterator[float]:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        for name, fence in fences.items():
            sign(history, name, fence, task)
        yield PULSE
    for name, fence in fences.items():
        sign(history, name, fence, task, "ends")
