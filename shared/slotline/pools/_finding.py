"""Which pools a store knows, and where a task stands in them: for the operator's commands."""

from __future__ import annotations

from typing import NamedTuple

from slotline.pools._wire import read_waiter
from slotline.pools.info import Waiter
from slotline.pools.pool import Pool
from slotline.steps import Call, Steps
from slotline.stores.base import Command, Store
from slotline.stores.scanning import glob, keys_like

_STATE = ":state"
_LOOKED_AT = 1000
"""Of those who wait, at once."""


class Found(NamedTuple):
    """One who waits, and how many of its lane and partition are before it."""

    waiter: Waiter
    ahead: int


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
