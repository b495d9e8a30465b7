"""``slotline explain TASK_ID``: why does it not run?"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from typing import Any, NamedTuple

from slotline.cli._console import Console, duration
from slotline.cli._pools import ALL, NotFoundError
from slotline.pools import Holder, PoolInfo
from slotline.pools._finding import Found, looking_at, pools_of, waiting_for
from slotline.steps import run_blocking
from slotline.stores.base import Store

_SHOWN = 5
_MICROSECONDS = 1_000_000


class Answer(NamedTuple):
    """What one pool knows of a task."""

    facts: dict[str, Any]
    text: str


def explain(console: Console, store: Store, args: Namespace) -> int:
    """Say which limits a task is under, who holds them, its place in line, and about how long it will wait."""
    answers: list[Answer] = []
    for pool, info, _ in run_blocking(looking_at(store, run_blocking(pools_of(store)), holders=ALL)):
        answers += [_of_holder(info, holder) for holder in info.holders if args.task_id in holder.owner]
        if info.waiting:
            answers += [_of_waiter(info, found) for found in run_blocking(waiting_for(pool, args.task_id))]
    if not answers:
        raise NotFoundError(
            f"no pool in {store.name} knows of {args.task_id!r}: it has not come to a worker yet, has no limit, "
            "waits inside its worker (pool_on_full='wait'), or has ended"
        )
    console.tell("\n\n".join(answer.text for answer in answers), [answer.facts for answer in answers])
    return 0


def expected_wait(info: PoolInfo, found: Found) -> float | None:
    """Return about how many seconds one who waits has to wait still; ``None`` where nothing is known of it.

    Those who hold a slot now have held it for as long, on average, as runs last whose ends come by chance. What the
    rate alone would take is a lower bound.
    """
    partition, turns = found.waiter.partition, found.ahead + 1
    if info.paused or found.waiter.several:
        return None
    bounds = [turns * info.rate.interval_us / _MICROSECONDS] if info.rate else []
    bounds += _turns_of(info, info.holders, info.max_size, turns)
    if partition is not None:
        its = [holder for holder in info.holders if holder.partition == partition]
        bounds += _turns_of(info, its, info.max_per_partition, turns)
    return max(bounds, default=None)


def _turns_of(info: PoolInfo, holders: Sequence[Holder], most: int | None, turns: int) -> list[float]:
    if not holders or most is None:
        return []
    mean = sum(info.now - holder.acquired_at for holder in holders) / len(holders)
    return [mean * turns / most]


def _of_holder(info: PoolInfo, holder: Holder) -> Answer:
    held = info.now - holder.acquired_at
    facts = {"pool": info.key, "state": "holding", "owner": holder.owner, "token": holder.token, "held": held}
    return Answer(facts, f"{holder.owner} has held a slot of pool {info.key!r} ({_use_of(info)}) for {duration(held)}.")


def _of_waiter(info: PoolInfo, found: Found) -> Answer:
    waiter, waited = found.waiter, max(0.0, info.now - found.waiter.since)
    expected = expected_wait(info, found)
    holders = sorted(info.holders, key=lambda holder: holder.acquired_at)
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
    if len(holders) > _SHOWN:
        lines.append(f"  ... and {len(holders) - _SHOWN} more: slotline holders {info.key}")
    return Answer(facts, "\n".join(lines))


def _use_of(info: PoolInfo) -> str:
    size = f"{info.used} slots used" if info.max_size is None else f"{info.used} of {info.max_size} slots used"
    rate = "" if info.rate is None else f", at most {info.rate.text}"
    share = "" if info.max_per_partition is None else f", at most {info.max_per_partition} of a partition"
    return size + rate + share
