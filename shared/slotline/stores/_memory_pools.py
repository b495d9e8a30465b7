"""The pool scripts for the memory store: the same names, arguments and replies as the Lua files."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

from slotline.stores._memory_evict import Endings
from slotline.stores._memory_line import Line, Waiting
from slotline.stores.base import Command

Reply: TypeAlias = Any
PARTS = 5
"""Keys of each pool; the first one is what it is known by here."""
ForEver = -1
CALL_MS = 1000
"""For how long one who wants slots of several pools may have one of them before it asks for all."""
_fences = itertools.count(1)  # of all pools, so that a pool's fences grow even when it is forgotten in between


class Rings:
    """Whom to wake, and with what, and what to tell of, when nobody has the store to himself any more.

    Args:
        hears: Whether one who waits, by his token, can still be told of a slot. Who cannot has left, or is about to say
            so; who can, and then finds his slot by himself before he is told, keeps it.
    """

    def __init__(self, hears: Callable[[str], bool]) -> None:
        self.hears = hears
        self.due: list[tuple[str, bytes]] = []
        self.ended = 0
        """How many slots have come to the end that their ``slot_exp`` set."""


class Held(NamedTuple):
    """One slot; times in milliseconds, ``-1`` for never. ``kept``: only for one who wants slots of other pools, too."""

    expires_ms: int
    fence: int
    acquired_ms: int
    owner: str
    weight: int
    partition: str
    kept: bool = False


class Queued(NamedTuple):
    """One who wants slots of several pools; since when it moves between them, until when it keeps what it has."""

    place: int
    owner: str
    since_ms: int = 0
    kept_until_ms: int = 0
    came_ms: int = 0


@dataclass(slots=True)
class PoolState:
    """One pool.

    ``queues`` are those for slots of this pool and others; see ``lib_several.lua``.
    ``interval_us`` and ``arrival_us`` are GCRA's emission interval and theoretical arrival time, and ``started_us`` is
    the same without what is only kept; ``share`` is the most
    that a partition may have, ``used`` what all holders weigh, and ``used_by`` what those of each partition do. No slot
    ends before ``next_end_ms``: till then nobody looks through all of them.
    """

    key: str | bytes
    max: int = 0
    declared: str = ""
    interval_us: int = 0
    burst: int = 1
    arrival_us: int = 0
    started_us: int = 0
    paused: bool = False
    share: int | None = None
    used: int = 0
    next_end_ms: float = math.inf
    used_by: dict[str, int] = field(default_factory=dict)
    slots: dict[str, Held] = field(default_factory=dict)
    evicted: set[str] = field(default_factory=set)
    line: Line = field(default_factory=Line)
    queues: dict[str, dict[str, Queued]] = field(default_factory=dict)

    def declare(self, spec: str, now_ms: int) -> None:
        limit, _, share = spec.partition("%")
        size, _, rate = limit.partition("@")
        self.max, self.interval_us = int(size), 0
        self.share = int(share) if share else None
        for partition in list(self.line.stopped):
            self.line.go_on(partition)
        if rate:
            interval, _, burst = rate.partition("/")
            self.interval_us, self.burst = int(interval), int(burst)
            # No start puts it further ahead than all of a burst; what is only kept is counted in intervals of before.
            self.started_us = min(self.started_us, now_ms * 1000 + self.burst * self.interval_us)
        else:
            self.started_us = 0
        self.arrival_us = self.started_us
        self.declared = spec

    def mend(self) -> None:
        """Count anew who has what, and let all who wait have their turns."""
        self.used, self.used_by, self.next_end_ms = 0, {}, math.inf
        for held in self.slots.values():
            self._count(held)
        self.evicted &= self.slots.keys()
        self.line.mend()

    def _count(self, held: Held) -> None:
        self.used += held.weight
        if held.expires_ms != ForEver:
            self.next_end_ms = min(self.next_end_ms, held.expires_ms)
        if held.partition:
            self.used_by[held.partition] = self.used_by.get(held.partition, 0) + held.weight

    def drop_expired(self, now_ms: int) -> int:
        """Take the slots back whose time is over; return how many, without what was only kept."""
        if now_ms < self.next_end_ms:
            return 0
        gone = [token for token, held in self.slots.items() if held.expires_ms != ForEver and held.expires_ms <= now_ms]
        ended = 0
        for token in gone:
            ended += not self.slots[token].kept
            self.let_go(token)
        ends = (held.expires_ms for held in self.slots.values() if held.expires_ms != ForEver)
        self.next_end_ms = min(ends, default=math.inf)
        return ended

    def keep_until(self, token: str, expires_ms: int) -> None:
        """Let the slot of ``token`` end then."""
        self.slots[token] = self.slots[token]._replace(expires_ms=expires_ms)
        self.next_end_ms = min(self.next_end_ms, expires_ms)

    def let_go(self, token: str) -> bool:
        """Take the slot from ``token``; return whether it had one."""
        held = self.slots.pop(token, None)
        if held is None:
            return False
        self.used -= held.weight
        if held.kept:  # it was no start; those who have started meanwhile count from when they did
            self.arrival_us = max(self.arrival_us - self.interval_us, self.started_us)
        if held.partition:
            self.used_by[held.partition] -= held.weight
            if not self.used_by[held.partition]:
                del self.used_by[held.partition]
            self.line.go_on(held.partition)
        return True

    def next_start_ms(self, now_ms: int, *, kept: bool = False) -> int:
        """Milliseconds until the rate allows a start, or one that is kept; 0: it does."""
        if not self.interval_us:
            return 0
        early_us = (self.started_us if kept else self.arrival_us) - (self.burst - 1) * self.interval_us - now_ms * 1000
        return max(0, -(-early_us // 1000))

    def may_start(self, now_ms: int) -> bool:
        return not self.paused and self.used < self.max and self.next_start_ms(now_ms) == 0

    def has_room(self, waiting: Waiting) -> bool:
        return self.used + waiting.weight <= self.max and self.has_share(waiting)

    def has_share(self, waiting: Waiting) -> bool:
        if self.share is None or not waiting.partition:
            return True
        return self.used_by.get(waiting.partition, 0) + waiting.weight <= self.share

    def ever_fits(self, waiting: Waiting) -> bool:
        """Whether the limits, which may have been made smaller, leave it a chance."""
        return waiting.weight <= self.max and (
            self.share is None or not waiting.partition or waiting.weight <= self.share
        )

    def take(self, token: str, waiting: Waiting, now_ms: int, *, kept: bool = False) -> Held:
        expires = ForEver if waiting.cap_ms < 0 else now_ms + waiting.cap_ms
        held = Held(expires, next(_fences), now_ms, waiting.owner, waiting.weight, waiting.partition, kept)
        self.slots[token] = held
        self._count(held)
        if self.interval_us:
            self.arrival_us = max(self.arrival_us, now_ms * 1000) + self.interval_us
            if not kept:
                self.started_us = max(self.started_us, now_ms * 1000) + self.interval_us
        return held

    def serve(self, now_ms: int, rings: Rings, me: str = "") -> bool:
        """Hand free slots out, up to ``me``; return whether one waits for more than is free, whom nobody may pass."""
        hopeless: set[str] = set()
        while self.may_start(now_ms):
            partition = next((name for name in self.line.turns if name not in hopeless), None)
            if partition is None:
                return False
            places = self.line.turns[partition]
            token = next((token for token, waiting in places.items() if self.ever_fits(waiting)), None)
            if token is None:
                hopeless.add(partition)
                continue
            waiting = places[token]
            if not self.has_share(waiting):
                self.line.stop(partition)
            elif not self.has_room(waiting):
                return True
            elif token == me:
                return False
            else:
                name = waiting.several or token
                if not rings.hears(name):
                    self.line.remove(token)
                    continue
                self.line.served(token)
                if waiting.several:
                    if token not in self.slots:  # else it has waited for the rate alone
                        self.take(token, waiting._replace(cap_ms=CALL_MS), now_ms, kept=True)
                    rings.due.append((name, b""))
                else:
                    held = self.take(token, waiting, now_ms)
                    rings.due.append((name, b"%d %d %d" % (held.fence, waiting.cap_ms, now_ms)))
        return False

    def look_again_ms(self, ahead: int, now_ms: int) -> int:
        if self.paused:
            return ForEver
        rated_ms = self.next_start_ms(now_ms)
        if rated_ms:
            return rated_ms + ahead * self.interval_us // 1000
        ends = [held.expires_ms for held in self.slots.values() if held.expires_ms != ForEver]
        return min(ends) - now_ms if ends else ForEver

    def forgettable(self, now_ms: int) -> bool:
        as_declared = not self.paused and self.max == int(self.declared.partition("%")[0].partition("@")[0])
        return as_declared and not (self.slots or self.line or self.queues) and self.arrival_us <= now_ms * 1000

    @property
    def waiting(self) -> int:
        """How many wait; one who wants slots of several pools is counted in its queue, and not where it stands."""
        return self.line.alone + sum(map(len, self.queues.values()))


Pools: TypeAlias = dict[str | bytes, PoolState]


def known(pools: Pools, key: str | bytes, spec: Any) -> PoolState:
    """Return a pool; one that is new is as ``spec`` says."""
    pool = pools.get(key)
    if pool is None:
        pool = PoolState(key)
        pool.declare(str(spec), 0)
        pools[key] = pool
    return pool


def mend(pools: Pools, command: Command) -> None:
    """Make the books of a command's pools agree again: a signal's exception has come in the midst of it."""
    for key in command.keys:
        pool = pools.get(key)
        if pool is not None:
            pool.mend()


def pool_acquire(pools: Pools, now_ms: int, command: Command, rings: Rings) -> Reply:
    token, spec, first, waits = str(command.args[0]), str(command.args[2]), command.args[3], any(command.args[8:9])
    waiting = Waiting(
        *(int(command.args[5]), str(command.args[1]), int(command.args[6]), str(command.args[7])), since_ms=now_ms
    )
    declared_before = pools[command.keys[0]].declared.encode() if command.keys[0] in pools else b""
    pool = known(pools, command.keys[0], spec)
    if first and pool.declared != spec:
        pool.declare(spec, now_ms)
    held = pool.slots.get(token)
    if held is None:
        blocked = pool.serve(now_ms, rings) or waiting.partition in pool.line.stopped
        held = pool.slots.get(token)
        if held is None and not blocked and pool.may_start(now_ms) and pool.has_room(waiting):
            pool.line.remove(token)
            pool.line.had_its_turn(waiting.partition)
            held = pool.take(token, waiting, now_ms)
    if held is not None:
        life = ForEver if held.expires_ms == ForEver else held.expires_ms - now_ms
        return [1, b"%d" % held.fence, life, pool.max, declared_before, 0]
    if not waits:
        owners = [other.owner.encode() for other in list(pool.slots.values())[:100]]
        return [-1, pool.max, owners, declared_before, pool.next_start_ms(now_ms), 0]
    ahead = pool.line.add(token, waiting)
    return [0, ahead, pool.look_again_ms(ahead, now_ms), pool.max, declared_before, now_ms]


def pool_release(pools: Pools, now_ms: int, command: Command, rings: Rings) -> Reply:
    pool = pools.get(command.keys[0])
    if pool is None:
        return 0
    token = str(command.args[0])
    if command.args[2:] and (token not in pool.slots or pool.slots[token].fence != command.args[2]):
        return 0
    had = pool.let_go(token)
    pool.line.remove(token)
    pool.serve(now_ms, rings)
    if pool.forgettable(now_ms):  # pools with keys made from arguments come and go
        del pools[command.keys[0]]
    return int(had)


def pool_resize(pools: Pools, now_ms: int, command: Command, rings: Rings) -> Reply:
    pool = known(pools, command.keys[0], command.args[1])
    before, pool.max = pool.max, int(command.args[0])
    pool.serve(now_ms, rings)
    return before


def pool_pause(pools: Pools, now_ms: int, command: Command, rings: Rings) -> Reply:
    pool = known(pools, command.keys[0], command.args[1])
    was, pool.paused = pool.paused, bool(int(command.args[0]))
    pool.serve(now_ms, rings)
    return int(was != pool.paused)


def pool_evict(pools: Pools, now_ms: int, command: Command, rings: Rings) -> Reply:  # noqa: ARG001 - every script's signature
    pool, token = pools.get(command.keys[0]), str(command.args[0])
    if pool is None:
        return [0]
    pool.evicted &= pool.slots.keys()
    if token:
        marked = [token] if token in pool.slots and command.args[4] in ("", pool.slots[token].fence) else []
    else:
        one = Waiting(0, "", int(command.args[2]), str(command.args[3]))
        rated = pool.next_start_ms(now_ms) > 0 and pool.has_room(one)
        marked = [] if pool.paused or rated else Endings(pool).longest(one.weight, one.partition)
    pool.evicted.update(marked)
    return [0, *(f"{holder} {pool.slots[holder].fence}".encode() for holder in marked)]


def pool_info(pools: Pools, now_ms: int, command: Command, rings: Rings) -> Reply:  # noqa: ARG001 - every script's signature
    most, declared = int(command.args[0]), int(command.args[1])
    pool = pools.get(command.keys[0])
    if pool is None:
        return [declared, 0, 0, now_ms, [], 0, b"", b""]
    listed: list[bytes] = []
    for token, held in list(pool.slots.items())[:most]:
        record = f"{held.fence}|{held.acquired_ms}|0|{held.weight}|{held.partition}|{held.owner}"
        listed += [token.encode(), b"%d" % held.expires_ms, record.encode()]
    rate = f"{pool.interval_us}/{pool.burst}" if pool.interval_us else ""
    share = str(pool.share or "")
    return [pool.max, pool.used, pool.waiting, now_ms, listed, int(pool.paused), rate.encode(), share.encode()]


def pool_waiting(pools: Pools, now_ms: int, command: Command, rings: Rings) -> Reply:  # noqa: ARG001 - every script's signature
    pool = pools.get(command.keys[0])
    if pool is None:
        return []
    found = [(one.place, token, one.since_ms, one, 0) for token, one in pool.line.items() if not one.several]
    for queue in pool.queues.values():
        found += [(one.place, token, one.came_ms, Waiting(0, one.owner, 1, ""), 1) for token, one in queue.items()]
    told: list[bytes] = []
    for _, token, since_ms, one, several in sorted(found)[: int(command.args[0])]:
        record = f"{since_ms * 1000:x}|{one.weight}|{one.partition}|0|{several}|{one.owner}"
        told += [token.encode(), record.encode()]
    return told


def room_purge(pools: Pools, now_ms: int, command: Command, rings: Rings) -> Reply:  # noqa: ARG001 - every script's signature
    return [b"", b"", [], []]  # nothing is ever parked here


Script: TypeAlias = Callable[[Pools, int, Command, Rings], Reply]
SCRIPTS: dict[str, Script] = {
    function.__name__: function
    for function in (
        pool_acquire,
        pool_release,
        pool_resize,
        pool_pause,
        pool_evict,
        pool_info,
        pool_waiting,
        room_purge,
    )
}
