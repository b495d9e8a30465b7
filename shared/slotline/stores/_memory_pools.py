"""The pool scripts for the memory store: the same names, arguments and replies as the Lua files."""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

from slotline.stores.base import Command

Rings: TypeAlias = list[tuple[str, bytes]]
Reply: TypeAlias = Any
ForEver = -1
_fences = itertools.count(1)  # of all pools, so that a pool's fences grow even when it is forgotten in between


class Held(NamedTuple):
    """One slot; times in milliseconds, ``-1`` for never."""

    expires_ms: int
    fence: int
    acquired_ms: int
    owner: str


class Waiting(NamedTuple):
    """One place in line; a waiter in this process cannot die without it, so it needs no patience."""

    cap_ms: int
    owner: str


@dataclass(slots=True)
class PoolState:
    """One pool."""

    max: int
    declared: int
    slots: dict[str, Held] = field(default_factory=dict)
    line: OrderedDict[str, Waiting] = field(default_factory=OrderedDict)

    def drop_expired(self, now_ms: int) -> None:
        gone = [token for token, held in self.slots.items() if held.expires_ms != ForEver and held.expires_ms <= now_ms]
        for token in gone:
            del self.slots[token]

    def take(self, token: str, owner: str, cap_ms: int, now_ms: int) -> Held:
        expires = ForEver if cap_ms < 0 else now_ms + cap_ms
        held = self.slots[token] = Held(expires, next(_fences), now_ms, owner)
        return held

    def serve(self, now_ms: int, rings: Rings) -> None:
        while self.line and len(self.slots) < self.max:
            token, waiting = self.line.popitem(last=False)
            held = self.take(token, waiting.owner, waiting.cap_ms, now_ms)
            rings.append((token, b"%d %d %d" % (held.fence, waiting.cap_ms, now_ms)))

    def idle(self) -> bool:
        return not self.slots and not self.line and self.max == self.declared


Pools: TypeAlias = dict[str | bytes, PoolState]


def pool_acquire(pools: Pools, now_ms: int, command: Command, rings: Rings) -> Reply:
    token, owner, size, declare, _, cap_ms, patience_ms, _ = command.args
    token, owner, size, cap_ms = str(token), str(owner), int(size), int(cap_ms)
    pool = pools.get(command.keys[0])
    declared_before = b"" if pool is None else b"%d" % pool.declared
    if pool is None:
        pool = pools[command.keys[0]] = PoolState(size, size)
    elif int(declare) and pool.declared != size:
        pool.max = pool.declared = size
    pool.drop_expired(now_ms)
    held = pool.slots.get(token)
    if held is None:
        pool.serve(now_ms, rings)
        held = pool.slots.get(token)
        if held is None and len(pool.slots) < pool.max:
            held = pool.take(token, owner, cap_ms, now_ms)
    if held is not None:
        life = ForEver if held.expires_ms == ForEver else held.expires_ms - now_ms
        return [1, b"%d" % held.fence, life, pool.max, declared_before]
    if not int(patience_ms):
        return [-1, pool.max, [other.owner.encode() for other in list(pool.slots.values())[:100]], declared_before]
    pool.line.setdefault(token, Waiting(cap_ms, owner))
    ends = [held.expires_ms for held in pool.slots.values() if held.expires_ms != ForEver]
    next_expiry = min(ends) - now_ms if ends else ForEver
    return [0, list(pool.line).index(token), next_expiry, pool.max, declared_before, now_ms]


def pool_release(pools: Pools, now_ms: int, command: Command, rings: Rings) -> Reply:
    pool = pools.get(command.keys[0])
    if pool is None:
        return 0
    token = str(command.args[0])
    pool.drop_expired(now_ms)
    had = pool.slots.pop(token, None)
    pool.line.pop(token, None)
    pool.serve(now_ms, rings)
    if pool.idle():  # pools with keys made from arguments come and go
        del pools[command.keys[0]]
    return int(had is not None)


def pool_resize(pools: Pools, now_ms: int, command: Command, rings: Rings) -> Reply:
    size, declared = int(command.args[0]), int(command.args[1])
    pool = pools.setdefault(command.keys[0], PoolState(declared, declared))
    before, pool.max = pool.max, size
    pool.drop_expired(now_ms)
    pool.serve(now_ms, rings)
    return before


def pool_info(pools: Pools, now_ms: int, command: Command, rings: Rings) -> Reply:  # noqa: ARG001 - every script's signature
    most, declared = int(command.args[0]), int(command.args[1])
    pool = pools.get(command.keys[0])
    if pool is None:
        return [declared, 0, 0, now_ms, []]
    pool.drop_expired(now_ms)
    listed: list[bytes] = []
    for token, held in list(pool.slots.items())[:most]:
        record = f"{held.fence}|{held.acquired_ms}|0|{held.owner}"
        listed += [token.encode(), b"%d" % held.expires_ms, record.encode()]
    return [pool.max, len(pool.slots), len(pool.line), now_ms, listed]


Script: TypeAlias = Callable[[Pools, int, Command, Rings], Reply]
SCRIPTS: dict[str, Script] = {
    function.__name__: function for function in (pool_acquire, pool_release, pool_resize, pool_info)
}
