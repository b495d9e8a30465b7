"""``slotline explain TASK_ID``: why does it not run?"""

from __future__ import annotations

from argparse import Namespace
from typing import Any, NamedTuple

from slotline.cli._console import Console, duration
from slotline.cli._pools import NotFoundError
from slotline.pools import Holder, PoolInfo
from slotline.pools._finding import LONGEST, Ages, Found, Known, looking_for, pools_of
from slotline.steps import run_blocking
from slotline.stores.base import Store

_SHOWN = 5
_MICROSECONDS, _MILLISECONDS = 1_000_000, 1000


class Answer(NamedTuple):
    """What one pool knows of a task."""

    facts: dict[str, Any]
    text: str


def explain(console: Console, store: Store, args: Namespace) -> int:
    """Say which limits a task is under, who holds them, its place in line, and about how long it will wait."""
    answers: list[Answer] = []
    for known in run_blocking(looking_for(store, run_blocking(pools_of(store)), args.task_id)):
        answers += [_of_holder(known.info, holder) for holder in known.holders if args.task_id in holder.owner]
        answers += [_of_waiter(known, found) for found in known.waiting]
    if not answers:
        raise NotFoundError(
            f"no pool in {store.name} knows of {args.task_id!r}: it has not come to a worker yet, has no limit, "
            "waits inside its worker (pool_on_full='wait'), or has ended"
        )
    console.tell("\n\n".join(answer.text for answer in answers), [answer.facts for answer in answers])
    return 0


def expected_wait(known: Known, found: Found) -> float | None:
    """Return about how many seconds one who waits has to wait still; ``None`` where nothing is known of it.

    Those who hold a slot now have held it for as long, on average, as runs last whose ends come by chance. What the
    rate alone would take is a lower bound.
    """
    info, partition, turns = known.info, found.waiter.partition, found.ahead + 1
    if info.paused or found.waiter.several:
        return None
    bounds = [turns * info.rate.interval_us / _MICROSECONDS] if info.rate else []
    bounds += _turns_of(known.ages[None], info.max_size, turns)
    if partition is not None:
        bounds += _turns_of(known.ages[partition], info.max_per_partition, turns)
    return max(bounds, default=None)


def _turns_of(ages: Ages, most: int | None, turns: int) -> list[float]:
    if not ages.holders or most is None:
        return []
    return [ages.ms / _MILLISECONDS / ages.holders * turns / most]


def _of_holder(info: PoolInfo, holder: Holder) -> Answer:
    held = info.now - holder.acquired_at
    facts = {"pool": info.key, "state": "holding", "owner": holder.owner, "token": holder.token, "held": held}
    return Answer(facts, f"{holder.owner} has held a slot of pool {info.key!r} ({_use_of(info)}) for {duration(held)}.")


def _of_waiter(known: Known, found: Found) -> Answer:
    info, waiter = known.info, found.waiter
    waited, expected, holders = max(0.0, info.now - waiter.since), expected_wait(known, found), known.holders[:LONGEST]
    facts = {
        "pool": info.key,
        "state": "waiting",
        "owner": waiter.owner,
        "waited": waited,
        "ahead": found.ahead,
        "waiting": info.waiting,
        "partition": waiter.partition,
        "paused": info.paused,
        "expected_wait": expected,
        "holders": [holder.owner for holder in holders],
    }
    how = "is parked" if waiter.parked else "waits"
    what = "slots of several pools, in the line of" if waiter.several else "a slot of"
    line = f"the line of partition {waiter.partition!r}, which takes turns" if waiter.partition else "its line"
    lines = [
        f"{waiter.owner} {how} for {what} pool {info.key!r}, for {duration(waited)} by now.",
        f"  The pool: {_use_of(info)}.",
        f"  Before it in {line}: {found.ahead}. In all {info.waiting} wait.",
    ]
    if info.paused:
        lines.append(f"  The pool is paused: slotline resume {info.key}")
    elif expected is not None:
        lines.append(f"  Expected wait: about {duration(expected)}.")
    lines += [f"  Held by {holder.owner} for {duration(info.now - holder.acquired_at)}." for holder in holders[:_SHOWN]]
    more = known.ages[None].holders - _SHOWN
    if more > 0:
        lines.append(f"  ... and {more} more: slotline holders {info.key}")
    return Answer(facts, "\n".join(lines))


def _use_of(info: PoolInfo) -> str:
    size = f"{info.used} slots used" if info.max_size is None else f"{info.used} of {info.max_size} slots used"
    rate = "" if info.rate is None else f", at most {info.rate.text}"
    share = "" if info.max_per_partition is None else f", at most {info.max_per_partition} of a partition"
    return size + rate + share
