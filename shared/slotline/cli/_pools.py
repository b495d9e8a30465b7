"""The commands about pools."""

from __future__ import annotations

import fnmatch
from argparse import Namespace
from typing import Any, NamedTuple

from slotline.cli._console import Column, Console, Number, Seconds
from slotline.errors import SlotlineError
from slotline.pools import Pool
from slotline.pools._finding import Seen, asked, is_known, looking_at, pools_of
from slotline.pools._purging import purging
from slotline.pools.fleeting import is_line
from slotline.steps import run_blocking
from slotline.stores.base import Store

POOLS = {
    "pool": Column("POOL"),
    "limit": Number("LIMIT"),
    "rate": Column("RATE"),
    "used": Number("USED"),
    "waiting": Number("WAITING"),
    "oldest_wait": Seconds("OLDEST WAIT"),
    "paused": Column(""),
}
HOLDERS = {
    "named": Column("TOKEN"),
    "owner": Column("OWNER"),
    "held": Seconds("HELD FOR"),
    "expires": Seconds("COUNTS FOR"),
    "weight": Number("WEIGHT"),
    "partition": Column("PARTITION"),
}
WAITING = {
    "owner": Column("OWNER"),
    "kind": Column("KIND"),
    "waited": Seconds("WAITED"),
    "weight": Number("WEIGHT"),
    "partition": Column("PARTITION"),
}


class Run(NamedTuple):
    """Who is meant: a slot's token passes from run to run, a fence does not."""

    token: str
    fence: int | None

    @classmethod
    def read(cls, named: str) -> Run:
        """Read what the list of holders calls it, or a token alone."""
        token, _, fence = named.partition("@")
        return cls(token, int(fence)) if fence.isdecimal() else cls(named, None)

    @property
    def named(self) -> str:
        """What the list of holders calls it."""
        return self.token if self.fence is None else f"{self.token}@{self.fence}"


class NotFoundError(Exception):
    """There is no such thing in the store; the message says so."""


def known(store: Store, args: Namespace) -> Pool:
    """Return the pool that is named.

    Raises:
        NotFoundError: The store has nothing of it.
    """
    pool = asked(store, args.key, args.group)
    if not run_blocking(is_known(pool)):
        there = "slotline pools lists those that are there"
        raise NotFoundError(f"there is no pool {args.key!r}{_in(args.group)} in {store.name}; {there}")
    return pool


def row_of(seen: Seen) -> dict[str, Any]:
    """Return what the list of pools says of one."""
    pool, info, first = seen
    return {
        "pool": pool.key,
        "group": pool.group,
        "limit": info.max_size,
        "max_per_partition": info.max_per_partition,
        "rate": None if info.rate is None else info.rate.text,
        "used": info.used,
        "waiting": info.waiting,
        "oldest_wait": None if first is None else max(0.0, info.now - first.since),
        "paused": info.paused,
    }


def list_rows(store: Store, match: str | None, *, everything: bool) -> list[dict[str, Any]]:
    """Return what the list of pools says, in the order of their names."""
    pools = run_blocking(pools_of(store))
    chosen = [
        pool
        for pool in pools
        if (everything or not is_line(pool.key)) and (match is None or fnmatch.fnmatchcase(pool.key, match))
    ]
    return [row_of(seen) for seen in run_blocking(looking_at(store, chosen))]


def show_rows(console: Console, store: Store, rows: list[dict[str, Any]]) -> None:
    """Write the list of pools."""
    shown = rows if console.as_json else [{**row, "paused": "paused" if row["paused"] else ""} for row in rows]
    grouped = any(row["group"] for row in rows)
    columns = {"pool": POOLS["pool"], **({"group": Column("GROUP")} if grouped else {}), **POOLS}
    console.table(shown, columns, f"There are no pools in {store.name}.")


def pools(console: Console, store: Store, args: Namespace) -> int:
    """List the pools."""
    show_rows(console, store, list_rows(store, args.match, everything=args.all))
    return 0


def holders(console: Console, store: Store, args: Namespace) -> int:
    """List who holds the slots of a pool."""
    info = known(store, args).sync.info(holders=args.most)
    rows: list[dict[str, Any]] = [
        {
            "token": holder.token,
            "owner": holder.owner,
            "held": info.now - holder.acquired_at,
            "expires": None if holder.expires_at is None else holder.expires_at - info.now,
            "weight": holder.weight,
            "partition": holder.partition,
            "fence": holder.fence,
        }
        for holder in sorted(info.holders, key=lambda holder: holder.fence)
    ]
    shown = rows if console.as_json else [{**row, "named": Run(row["token"], row["fence"]).named} for row in rows]
    console.table(shown, HOLDERS, f"Nobody holds a slot of pool {info.key!r}.")
    return 0


def waiting(console: Console, store: Store, args: Namespace) -> int:
    """List who waits for a pool."""
    pool = known(store, args)
    now = pool.sync.info(holders=0).now
    rows = [
        {
            "owner": waiter.owner,
            "kind": ("message" if waiter.parked else "caller") + (" for several pools" if waiter.several else ""),
            "waited": max(0.0, now - waiter.since),
            "weight": waiter.weight,
            "partition": waiter.partition,
            "token": waiter.token,
        }
        for waiter in pool.sync.waiting(most=args.most)
    ]
    console.table(rows, WAITING, f"Nobody waits for pool {pool.key!r}.")
    return 0


def resize(console: Console, store: Store, args: Namespace) -> int:
    """Change the limit of a pool, for all workers, at once."""
    pool = known(store, args)
    before = pool.sync.resize(args.size)
    facts = {"pool": pool.key, "before": before, "limit": args.size}
    console.tell(f"Pool {pool.key!r}: {before} -> {args.size} slots.", facts)
    return 0


def pause(console: Console, store: Store, args: Namespace) -> int:
    """Let nobody into a pool until it is resumed."""
    pool = known(store, args)
    changed = pool.sync.pause()
    was = "is paused; its holders are left alone" if changed else "was paused already"
    console.tell(f"Pool {pool.key!r} {was}.", {"pool": pool.key, "paused": True, "changed": changed})
    return 0


def resume(console: Console, store: Store, args: Namespace) -> int:
    """Let callers into a pool again."""
    pool = known(store, args)
    changed = pool.sync.resume()
    was = "lets callers in again" if changed else "was not paused"
    console.tell(f"Pool {pool.key!r} {was}.", {"pool": pool.key, "paused": False, "changed": changed})
    return 0


def purge(console: Console, store: Store, args: Namespace) -> int:
    """Remove the messages that are parked for a pool."""
    pool = known(store, args)
    if not (args.yes or console.agrees(_asking(pool, answered=args.answer is not None))):
        raise NotFoundError(f"nothing was removed from pool {pool.key!r}: say --yes")
    try:
        done = run_blocking(purging(pool, args.answer))
    except SlotlineError:
        raise
    except Exception as error:  # of the queue's result backend, whatever that is
        why = "the result of a message cannot be written; what was not removed by then is parked as before"
        raise NotFoundError(f"{why}: {error}") from error
    stay = f" {done.stay} stay: they are not this application's, or it took too long to answer." if done.stay else ""
    told = f"{done.removed} messages that were parked for pool {pool.key!r} are removed.{stay}"
    console.tell(told, {"pool": pool.key, "removed": done.removed, "stay": done.stay})
    return 0


def _asking(pool: Pool, *, answered: bool) -> str:
    results = "have a result that says so" if answered else "never have a result, and a chord of Celery waits for ever"
    return f"{pool.sync.info(holders=0).waiting} wait for pool {pool.key!r}. Remove its messages? They {results}."


def evict(console: Console, store: Store, args: Namespace) -> int:
    """Tell a holder to end."""
    pool = known(store, args)
    token, fence = args.run_meant
    if pool.sync.evict(token, fence=args.fence or fence) is None:
        raise _not_held(pool, args.run_meant)
    told = f"The holder {token} of pool {pool.key!r} is told to end; it keeps its slot until it has."
    console.tell(told, {"pool": pool.key, "token": token, "told": True})
    return 0


def release(console: Console, store: Store, args: Namespace) -> int:
    """Take a slot, or a place in line, from its holder."""
    pool = known(store, args)
    token, fence = args.run_meant
    if not run_blocking(pool.freeing(token, fence)):
        raise _not_held(pool, args.run_meant)
    told = f"The slot {token} of pool {pool.key!r} is free; a holder that lives is told at its next renewal."
    console.tell(told, {"pool": pool.key, "token": token, "released": True})
    return 0


def _not_held(pool: Pool, run: Run) -> NotFoundError:
    return NotFoundError(f"nobody holds a slot of pool {pool.key!r} by the token {run.named!r}")


def _in(group: str | None) -> str:
    return f" in group {group!r}" if group else ""
