"""Tasks that name several pools, whose store is a Redis Cluster: a group, or an error before anything runs."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from celery import Celery
from taskiq import InMemoryBroker

from celery_ext.config import read_config
from celery_ext.limits import LimitReader
from slotline import InvalidOptionError, Pool, RedisStore
from taskiq_ext import PoolLimit, PoolLimitMiddleware
from tests.harness.redis_cluster import RedisCluster


@pytest.fixture
def store(redis_cluster: RedisCluster) -> Iterator[RedisStore]:
    store = RedisStore(redis_cluster.url)
    yield store
    store.sync.close()


def nothing() -> None:
    """Do nothing."""


async def test_a_taskiq_worker_refuses_to_start_without_a_group_and_runs_with_one(store: RedisStore) -> None:
    limits = PoolLimitMiddleware(store, pools={"db": PoolLimit(size=2, group="g")})
    broker = InMemoryBroker().with_middlewares(limits)
    broker.is_worker_process = True

    @broker.task(pool=["db", "api:{tenant}"], pool_size=[None, 1], pool_group=[None, "g"])
    async def work(tenant: str) -> str:
        return tenant

    await broker.startup()
    limits.startup()  # which the InMemoryBroker of Taskiq 0.12 does not call
    result = await (await work.kiq("a")).wait_result(check_interval=0.01, timeout=30)
    assert result.return_value == "a"
    assert await Pool("db", 2, group="g", store=store).size() == 0
    with pytest.raises(InvalidOptionError, match=r"^pool=.*group"):
        broker.task(pool=["db", "other"], pool_size=[None, 1])(nothing)
    await broker.shutdown()


def test_a_celery_worker_refuses_to_start_without_a_group(store: RedisStore) -> None:
    app = Celery("unit", broker="memory://", task_cls="celery_ext:Task", set_as_current=False)
    app.task(nothing, name="unit.grouped", shared=False, pool=["a", "b"], pool_size=1, pool_group="g")
    app.finalize()
    LimitReader(app, read_config(app), store)
    app.task(nothing, name="unit.apart", shared=False, pool=["a", "b"], pool_size=1)
    with pytest.raises(InvalidOptionError, match=r"^pool=.*group"):
        LimitReader(app, read_config(app), store)
    app.close()
