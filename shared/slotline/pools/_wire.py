"""What pools say to a store, and how they read its replies."""

from __future__ import annotations

from typing import Any, NamedTuple

from slotline.pools.info import Holder, PoolInfo
from slotline.pools.rate import Rate
from slotline.stores.base import Command, Store
from slotline.stores.layout import base_key

NO_CAP = -1
UNLIMITED = 1_000_000_000
"""The size of a pool that only has a rate."""
_PARTS = ("slots", "line", "state", "claims", "ring")


def pool_keys(store: Store, key: str) -> tuple[bytes, ...]:
    """Return the keys of a pool, in the order in which all its scripts take them; encoded once, not at each call."""
    base = base_key(store.prefix, "pool", key)
    return tuple(f"{base}:{part}".encode("utf-8", "surrogatepass") for part in _PARTS)


def declaration(size: int, rate: Rate | None, most: int | None) -> str:
    """Return a limit as the store knows it: ``"size[@interval_us/burst][%most of a partition]"``."""
    return f"{size}{f'@{rate.wire}' if rate else ''}{f'%{most}' if most else ''}"


def milliseconds(seconds: float | None, none: int = NO_CAP) -> int:
    """Return whole milliseconds, at least one."""
    return none if seconds is None else max(1, round(seconds * 1000))


class Granted(NamedTuple):
    """A slot: its fence, and how many seconds it counts (``None``: without end)."""

    fence: int
    life: float | None


class Queued(NamedTuple):
    """A place in line, from 0; in how many seconds a slot expires (``None``: none does), and the store's clock."""

    place: int
    next_expiry: float | None
    clock: float


class Full(NamedTuple):
    """No slot, and no place asked for."""

    max_size: int
    owners: tuple[str, ...]
    retry_after: float


class Answer(NamedTuple):
    """A reply of ``pool_acquire``: the outcome, the limit in force and the declaration before this call (or "")."""

    outcome: Granted | Queued | Full
    max_size: int
    declared: str


def read_answer(reply: Any) -> Answer:
    """Read a reply of ``pool_acquire``."""
    code = int(reply[0])
    if code == 1:
        _, fence, life, size, declared = reply
        return Answer(Granted(int(fence), _life(int(life))), int(size), _text(declared))
    if code == 0:
        _, place, expiry, size, declared, clock = reply
        return Answer(Queued(int(place), _life(int(expiry)), int(clock) / 1000), int(size), _text(declared))
    _, size, owners, declared, rated_ms = reply
    outcome = Full(int(size), tuple(_text(owner) for owner in owners), int(rated_ms) / 1000)
    return Answer(outcome, int(size), _text(declared))


def read_grant(payload: bytes) -> tuple[Granted, float]:
    """Read the message that passes a slot to a waiter: the slot, and when it was given, by the store's clock."""
    fence, life, clock = payload.split(b" ")
    return Granted(int(fence), _life(int(life))), int(clock) / 1000


def info_command(keys: tuple[bytes, ...], declared: int, holders: int) -> Command:
    """Ask for a pool's state and at most ``holders`` of its holders."""
    return Command("pool_info", keys, (holders, declared))


def read_info(key: str, reply: Any) -> PoolInfo:
    """Read a reply of ``pool_info``."""
    size, used, waiting, _, listed, paused = reply
    holders = []
    for token, expires_ms, record in zip(listed[::3], listed[1::3], listed[2::3], strict=True):
        fence, acquired_ms, _, weight, partition, owner = _text(record).split("|", 5)
        expires, acquired = float(expires_ms), int(acquired_ms) / 1000
        ends = None if expires < 0 else expires / 1000
        holders.append(Holder(_text(token), owner, int(fence), acquired, ends, int(weight), partition or None))
    limit = None if int(size) >= UNLIMITED else int(size)
    return PoolInfo(key, limit, int(used), int(waiting), bool(paused), tuple(holders))


def _life(ms: int) -> float | None:
    return None if ms < 0 else ms / 1000


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "replace")
