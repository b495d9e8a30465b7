"""Messages and callers of pools, alone and together: no limit is exceeded, and each message runs once."""

from __future__ import annotations

import contextlib
import itertools
from typing import ClassVar

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from slotline import Limits, Pool, PoolFullError, RedisStore, Slot
from slotline.pools import Limit, Room, Taken
from tests.harness.waiting import wait_until

SIZES = {"a": 2, "b": 1, "c": 3}
KINDS = st.sampled_from(["a", "b", "c", "ab", "bc", "ca", "abc"])
LANES = st.sampled_from(["q", "r"])
PICK = st.integers(0, 999)


class Parking(RuleBasedStateMachine):
    """Two workers, each with a lane, and callers who do not wait."""

    store: ClassVar[RedisStore]

    def __init__(self) -> None:
        super().__init__()
        self.store.client().flushdb()
        self.pools = {key: Pool(key, size, slot_exp=None, store=self.store) for key, size in SIZES.items()}
        self.rooms = {lane: Room(self.store, [lane]) for lane in "qr"}
        self.held: list[tuple[Limit, Slot]] = []
        self.running: list[Taken] = []
        self.parked: set[bytes] = set()
        self.numbers = itertools.count()

    def limit(self, keys: str) -> Limit:
        return self.pools[keys] if len(keys) == 1 else Limits(*(self.pools[key] for key in keys))

    @rule(keys=KINDS, lane=LANES)
    def park(self, keys: str, lane: str) -> None:
        message = f"{next(self.numbers)}:{keys}".encode()
        outcome = self.rooms[lane].sync.park(self.limit(keys), message, lane=lane)
        if isinstance(outcome, Slot):
            self.held.append((self.limit(keys), outcome))
        else:
            self.parked.add(message)

    @rule(keys=KINDS)
    def acquire(self, keys: str) -> None:
        with contextlib.suppress(PoolFullError):
            self.held.append((self.limit(keys), self.limit(keys).sync.acquire()))

    @rule(lane=LANES)
    def take(self, lane: str) -> None:
        for name in self.pools:
            self.rooms[lane].call(name)  # whatever it has heard by now
        taken = self.rooms[lane].sync.take()
        if taken is not None:
            assert taken.lane == lane
            assert {slot.key for slot in taken.slot.slots} == set(taken.message.decode().partition(":")[2])
            self.parked.remove(taken.message)  # it is taken once
            self.running.append(taken)

    @rule(pick=PICK)
    def give_back(self, pick: int) -> None:
        if self.running:
            taken = self.running.pop(pick % len(self.running))
            taken.sync.give_back()
            self.parked.add(taken.message)

    @rule(pick=PICK, settle_first=st.booleans())
    def end(self, pick: int, settle_first: bool) -> None:
        if self.running:
            taken = self.running.pop(pick % len(self.running))
            if settle_first:
                taken.sync.settle()
            taken.pool.sync.release(taken.slot)
            taken.sync.settle()

    @rule(pick=PICK)
    def release(self, pick: int) -> None:
        if self.held:
            limit, slot = self.held.pop(pick % len(self.held))
            limit.sync.release(slot)

    @rule(key=st.sampled_from(sorted(SIZES)))
    def purge(self, key: str) -> None:
        gone = {name for name in self.parked if min(name.decode().partition(":")[2]) == key}
        assert self.pools[key].sync.purge() == len(gone)
        self.parked -= gone

    @invariant()
    def no_limit_is_exceeded(self) -> None:
        slots = [slot for _, slot in self.held] + [taken.slot for taken in self.running]
        for key, size in SIZES.items():
            assert sum(part.key == key for slot in slots for part in slot.slots) <= size

    @invariant()
    def whatever_waits_is_parked(self) -> None:
        assert sum(pool.sync.info().waiting for pool in self.pools.values()) == len(self.parked)

    def teardown(self) -> None:
        """Everything runs in the end, and nothing is left."""
        while self.held:
            self.release(0)
        while self.running or self.parked:
            while self.running:
                self.end(0, settle_first=False)

            def taken() -> bool:
                for lane in self.rooms:
                    self.take(lane)
                return bool(self.running) or not self.parked

            wait_until(f"one of {len(self.parked)} is taken", taken, timeout=20)
        client = self.store.client()
        for key, pool in self.pools.items():
            assert (pool.sync.info().used, pool.sync.info().waiting) == (0, 0)
            left = [name for name in client.hkeys(f"slotline:{{pool:{key}}}:state") if name[1:2] == b":"]
            assert [name for name in left if name[:1] != b"c"] == []  # a lane that is called is called for a second
            assert client.exists(f"slotline:{{pool:{key}}}:ring", f"slotline:{{pool:{key}}}:line") == 0
        for room in self.rooms.values():
            room.close()


def test_no_limit_is_exceeded_and_each_message_runs_once(redis_url):
    store = RedisStore(redis_url)
    machine = type("ParkingHere", (Parking,), {"store": store})
    try:
        run_state_machine_as_test(
            machine,
            settings=settings(
                max_examples=40, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
            ),
        )
    finally:
        store.sync.close()
