"""What a pool looks like at one moment."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Holder:
    """Who holds a slot; times in seconds since the epoch, by the store's clock (monotonic in a memory store)."""

    token: str
    owner: str
    fence: int
    acquired_at: float
    expires_at: float | None


@dataclass(frozen=True, slots=True)
class PoolInfo:
    """A pool's limit, how many slots are in use, how many callers wait in line, and the holders that were asked for."""

    key: str
    max_size: int
    used: int
    waiting: int
    holders: tuple[Holder, ...]
