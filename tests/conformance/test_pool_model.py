"""The memory store and the Redis store do the same thing, whatever is asked of them in whatever order."""

from __future__ import annotations

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from slotline import MemoryStore, Pool, PoolFullError, RedisStore, Slot
from slotline.pools import Place
from tests.harness.waiting import wait_until


class Waiter:
    """A place in line, and the slot that it may have got."""

    def __init__(self, pool: Pool) -> None:
        self.slots: list[Slot] = []
        self.place = Place(pool, on_grant=self.slots.append)
        entered = self.place.sync.enter()
        if entered is not None:
            self.slots.append(entered)


class BothStores(RuleBasedStateMachine):
    """Everything is done to both stores; slots are named by the order in which they were asked for."""

    redis: RedisStore

    def __init__(self) -> None:
        super().__init__()
        self.redis.client().flushdb()
        self.pools = [Pool("p", 2, slot_exp=None, store=store) for store in (MemoryStore(), self.redis)]
        self.held: dict[int, list[Slot]] = {}
        self.waiters: dict[int, list[Waiter]] = {}
        self.limit = 2
        self.count = 0

    @rule()
    def acquire(self) -> None:
        outcomes: list[Slot | None] = []
        for pool in self.pools:
            try:
                outcomes.append(pool.sync.acquire())
            except PoolFullError:
                outcomes.append(None)
        assert [bool(outcome) for outcome in outcomes] in ([True] * 2, [False] * 2)
        if all(outcomes):
            self.count += 1
            self.held[self.count] = [slot for slot in outcomes if slot is not None]

    @rule()
    def enter(self) -> None:
        self.count += 1
        self.waiters[self.count] = [Waiter(pool) for pool in self.pools]
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

    @rule(size=st.integers(1, 4))
    def resize(self, size: int) -> None:
        before = [pool.sync.resize(size) for pool in self.pools]
        assert before == [self.limit] * 2
        self.limit = size
        self.settle()

    def settle(self) -> None:
        """Wait until as many waiters have been served as there is room for, in order, on both stores."""
        free = self.limit - len(self.held)
        due = sorted(self.waiters)[: max(0, free)]
        for name in due:
            waiters = self.waiters.pop(name)
            wait_until(f"waiter {name} is served on both stores", lambda waiters=waiters: all(w.slots for w in waiters))
            self.held[name] = [waiter.slots[0] for waiter in waiters]

    @invariant()
    def both_show_the_same(self) -> None:
        for at, pool in enumerate(self.pools):
            info = pool.sync.info()
            assert (info.max_size, info.used, info.waiting) == (self.limit, len(self.held), len(self.waiters))
            tokens = {holder.token: holder.fence for holder in info.holders}
            assert tokens == {slots[at].token: slots[at].fence for slots in self.held.values()}
            fences = [slots[at].fence for slots in self.held.values()]
            assert len(set(fences)) == len(fences)

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
