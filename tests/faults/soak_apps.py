"""The applications of the soak run: one of each queue, whose tasks share pools, and write down when they live."""

CELERY = """
app.conf.update(
    task_acks_late=True,
    slotline_cache_on_send=False,
    broker_url=os.environ.get("BROKER_URL", BROKER),  # what a client had just sent when its connection breaks is lost
)


@app.task(shared=False, name="app.both", pool="both", pool_size=3, pool_slot_exp=None, bind=True)
def both(self, seconds):
    return beat(STORE, "both", self.slot.fence, seconds, self.request.id)


@app.task(
    shared=False, name="app.tenants", pool="tenants", pool_size=3, pool_slot_exp=None, bind=True,
    pool_partition="{tenant}", pool_max_per_partition=1,
)
def tenants(self, seconds, tenant):
    return beat(STORE, "tenants", self.slot.fence, seconds, self.request.id)


@app.task(shared=False, name="app.held", pool="held", pool_size=2, pool_slot_exp=None, bind=True, pool_on_full="wait")
def held(self, seconds):
    return beat(STORE, "held", self.slot.fence, seconds, self.request.id)


@app.task(shared=False, name="app.cached", cache_ttl=600, bind=True)
def cached(self, seconds, item):
    return beat(STORE, "cached", time.time_ns(), seconds, self.request.id)


@app.task(shared=False, name="app.plain", bind=True)
def plain(self, seconds):
    return beat(STORE, "plain", time.time_ns(), seconds, self.request.id)
"""

TASKIQ = """
import asyncio, os, time
from typing import Annotated
import redis
from taskiq import Context, TaskiqDepends
from taskiq_redis import RedisAsyncResultBackend, RedisStreamBroker
from slotline import RedisStore, Slot, configure
from slotline.caches import RedisCacheAdapter
from taskiq_ext import CacheMiddleware, PoolLimitMiddleware, current_slot
from tests.integration.losing_slots import PULSE, sign

HISTORY, URL = {history!r}, os.environ.get("STORE_URL", {store!r})
configure(heartbeat_lease={lease})
store = RedisStore(URL)
broker = RedisStreamBroker(
    URL, queue_name="taskiq-soak", socket_timeout=None, xread_block=200,
    idle_timeout=8000, unacknowledged_lock_timeout=4,
).with_result_backend(RedisAsyncResultBackend(HISTORY, result_ex_time=3600, socket_timeout=None))
broker.add_middlewares(CacheMiddleware(RedisCacheAdapter(store=store)), PoolLimitMiddleware(store))
client = redis.Redis.from_url(HISTORY)


def fence_of(slot: Annotated[Slot, TaskiqDepends(current_slot)]) -> int:
    return slot.fence


Fence = Annotated[int, TaskiqDepends(fence_of)]
Here = Annotated[Context, TaskiqDepends()]


async def live(name, fence, seconds, task):
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        sign(client, name, fence, task)
        await asyncio.sleep(PULSE)
    sign(client, name, fence, task, "ends")
    return fence


@broker.task(pool="both", pool_size=3, pool_slot_exp=None)
async def both(seconds: float, fence: Fence, here: Here) -> int:
    return await live("both", fence, seconds, here.message.task_id)


@broker.task(
    pool="tenants", pool_size=3, pool_slot_exp=None, pool_partition="{{tenant}}", pool_max_per_partition=1
)
async def tenants(seconds: float, tenant: int, fence: Fence, here: Here) -> int:
    return await live("tenants", fence, seconds, here.message.task_id)


@broker.task(pool="held", pool_size=2, pool_slot_exp=None, pool_on_full="wait")
async def held(seconds: float, fence: Fence, here: Here) -> int:
    return await live("held", fence, seconds, here.message.task_id)


@broker.task(cache_ttl=600, cache_key="taskiq:{{item}}")
async def cached(seconds: float, item: int, here: Here) -> int:
    return await live("cached", time.time_ns(), seconds, here.message.task_id)


@broker.task
async def plain(seconds: float, here: Here) -> int:
    return await live("plain", time.time_ns(), seconds, here.message.task_id)
"""
