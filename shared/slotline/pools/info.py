"""What a pool looks like at one moment."""

from __future__ import annotations

from dataclasses import dataclass

from slotline.pools.rate import Rate


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
class Waiter:
    """Who waits in line; see :class:`Holder`.

    Attributes:
        token: Its token, or the digest of a parked message.
        owner: Who it is, for people.
        since: Since when it waits: seconds since the epoch, by the store's clock (monotonic in a memory store).
        weight: How many slots it needs; 1 for one who wants slots of several pools.
        partition: On whose account, as with a :class:`Holder`; ``None`` for one who wants slots of several pools.
        parked: Whether it is a parked message, and not a caller.
        several: Whether it wants slots of other pools, too; it is told of at the first of them by name.
    """

    token: str
    owner: str
    since: float
    weight: int = 1
    partition: str | None = None
    parked: bool = False
    several: bool = False


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
        rate: How often a slot may be taken, if that is limited.
        max_per_partition: The most that one partition may have, if that is limited.
        now: The store's clock, by which the times of holders and waiters are.
    """

    key: str
    max_size: int | None
    used: int
    waiting: int
    paused: bool
    holders: tuple[Holder, ...]
    rate: Rate | None = None
    max_per_partition: int | None = None
    now: float = 0.0
