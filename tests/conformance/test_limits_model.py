"""Whatever is asked of pools, alone and together: no limit is exceeded, and nobody waits for ever."""

from __future__ import annotations

import queue
import time
from typing import ClassVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from slotline import Limits, MemoryStore, Pool, PoolFullError, RedisStore, Slot
from slotline.pools import Limit, Place
from slotline.stores import Store
from tests.harness.waiting import wait_until

SIZES = {"a": 2, "b": 1, "c": 3}
SHARE = 2
KINDS = ["a", "b", "c", "ab", "bc", "ca", "abc"]
PARTITIONS = [None, "x", "y"]
PICK = st.integers(0, 999)


class Waiter:
    """A place in line, which looks again when it is told to, and the slot that it may have got."""

    def __init__(
        self, limit: Limit, keys: str, weight: dict[str, int], partition: str | None, nudged: queue.SimpleQueue
    ):
        self.keys, self.weight, self.partition = keys, weight, partition
        self.slots: list[Slot] = []
        asked = (
            {"weight": weight, "partition": partition}
            if len(keys) > 1
            else {"weight": weight[keys], "partition": partition}
        )
        self.place = Place(limit, on_grant=self.slots.append, on_nudge=lambda: nudged.put(self), **asked)
        self.look()

    def look(self) -> None:
        entered = self.place.sync.enter()
        if entered is not None and not self.slots:
            self.slots.append(entered)


class AloneAndTogether(RuleBasedStateMachine):
    """Holders and waiters of three pools; `c` has shares."""

    make_store: ClassVar

    def __init__(self) -> None:
        super().__init__()
        self.store: Store = type(self).make_store()
        self.pools = {
            key: Pool(key, size, slot_exp=None, store=self.store, max_per_partition=SHARE if key == "c" else None)
            for key, size in SIZES.items()
        }
        self.held: list[Waiter] = []
        self.waiters: list[Waiter] = []
        self.nudged: queue.SimpleQueue[Waiter] = queue.SimpleQueue()

    def limit(self, keys: str) -> Limit:
        return self.pools[keys] if len(keys) == 1 else Limits(*(self.pools[key] for key in keys))

    @rule(keys=st.sampled_from(KINDS), heavy=st.booleans(), partition=st.sampled_from(PARTITIONS))
    def enter(self, keys: str, heavy: bool, partition: str | None) -> None:
        weight = {key: 2 if heavy and key != "b" else 1 for key in keys}
        self.waiters.append(Waiter(self.limit(keys), keys, weight, partition, self.nudged))

    @rule(keys=st.sampled_from(KINDS))
    def take_at_once(self, keys: str) -> None:
        used = self.used()
        try:
            slot = self.limit(keys).sync.acquire()
        except PoolFullError:
            pass
        else:
            assert all(used[key] < SIZES[key] for key in keys)
            assert {part.key for part in slot.slots} == set(keys)
            self.limit(keys).sync.release(slot)

    # Who is served by when is not certain: no draw may depend on it.

    @rule(pick=PICK, again=st.booleans())
    def release(self, pick: int, again: bool) -> None:
        if self.held:
            waiter = self.held.pop(pick % len(self.held))
            for _ in range(1 + again):
                waiter.place.pool.sync.release(waiter.slots[0])

    @rule(pick=PICK)
    def leave(self, pick: int) -> None:
        if self.waiters:
            self.waiters.pop(pick % len(self.waiters)).place.sync.leave()

    @rule(pick=PICK)
    def look_again(self, pick: int) -> None:
        if self.waiters:
            self.waiters[pick % len(self.waiters)].look()

    def settle(self) -> None:
        """Let those look again who were told to by now, and take note of who has been served."""
        while not self.nudged.empty():
            waiter = self.nudged.get()
            if waiter in self.waiters:
                waiter.look()
        served = [waiter for waiter in self.waiters if waiter.slots]
        self.held += served
        self.waiters = [waiter for waiter in self.waiters if waiter not in served]

    def used(self) -> dict[str, int]:
        return {key: sum(one.weight.get(key, 0) for one in self.held) for key in SIZES}

    @invariant()
    def no_limit_is_exceeded(self) -> None:
        self.settle()
        for key, used in self.used().items():
            assert used <= SIZES[key]
        for partition in ("x", "y"):
            assert sum(one.weight.get("c", 0) for one in self.held if one.partition == partition) <= SHARE

    @invariant()
    def whoever_is_served_has_all_that_it_asked_for(self) -> None:
        tokens = {key: {holder.token for holder in pool.sync.info().holders} for key, pool in self.pools.items()}
        for one in self.held:
            assert len(one.slots) == 1
            assert {slot.key for slot in one.slots[0].slots} == set(one.keys)
            assert all(slot.token in tokens[slot.key] for slot in one.slots[0].slots)

    def teardown(self) -> None:
        """Everybody is served in the end, and nothing is left."""
        looked = time.monotonic()
        while self.waiters or self.held:
            count = len(self.waiters)
            for one in self.held:
                one.place.pool.sync.release(one.slots[0])
            self.held = []

            def progress(count: int = count) -> bool:
                nonlocal looked
                self.settle()
                if time.monotonic() - looked > 0.2:  # a waiter's own look, which comes whatever it is told
                    looked = time.monotonic()
                    for waiter in list(self.waiters):
                        waiter.look()
                return len(self.waiters) < count or count == 0

            wait_until(f"one of {count} is served", progress, timeout=20)
        for pool in self.pools.values():
            info = pool.sync.info()
            assert (info.used, info.waiting) == (0, 0)
        if isinstance(self.store, RedisStore):
            client = self.store.client()
            for key in SIZES:
                left = [name for name in client.hkeys(f"slotline:{{pool:{key}}}:state") if name[1:2] == b":"]
                assert left == []
                assert client.exists(f"slotline:{{pool:{key}}}:ring", f"slotline:{{pool:{key}}}:line") == 0


@pytest.mark.parametrize("kind", ["memory", "redis"])
def test_no_limit_is_exceeded_and_everybody_is_served(kind, redis_url):
    redis = RedisStore(redis_url)

    def make_store() -> Store:
        if kind == "memory":
            return MemoryStore()
        redis.client().flushdb()
        return redis

    machine = type("AloneAndTogetherHere", (AloneAndTogether,), {"make_store": staticmethod(make_store)})
    try:
        run_state_machine_as_test(
            machine,
            settings=settings(
                max_examples=60, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
            ),
        )
    finally:
        redis.sync.close()
