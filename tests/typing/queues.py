"""The queue extensions as a user writes them; checked by ``mypy --strict``, never run."""

from __future__ import annotations

from typing import Annotated, Any, assert_type

from celery import Celery
from taskiq import InMemoryBroker, TaskiqDepends

import celery_ext
from slotline import RedisStore, Slot
from slotline.caches import InMemoryCacheAdapter, RedisCacheAdapter, TieredCacheAdapter, cached
from slotline.leases import ExecutorLease, LeasedExecutorManager, WorkGrinder
from slotline.pools import Holding
from slotline.workers import BilliardExecutor
from taskiq_ext import (
    CacheMiddleware,
    ExecutorMiddleware,
    PoolLimit,
    PoolLimitMiddleware,
    current_slot,
    executor_lease,
)

store = RedisStore("redis://localhost:6379/0")
broker = InMemoryBroker().with_middlewares(
    CacheMiddleware(cache=RedisCacheAdapter(store=store), enabled=True, default_ttl=3600),
    CacheMiddleware(InMemoryCacheAdapter()),
    PoolLimitMiddleware(store, pools={"api": 5, "reports": PoolLimit(size=1, on_full="fail")}),
    PoolLimitMiddleware(pools={"gpu": PoolLimit(size=8, partition="{tenant}", max_per_partition=4)}),
    ExecutorMiddleware({"cpu": {"backend": "process", "max_pools": 1}, "io": LeasedExecutorManager(max_pools=2)}),
)


@broker.task(pool="api", cache_ttl=60)
async def fetch(
    tenant: str,
    slot: Annotated[Slot, TaskiqDepends(current_slot)],
    lease: Annotated[ExecutorLease, TaskiqDepends(executor_lease("io"))],
) -> int:
    assert_type(await lease.run(len, tenant), int)
    return slot.fence


@broker.task(pool=["db", "api:{tenant}"], pool_size=[10, 2])
async def export(tenant: str, slot: Annotated[Holding, TaskiqDepends(current_slot)]) -> int:
    return slot.slot_of("db").fence


app = Celery("app", task_cls="celery_ext:Task")
celery_ext.setup(app)


class Export(celery_ext.Task):
    pool = ("db", "api:{tenant}")
    pool_size = (10, 2)
    pool_weight = 1

    def run(self, tenant: str) -> int:
        return 0 if self.slot is None else self.slot.slot_of(f"api:{tenant}").fence


@cached(60, key="user:{user_id}")
def user(user_id: int) -> dict[str, Any]:
    return {"id": user_id}


assert_type(user(1), dict[str, Any])
tiered = TieredCacheAdapter(RedisCacheAdapter("redis://localhost:6379/0"), local_ttl=5)


def crunch() -> None:
    with BilliardExecutor(processes=2, timeout=10, maxtasksperchild=100) as executor:
        print(executor.submit(len, "abc").result(timeout=5))
        print(executor.options(timeout=5, soft_timeout=4).submit(len, "abc").result())


async def grind(manager: LeasedExecutorManager) -> None:
    grinder = WorkGrinder(executor_manager=manager, max_wait_seconds=10.0, batch_size_threshold=20)
    await grinder.start()
    await grinder.stop()
