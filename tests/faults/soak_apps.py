"""The applications of the soak run: one of each queue, whose tasks share pools, and write down when they live."""

from __future__ import annotations

from slotline import Pool, Store
from tests.faults.soak_runs import LIMITS

KINDS = (*LIMITS, "cached", "plain")
"""The tasks."""
HISTORIES = ("both", "tenants", "held", "paced", "scale", "left", "right", "cached", "plain")
"""What they write down: of each pool, and of those that need none."""


def pools(store: Store) -> list[Pool]:
    """Return the pools, as the tasks declare them."""
    return [
        Pool("both", 3, store=store),
        Pool("tenants", 3, max_per_partition=1, store=store),
        Pool("held", 2, store=store),
        Pool("paced", None, rate="3/s", burst=3, store=store),
        Pool("scale", 3, store=store),
        Pool("left", 2, rate="6/s", burst=2, group="pairs", store=store),
        Pool("right", 3, group="pairs", store=store),
    ]


CELERY = """
from tests.faults.soak_runs import LIMITS, fences_of, live

app.conf.update(
    task_acks_late=True,
    slotline_cache_on_send=False,
    broker_url=os.environ.get("BROKER_URL", BROKER),  # what a client had just sent when its connection breaks is lost
)


def limited(name, **limits):
    def run(self, seconds, tenant=0):
        live(STORE, fences_of(self.slot), seconds, self.request.id)

    return app.task(shared=False, name=f"app.{name}", bind=True, pool_slot_exp=None, **limits)(run)


for name, limits in LIMITS.items():
    globals()[name] = limited(name, **limits)


@app.task(shared=False, name="app.cached", cache_ttl=600, bind=True)
def cached(self, seconds, item):
    live(STORE, {"cached": time.time_ns()}, seconds, self.request.id)


@app.task(shared=False, name="app.plain", bind=True)
def plain(self, seconds):
    live(STORE, {"plain": time.time_ns()}, seconds, self.request.id)
"""

TASKIQ = """
import os, time
from typing import Annotated
import redis
from taskiq import Context, TaskiqDepends
from taskiq_redis import RedisAsyncResultBackend, RedisStreamBroker
from slotline import RedisStore, Slot, configure
from slotline.caches import RedisCacheAdapter
from taskiq_ext import CacheMiddleware, PoolLimitMiddleware, current_slot
from tests.faults.soak_runs import LIMITS, alive, fences_of, live

HISTORY, URL = {history!r}, os.environ.get("STORE_URL", {store!r})
configure(heartbeat_lease={lease})
store = RedisStore(URL)
broker = RedisStreamBroker(
    URL, queue_name="taskiq-soak", socket_timeout=None, xread_block=200,
    idle_timeout=8000, unacknowledged_lock_timeout=4,
).with_result_backend(RedisAsyncResultBackend(HISTORY, result_ex_time=3600, socket_timeout=None))
broker.add_middlewares(CacheMiddleware(RedisCacheAdapter(store=store)), PoolLimitMiddleware(store))
client = redis.Redis.from_url(HISTORY)

Held = Annotated[Slot, TaskiqDepends(current_slot)]
Here = Annotated[Context, TaskiqDepends()]


def limited(name, **limits):
    async def run(seconds: float, tenant: int = 0, *, slot: Held, here: Here) -> None:
        await alive(client, fences_of(slot), seconds, here.message.task_id)

    return broker.task(task_name=name, pool_slot_exp=None, **limits)(run)


for name, limits in LIMITS.items():
    globals()[name] = limited(name, **limits)


@broker.task(cache_ttl=600, cache_key="taskiq:{{item}}")
async def cached(seconds: float, item: int, here: Here) -> None:
    await alive(client, {{"cached": time.time_ns()}}, seconds, here.message.task_id)


def id_of(here: Here) -> str:
    return here.message.task_id


@broker.task
def plain(seconds: float, task: Annotated[str, TaskiqDepends(id_of)]) -> None:  # in a thread, or a process
    live(HISTORY, {{"plain": time.time_ns()}}, seconds, task)
"""
