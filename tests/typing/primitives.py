"""The primitives as a user writes them; checked by ``mypy --strict``, never run."""

from __future__ import annotations

from typing import assert_type

from slotline import Holding, Limits, MemoryStore, Pool, RedisStore, Settings, Slot, configure, pooled
from slotline.caches import InMemoryCacheAdapter
from slotline.leases import ExecutorLease, LeasedExecutorManager
from slotline.metrics import Exporter, Metric, OpenTelemetryMetrics, PoolFigures, PrometheusMetrics, sample_pools
from slotline.pools import PoolInfo

assert_type(configure(store=RedisStore("redis://localhost:6379/0"), default_pool_slot_expiration=300), Settings)

api = Pool("api", max_size=5, slot_exp=None, store=MemoryStore(), on_lost=lambda slot: print(slot.fence))


both = Limits(api, Pool("db", 2, group=None), on_lost=lambda holding: print(holding.slots))


async def together() -> None:
    async with both as holding:
        assert_type(holding, Holding)
        assert_type(holding.slot_of("db").fence, int)
    async with both.slot(timeout=1, weight={"db": 2}, partition="tenant") as holding:
        assert_type(holding.slots, tuple[Slot, ...])
    assert_type(both.sync.acquire(), Holding)
    assert_type(await both.release(await both.acquire(timeout=None)), bool)


async def awaiting() -> None:
    async with api as slot:
        assert_type(slot, Slot)
    async with api.slot(timeout=2.5, owner="report") as waited:
        assert_type(waited.fence, int)
    taken = await api.acquire(timeout=None)
    assert_type(taken.expires_at, float | None)
    assert_type(await api.release(taken), bool)
    assert_type(await api.info(), PoolInfo)


def blocking() -> None:
    with api as slot:
        assert_type(slot.lost, bool)
    assert_type(api.sync.acquire(owner="cron"), Slot)
    assert_type(api.sync.size(), int)
    assert_type(api.sync.resize(3), int)


@pooled("tenant:{tenant}", 3, raise_on_full=True)
def fetch(tenant: str, page: int = 1) -> list[str]:
    return [tenant] * page


@pooled("tenant:{tenant}", 3)
async def fetch_async(tenant: str) -> str:
    return tenant


assert_type(fetch("a"), list[str])


@pooled(["db", "tenant:{tenant}"], [10, 3])
def save(tenant: str) -> int:
    return len(tenant)


assert_type(save("a"), int)


async def caching() -> None:
    assert_type(await fetch_async("a"), str)
    cache = InMemoryCacheAdapter(default_ttl=60)
    await cache.get_or_create("key", lambda: 1, ttl_seconds=5)
    await cache.set("key", 2)
    assert_type(await cache.invalidate("key"), bool)
    await cache.clear()


async def leasing() -> None:
    async with LeasedExecutorManager(backend="thread", max_pools=2, workers_per_pool=1) as manager:
        lease = await manager.acquire(lease_seconds=30.0, owner="request:123", wait=True, timeout=2.0)
        assert_type(lease, ExecutorLease)
        assert_type(await lease.run(sorted, [3, 1, 2]), list[int])
        await lease.release()


class Printing(Exporter):
    def count(self, metric: Metric, labels: tuple[str, ...], by: int) -> None:
        print(metric.name, dict(zip(metric.labels, labels, strict=True)), by)

    def observe(self, metric: Metric, labels: tuple[str, ...], seconds: float) -> None:
        print(metric.name, seconds)


assert_type(configure(metrics="prometheus", metrics_pools=["gpu", "api:{tenant}"]), Settings)
configure(metrics=Printing())
configure(metrics=PrometheusMetrics())
configure(metrics=OpenTelemetryMetrics())
assert_type(sample_pools(), list[PoolFigures])
