"""Which pools a store knows, and where a task stands in them: for the operator's commands."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from itertools import islice
from typing import Any, NamedTuple, TypeAlias, TypeVar

from slotline.pools._wire import info_command, read_holders, read_info, read_waiter
from slotline.pools.info import Holder, PoolInfo, Waiter
from slotline.pools.pool import Pool
from slotline.steps import Call, Steps, all_or_error
from slotline.stores.base import Command, Store
from slotline.stores.scanning import glob, keys_like

_STATE = ":state"
_LOOKED_AT = 1000
"""Of those who wait, at once."""
_ASKED_AT_ONCE = 200
"""Pools, in one round trip."""


LONGEST = 100
"""Of those who hold slots, that are told of besides those who are looked for."""

T = TypeVar("T")
Asking: TypeAlias = Generator[Command, Any, T]
"""What asks one pool for one thing after the other."""


class Found(NamedTuple):
    """One who waits, and how many of its lane and partition are before it."""

    waiter: Waiter
    ahead: int


class Seen(NamedTuple):
    """A pool, what it looks like, and who has waited longest for it."""

    pool: Pool
    info: PoolInfo
    first: Waiter | None


class Ages(NamedTuple):
    """How many hold slots, and for how many milliseconds by now, all of them together."""

    holders: int = 0
    ms: int = 0


class Known(NamedTuple):
    """What a pool knows of those in whose owner's name there is a text.

    Attributes:
        info: What the pool looks like, without its holders.
        waiting: Those of them who wait.
        holders: Those of them who hold a slot, and the :data:`LONGEST` who have held theirs longest, these first.
        ages: Of all holders, by ``None``, and of those of each partition on whose account somebody waits.
    """

    info: PoolInfo
    waiting: list[Found]
    holders: list[Holder]
    ages: dict[str | None, Ages]


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


def looking_at(store: Store, pools: Sequence[Pool]) -> Steps[list[Seen]]:
    """Ask for the states of many pools; a round trip for some hundreds, and another where anybody waits."""
    return (yield from _side_by_side(store, (_look_at(pool) for pool in pools)))


def looking_for(store: Store, pools: Sequence[Pool], owner: str) -> Steps[list[Known]]:
    """Ask many pools for those in whose owner's name there is a text; those with many holders or waiters in parts."""
    return (yield from _side_by_side(store, (_look_for(pool, owner) for pool in pools)))


def _side_by_side(store: Store, asking: Iterable[Asking[T]]) -> Steps[list[T]]:
    """Ask the questions of many in the same round trips."""
    answers, going_on = list[T](), iter(asking)
    while some := list(islice(going_on, _ASKED_AT_ONCE)):
        ended: dict[Asking[T], T] = {}
        questions = {one: next(one) for one in some}
        while questions:
            replies = yield from all_or_error(store, list(questions.values()))
            asked, questions = questions, {}
            for one, reply in zip(asked, replies, strict=True):
                try:
                    questions[one] = one.send(reply)
                except StopIteration as stop:
                    ended[one] = stop.value
        answers += [ended[one] for one in some]
    return answers


def _state_of(pool: Pool) -> Asking[PoolInfo]:
    return read_info(pool.key, (yield info_command(pool.keys, pool.max_size, 0)))


def _look_at(pool: Pool) -> Asking[Seen]:
    info = yield from _state_of(pool)
    line = (yield Command("pool_waiting", pool.keys, (1,))) if info.waiting else []
    return Seen(pool, info, read_waiter(*line[:2]) if line else None)


def _look_for(pool: Pool, owner: str) -> Asking[Known]:
    info = yield from _state_of(pool)
    waiting = (yield from _waiting_for(pool, owner)) if info.waiting else []
    partitions = tuple({one.waiter.partition: None for one in waiting if one.waiter.partition is not None})
    return Known(info, waiting, *(yield from _holding(pool, owner, partitions)))


def _waiting_for(pool: Pool, owner: str) -> Asking[list[Found]]:
    found: list[Found] = []
    at: bytes | str = "-"
    while at:
        at, told = yield Command("pool_find", pool.keys, (owner, at, _LOOKED_AT))
        found += [
            Found(read_waiter(*one[:2]), int(one[2])) for one in zip(told[::3], told[1::3], told[2::3], strict=True)
        ]
    return found


def _holding(
    pool: Pool, owner: str, partitions: tuple[str, ...]
) -> Asking[tuple[list[Holder], dict[str | None, Ages]]]:
    holders: dict[str, Holder] = {}  # one may be told of twice, while the server makes room for others
    counted = [0, 0] * (1 + len(partitions))
    at: bytes | None = None
    while at != b"0":
        asked = (owner, at or "0", _LOOKED_AT, LONGEST, *partitions)
        at, told, counts = yield Command("pool_find_held", pool.keys, asked)
        holders.update((holder.token, holder) for holder in read_holders(told))
        counted = [one + other for one, other in zip(counted, counts, strict=True)]
    ages = dict(zip((None, *partitions), map(Ages, counted[::2], counted[1::2]), strict=True))
    return sorted(holders.values(), key=lambda holder: holder.fence), ages
