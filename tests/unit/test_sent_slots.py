"""A slot that is sent to another process says there who holds it, and nothing that only its holder can know."""

from __future__ import annotations

import os
import pickle
from typing import Annotated, Any

import pytest
from taskiq import InMemoryBroker, TaskiqDepends

from slotline import Limits, MemoryStore, Pool, Slot
from taskiq_ext import ExecutorMiddleware, PoolLimitMiddleware, current_slot

TOLD = ("key", "token", "owner", "fence", "acquired_at")


def sent(slot: Slot) -> Any:
    return pickle.loads(pickle.dumps(slot))


def test_it_tells_who_holds_the_slot_and_the_fence():
    with Pool("a", 1, store=MemoryStore()) as slot:
        copy = sent(slot)
        assert isinstance(copy, Slot)
        assert [getattr(copy, name) for name in TOLD] == [getattr(slot, name) for name in TOLD]
        assert copy.slots == (copy,)
        assert [getattr(sent(copy), name) for name in TOLD] == [getattr(slot, name) for name in TOLD]
        assert repr(copy) == f"<SentSlot {slot.token} of 'a', fence {slot.fence}>"


def test_it_tells_the_fence_of_each_of_several_pools():
    store = MemoryStore()
    with Limits(Pool("a", 1, store=store), Pool("b", 1, store=store)) as holding:
        copy = sent(holding)
        assert [(slot.key, slot.fence) for slot in copy.slots] == [(slot.key, slot.fence) for slot in holding.slots]
        assert copy.slot_of("b").fence == holding.slot_of("b").fence
        with pytest.raises(KeyError):
            copy.slot_of("c")


@pytest.mark.parametrize("name", ["evicted", "expired", "expires_at", "forfeited", "is_held", "lost", "remaining"])
def test_what_only_the_holder_knows_is_refused(name):
    with Pool("a", 1, store=MemoryStore()) as slot:
        assert hasattr(slot, name)
        with pytest.raises(AttributeError, match=f"'{name}' of a slot is known only in the process that holds it"):
            getattr(sent(slot), name)


def fence_here(slot: Annotated[Slot, TaskiqDepends(current_slot)]) -> tuple[int, int]:
    return slot.fence, os.getpid()


@pytest.mark.parametrize("backend", ["process", "billiard"])
async def test_a_task_in_an_executor_is_handed_its_slot(backend):
    executors = ExecutorMiddleware({"cpu": {"backend": backend, "max_pools": 1, "workers_per_pool": 1}})
    broker = InMemoryBroker().with_middlewares(PoolLimitMiddleware(MemoryStore()), executors)
    task = broker.register_task(fence_here, pool="a", pool_size=1, executor="cpu")
    result = await (await task.kiq()).wait_result(check_interval=0.01, timeout=60)
    assert result.error is None
    fence, process = result.return_value
    assert fence > 0
    assert process != os.getpid()
    await broker.shutdown()
