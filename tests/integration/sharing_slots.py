"""What runs that count for several slots, or on somebody's account, write down, and what their history must say."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import redis

from slotline import Pool, RedisStore

HISTORY = "celery-test:shares"
SIZE, MOST = 3, 2
OTHERS = ["b", "c|d\n{e}", "f" * 10_240, "☃", ""]


def run(url: str, tenant: str, weight: int, fence: int) -> None:
    """Run for a moment on a tenant's account."""
    with redis.Redis.from_url(url) as history:
        history.rpush(HISTORY, json.dumps([tenant, weight, fence]))
        time.sleep(0.01)
        history.rpush(HISTORY, json.dumps([tenant, -weight, fence]))


class Held:
    """All slots of a pool, from the beginning to :meth:`let_go`, so that everything that is sent meanwhile waits.

    Args:
        url: The server's.
        key: The pool's.
        size: Its size.
        most: How many slots one partition may have.
    """

    def __init__(self, url: str, key: str, size: int = SIZE, most: int | None = MOST) -> None:
        self._store = RedisStore(url)
        self._pool = Pool(key, size, max_per_partition=most, store=self._store)
        self._slot = self._pool.sync.acquire(weight=size)

    def waiting(self) -> int:
        """Return how many places in line there are."""
        return self._pool.sync.info(holders=0).waiting

    def let_go(self) -> None:
        """Let those who wait begin."""
        self._pool.sync.release(self._slot)
        self._store.sync.close()


def events(client: redis.Redis) -> list[tuple[str, int]]:
    """Return who has begun (with a weight above zero) or ended, in the order in which the server has heard of it."""
    return [(tenant, weight) for tenant, weight, _ in map(json.loads, client.lrange(HISTORY, 0, -1))]


def served(client: redis.Redis) -> list[str]:
    """Return who was given a slot, in that order: a run may begin long after it was, on a machine that is busy."""
    fences = {fence: tenant for tenant, _, fence in map(json.loads, client.lrange(HISTORY, 0, -1))}
    return [tenant for _, tenant in sorted(fences.items())]


def within(limit: int, seen: list[tuple[str, int]], counts: Callable[[str], Any] = lambda _: True) -> None:
    """Check what runs weighed at once at the most, all or those of the tenants that count."""
    now = most = 0
    for tenant, weight in seen:
        if counts(tenant):
            now += weight
            most = max(most, now)
    assert most <= limit, f"{most} at once"


def check_turns(client: redis.Redis, noisy: int) -> None:
    """Check the runs of one tenant with many messages and of those in ``OTHERS`` with two each, sent behind them."""
    seen, turns = events(client), served(client)
    begun = [tenant for tenant, weight in seen if weight > 0]
    assert sorted(begun) == sorted(turns) == sorted([*["noisy"] * noisy, *OTHERS * 2]), "not each has run once"
    within(SIZE, seen)
    within(MOST, seen, lambda tenant: tenant == "noisy")
    last = max(at for at, tenant in enumerate(turns) if tenant != "noisy")
    rounds = 2 * (len(OTHERS) + 1)
    assert last < rounds + 2 * SIZE, f"all but one had to wait for the noisy one: {[name[:1] for name in turns]}"


def check_weights(seen: list[tuple[str, int]], runs: int) -> None:
    """Check the runs of light and heavy messages."""
    assert len([weight for _, weight in seen if weight > 0]) == runs, "not each has run once"
    within(SIZE, seen)
    within(2, seen, lambda tenant: tenant == "heavy")


def check_both(seen: list[tuple[str, int]], runs: int) -> None:
    """Check runs that counted in a pool of two for all, and in one of one for each tenant."""
    assert len([weight for _, weight in seen if weight > 0]) == runs, "not each has run once"
    within(2, seen)
    for tenant in {tenant for tenant, _ in seen}:
        within(1, seen, lambda name, one=tenant: name == one)
