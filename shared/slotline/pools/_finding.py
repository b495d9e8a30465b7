"""Which pools a store knows, and where a task stands in them: for the operator's commands."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from slotline.pools._wire import info_command, read_info, read_waiter
from slotline.pools.info import PoolInfo, Waiter
from slotline.pools.pool import Pool
from slotline.steps import Call, Steps, all_or_error
from slotline.stores.base import Command, Store
from slotline.stores.scanning import glob, keys_like

_STATE = ":state"
_LOOKED_AT = 1000
"""Of those who wait, at once."""
_ASKED_AT_ONCE = 200
"""Pools, in one round trip."""


class Found(NamedTuple):
    """One who waits, and how many of its lane and partition are before it."""

    waiter: Waiter
    ahead: int


class Seen(NamedTuple):
    """A pool, what it looks like, and who has waited longest for it."""

    pool: Pool
    info: PoolInfo
    first: Waiter | None


def pools_of(store: Store) -> Steps[list[Pool]]:
    """Return the pools of which a store has something: for a week after their last use, or as long as anybody waits.

    They are for asking, and not for taking slots: their declared sizes are not known.
    """
    named = set()
    for kind in ("pool", "group"):
        begins = f"{store.prefix}:{{{kind}:"
        for raw in (yield from keys_like(store, f"{glob(begins)}*{_STATE}")):
            rest = raw.decode("utf-8", "replace").removeprefix(begins).removesuffix(_STATE)
            if kind == "pool":
                named.add(("", rest.removesuffix("}")))
            else:
                group, _, key = rest.partition("}:")
                named.add((group, key))
    return [asked(store, key, group or None) for group, key in sorted(named)]


def asked(store: Store, key: str, group: str | None) -> Pool:
    """Return a pool for asking."""
    return Pool(key, 1, group=group, store=store)


def is_known(pool: Pool) -> Steps[bool]:
    """Return whether the store has anything of a pool."""
    return bool((yield Call(pool.store, Command("EXISTS", (pool.keys[2],)))))


def looking_at(store: Store, pools: Sequence[Pool], holders: int = 0) -> Steps[list[Seen]]:
    """Ask for the states of many pools; a round trip for some hundreds, and another where anybody waits."""
    seen: list[Seen] = []
    for start in range(0, len(pools), _ASKED_AT_ONCE):
        asked_now = pools[start : start + _ASKED_AT_ONCE]
        states = yield from all_or_error(store, [info_command(pool.keys, pool.max_size, holders) for pool in asked_now])
        infos = [read_info(pool.key, state) for pool, state in zip(asked_now, states, strict=True)]
        awaited = [pool for pool, info in zip(asked_now, infos, strict=True) if info.waiting]
        lines = yield from all_or_error(store, [Command("pool_waiting", pool.keys, (1,)) for pool in awaited])
        firsts = {pool: read_waiter(*line[:2]) for pool, line in zip(awaited, lines, strict=True) if line}
        seen += [Seen(pool, info, firsts.get(pool)) for pool, info in zip(asked_now, infos, strict=True)]
    return seen


def waiting_for(pool: Pool, owner: str) -> Steps[list[Found]]:
    """Return those who wait and in whose owner's name there is a text; a long line is read in parts."""
    found: list[Found] = []
    at: bytes | str = "-"
    while at:
        at, told = yield Call(pool.store, Command("pool_find", pool.keys, (owner, at, _LOOKED_AT)))
        found += [
            Found(read_waiter(*one[:2]), int(one[2])) for one in zip(told[::3], told[1::3], told[2::3], strict=True)
        ]
    return found
