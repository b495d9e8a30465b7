"""What a pool looks like at one moment."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Holder:
    """Who holds a slot; times in seconds since the epoch, by the store's clock (monotonic in a memory store).

    ``partition`` is the store's name for it: a digest where its own is long, or more than letters, digits and
    ``_.:@/+=-``.
    """

    token: str
    owner: str
    fence: int
    acquired_at: float
    expires_at: float | None
    weight: int = 1
    partition: str | None = None


@dataclass(frozen=True, slots=True)
class PoolInfo:
    """What a pool looks like.

    Attributes:
        key: Its key.
        max_size: The limit in force; ``None``: it only has a rate.
        used: How many slots are in use, each counted as often as it weighs.
        waiting: How many callers and parked messages wait in line.
        paused: Whether it lets nobody in.
        holders: The holders, as many as were asked for.
    """

    key: str
    max_size: int | None
    used: int
    waiting: int
    paused: bool
    holders: tuple[Holder, ...]
