"""The memory store and the Redis store do the same thing, whatever is asked of them in whatever order."""

from __future__ import annotations

from typing import NamedTuple

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from slotline import MemoryStore, Pool, PoolFullError, RedisStore, Slot
from slotline.pools import Place
from tests.harness.waiting import wait_until

SHARE = 3


class Waiter:
    """A place in line, and the slot that it may have got."""

    def __init__(self, pool: Pool, weight: int, partition: str | None) -> None:
        self.slots: list[Slot] = []
        self.place = Place(pool, on_grant=self.slots.append, weight=weight, partition=partition)
        entered = self.place.sync.enter()
        if entered is not None:
            self.slots.append(entered)


class Asked(NamedTuple):
    weight: int
    partition: str | None


class BothStores(RuleBasedStateMachine):
    """Everything is done to both stores; slots are named by the order in which they were asked for."""

    redis: RedisStore

    def __init__(self) -> None:
        super().__init__()
        self.redis.client().flushdb()
        self.pools = [
            Pool("p", 4, slot_exp=None, max_per_partition=SHARE, store=store) for store in (MemoryStore(), self.redis)
        ]
        self.held: dict[int, list[Slot]] = {}
        self.waiters: dict[int, list[Waiter]] = {}
        self.asked: dict[int, Asked] = {}
        self.limit = 4
        self.count = 0

    @rule(weight=st.integers(1, SHARE), partition=st.sampled_from([None, "a", "b"]))
    def acquire(self, weight: int, partition: str | None) -> None:
        outcomes: list[Slot | None] = []
        for pool in self.pools:
            try:
                outcomes.append(pool.sync.acquire(weight=weight, partition=partition))
            except PoolFullError:
                outcomes.append(None)
        assert [bool(outcome) for outcome in outcomes] in ([True] * 2, [False] * 2)
        if all(outcomes):
            self.count += 1
            self.held[self.count] = [slot for slot in outcomes if slot is not None]
            self.asked[self.count] = Asked(weight, partition)

    @rule(weight=st.integers(1, SHARE), partition=st.sampled_from([None, "a", "b"]))
    def enter(self, weight: int, partition: str | None) -> None:
        self.count += 1
        self.asked[self.count] = Asked(weight, partition)
        self.waiters[self.count] = [Waiter(pool, weight, partition) for pool in self.pools]
        self.settle()

    @precondition(lambda self: self.held)
    @rule(choice=st.randoms(use_true_random=False), again=st.booleans())
    def release(self, choice, again: bool) -> None:
        name = choice.choice(sorted(self.held))
        slots = self.held.pop(name)
        for pool, slot in zip(self.pools, slots, strict=True):
            assert pool.sync.release(slot) is True
            if again:
                assert pool.sync.release(slot) is False
        self.settle()

    @precondition(lambda self: self.waiters)
    @rule(choice=st.randoms(use_true_random=False))
    def leave(self, choice) -> None:
        name = choice.choice(sorted(self.waiters))
        for waiter in self.waiters.pop(name):
            waiter.place.sync.leave()
        self.settle()

    @precondition(lambda self: self.waiters)
    @rule(choice=st.randoms(use_true_random=False), times=st.integers(1, 2))
    def evict(self, choice, times: int) -> None:
        asked = self.asked[choice.choice(sorted(self.waiters))]
        for _ in range(times):
            memory, redis = (pool.sync.evict(**asked._asdict()) for pool in self.pools)
            assert (memory is None) == (redis is None)
            assert self.name_of(memory, 0) == self.name_of(redis, 1)

    def name_of(self, token: str | None, at: int) -> int | None:
        return next((name for name, slots in self.held.items() if slots[at].token == token), None)

    @invariant()
    def the_same_holders_are_to_end(self) -> None:
        memory = next(iter(self.pools[0].store.pools.values()), None)
        to_end = memory.evicted & memory.slots.keys() if memory else set()
        marked = [
            name[2:].decode() for name in self.redis.client().hkeys("slotline:{pool:p}:state") if name[:2] == b"e:"
        ]
        assert {self.name_of(token, 0) for token in to_end} == {self.name_of(token, 1) for token in marked}

    @rule(size=st.integers(1, 6))
    def resize(self, size: int) -> None:
        before = [pool.sync.resize(size) for pool in self.pools]
        assert before == [self.limit] * 2
        self.limit = size
        self.settle()

    def settle(self) -> None:
        """Wait until the same waiters have been served on both stores, and no others."""
        served_at_once = [name for name, (memory, _) in self.waiters.items() if memory.slots]
        for name in served_at_once:
            waiters = self.waiters.pop(name)
            wait_until(f"waiter {name} is served by both stores", lambda waiters=waiters: all(w.slots for w in waiters))
            self.held[name] = [waiter.slots[0] for waiter in waiters]

    def weight(self, partition: str | None = None) -> int:
        asked = [self.asked[name] for name in self.held]
        return sum(one.weight for one in asked if partition is None or one.partition == partition)

    @invariant()
    def both_show_the_same(self) -> None:
        for at, pool in enumerate(self.pools):
            info = pool.sync.info()
            assert (info.max_size, info.used, info.waiting) == (self.limit, self.weight(), len(self.waiters))
            tokens = {holder.token: (holder.fence, holder.weight, holder.partition) for holder in info.holders}
            assert tokens == {
                slots[at].token: (slots[at].fence, *self.asked[name]) for name, slots in self.held.items()
            }
            fences = [slots[at].fence for slots in self.held.values()]
            assert len(set(fences)) == len(fences)

    @invariant()
    def nobody_has_more_than_a_share(self) -> None:
        assert all(self.weight(partition) <= SHARE for partition in ("a", "b"))

    @invariant()
    def nobody_waits_for_an_empty_pool_that_could_let_them_in(self) -> None:
        if not self.held:
            assert all(self.asked[name].weight > self.limit for name in self.waiters)

    @invariant()
    def an_empty_pool_leaves_no_trace_of_its_partitions(self) -> None:
        if not self.held and not self.waiters:
            state = self.redis.client().hkeys("slotline:{pool:p}:state")
            assert [name for name in state if name[:2] in (b"u:", b"t:", b"w:", b"h:")] == []
            assert self.redis.client().exists("slotline:{pool:p}:ring", "slotline:{pool:p}:line") == 0

    def teardown(self) -> None:
        for waiters in self.waiters.values():
            for waiter in waiters:
                waiter.place.close()


def test_memory_and_redis_agree_on_every_history(redis_url):
    store = RedisStore(redis_url)
    machine = type("BothStoresHere", (BothStores,), {"redis": store})
    try:
        run_state_machine_as_test(
            machine,
            settings=settings(
                max_examples=60, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
            ),
        )
    finally:
        store.sync.close()
