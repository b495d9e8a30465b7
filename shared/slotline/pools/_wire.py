"""What pools say to a store, and how they read its replies."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

from slotline.pools.info import Holder, PoolInfo, Waiter
from slotline.pools.rate import Rate
from slotline.stores.base import Command, Store
from slotline.stores.layout import base_key, grouped_key

NO_CAP = -1
UNLIMITED = 1_000_000_000
"""The size of a pool that only has a rate."""
_SEPARATOR = "\x00"
_PARTS = ("slots", "line", "state", "claims", "ring")


def pool_name(key: str, group: str | None) -> str:
    """Return the one text that says which pool is meant, for channels and indexes: its key, where it has no group."""
    return key if group is None and key[0] != _SEPARATOR else f"{_SEPARATOR}{group or ''}{_SEPARATOR}{key}"


def named_pool(name: str) -> tuple[str, str | None]:
    """Return the key and the group of a pool of this name."""
    if name[0] != _SEPARATOR:
        return name, None
    group, _, key = name[1:].partition(_SEPARATOR)
    return key, group or None


def pool_keys(store: Store, name: str) -> tuple[bytes, ...]:
    """Return the keys of a pool, in the order in which all its scripts take them; encoded once, not at each call."""
    key, group = named_pool(name)
    base = base_key(store.prefix, "pool", key) if group is None else grouped_key(store.prefix, group, key)
    return tuple(f"{base}:{part}".encode("utf-8", "surrogatepass") for part in _PARTS)


def channels(store: Store) -> str:
    """Return what the names of the channels begin with on which workers are called for messages of their lanes."""
    return f"{store.prefix}:lane:"


def declaration(size: int, rate: Rate | None, most: int | None) -> str:
    """Return a limit as the store knows it: ``"size[@interval_us/burst][%most of a partition]"``."""
    return f"{size}{f'@{rate.wire}' if rate else ''}{f'%{most}' if most else ''}"


def in_words(declared: str) -> str:
    """Return a :func:`declaration` as people write it: ``"5, a start every 0.6 s (burst 10), 2 of a partition"``."""
    rest, _, most = declared.partition("%")
    size, _, rate = rest.partition("@")
    words = [] if int(size) >= UNLIMITED else [size]
    if rate:
        interval_us, _, burst = rate.partition("/")
        words.append(f"a start every {int(interval_us) / 1_000_000:.9g} s (burst {burst})")
    if most:
        words.append(f"{most} of a partition")
    return ", ".join(words)


@lru_cache(maxsize=256)
def milliseconds(seconds: float | None, none: int = NO_CAP) -> int:
    """Return whole milliseconds, at least one."""
    return none if seconds is None else max(1, round(seconds * 1000))


class Granted(NamedTuple):
    """The slot of each pool that was asked for: its fence, and how many seconds it counts (``None``: without end).

    ``roomy``: at most half of the pool was used, and no message waited for it, or ran out of the room; see ``Relay``.
    """

    fences: tuple[int, ...]
    lives: tuple[float | None, ...]
    roomy: bool = False


class Queued(NamedTuple):
    """A place in line, from 0; in how many seconds a slot expires (``None``: none does), and the store's clock.

    ``pool`` is the one, of those that were asked, that is full.
    """

    place: int
    next_expiry: float | None
    clock: float
    pool: int = 0


class Full(NamedTuple):
    """No slot, and no place asked for; which of the pools that were asked is full.

    ``resting``: for so many seconds one of its slots may only rest between two runs; see ``Relay``.
    """

    pool: int
    owners: tuple[str, ...]
    retry_after: float
    resting: float


class Answer(NamedTuple):
    """What a caller or a message gets: the outcome; of each pool the limit in force and what was declared before."""

    outcome: Granted | Queued | Full
    sizes: tuple[int, ...]
    declared: tuple[str, ...]


def read_answer(reply: Any) -> Answer:
    """Read a reply of ``pool_acquire``."""
    code = int(reply[0])
    if code == 1:
        _, fence, life, size, declared, roomy = reply
        return Answer(Granted((int(fence),), (_life(int(life)),), bool(roomy)), (int(size),), (_text(declared),))
    if code == 0:
        _, place, expiry, size, declared, clock = reply
        return Answer(Queued(int(place), _life(int(expiry)), int(clock) / 1000), (int(size),), (_text(declared),))
    _, size, owners, declared, *times = reply
    return Answer(_full(1, owners, *times), (int(size),), (_text(declared),))


def read_answer_of_several(reply: Any) -> Answer:
    """Read a reply of ``several_acquire``."""
    code, sizes, declared = int(reply[0]), tuple(map(int, reply[1])), tuple(map(_text, reply[2]))
    if code == 1:
        outcome: Granted | Queued | Full = Granted(
            tuple(map(int, reply[3])), tuple(_life(int(life)) for life in reply[4])
        )
    elif code == 0:
        outcome = Queued(int(reply[3]), _life(int(reply[4])), int(reply[5]) / 1000, int(reply[6]) - 1)
    else:
        outcome = _full(*reply[3:])
    return Answer(outcome, sizes, declared)


def read_grant(payload: bytes) -> tuple[Granted, float]:
    """Read the message that passes slots to a waiter: the slots, and when they were given, by the store's clock."""
    fences, lives, clock = payload.split(b" ")
    granted = Granted(
        tuple(int(fence) for fence in fences.split(b",")), tuple(_life(int(life)) for life in lives.split(b","))
    )
    return granted, int(clock) / 1000


def info_command(keys: tuple[bytes, ...], declared: int, holders: int) -> Command:
    """Ask for a pool's state and at most ``holders`` of its holders."""
    return Command("pool_info", keys, (holders, declared))


def read_info(key: str, reply: Any) -> PoolInfo:
    """Read a reply of ``pool_info``."""
    size, used, waiting, now_ms, listed, paused, rate, share = reply
    limit = None if int(size) >= UNLIMITED else int(size)
    return PoolInfo(
        *(key, limit, int(used), int(waiting), bool(paused), tuple(read_holders(listed))),
        rate=Rate.from_wire(_text(rate)),
        max_per_partition=int(share) if share else None,
        now=int(now_ms) / 1000,
    )


def read_holders(listed: Any) -> list[Holder]:
    """Read what is told of holders."""
    holders = []
    for token, expires_ms, record in zip(listed[::3], listed[1::3], listed[2::3], strict=True):
        fence, acquired_ms, _, weight, partition, owner = _text(record).split("|", 5)
        expires, acquired = float(expires_ms), int(acquired_ms) / 1000
        ends = None if expires < 0 else expires / 1000
        holders.append(Holder(_text(token), owner, int(fence), acquired, ends, int(weight), partition or None))
    return holders


def read_waiter(token: bytes, record: bytes) -> Waiter:
    """Read what is told of one who waits, as ``lib_waiting.lua`` says."""
    place, weight, partition, parked, several, owner = _text(record).split("|", 5)
    since = int(place, 16) / 1_000_000
    return Waiter(_text(token), owner, since, int(weight), partition or None, parked == "1", several == "1")


def _full(pool: Any, owners: Any, rated_ms: Any, resting_ms: Any) -> Full:
    return Full(int(pool) - 1, tuple(_text(owner) for owner in owners), int(rated_ms) / 1000, int(resting_ms) / 1000)


def _life(ms: int) -> float | None:
    return None if ms < 0 else ms / 1000


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "replace")
