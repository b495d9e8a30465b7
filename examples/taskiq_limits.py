"""Concurrency limits in Taskiq: at most so many runs at once; the others wait, fail or are dropped as their labels say.

Run it with ``python examples/taskiq_limits.py``. It needs no server: the slots are in this process's memory. With
``PoolLimitMiddleware(RedisStore("redis://..."))`` the limit holds across all workers on all machines.

Expected output:

    30 messages, never more than 3 calls of the API at once
    2 tenants, 1 run each at a time: never more than 2 at once
    pool_on_full="fail": PoolFullError: Pool 'report' is full: its one slot is taken, held by report-1.
    pool_timeout=0.05: PoolTimeoutError: No slot of pool 'report' came free within 0.05 s.
    pool_on_full="drop": no result
    a bad label is refused where it is written: pool_size=0 is not allowed: it must be a whole number of at least 1.
"""

import asyncio
import logging

from taskiq import InMemoryBroker

from slotline import InvalidOptionError
from taskiq_ext import PoolLimitMiddleware

logging.getLogger("taskiq").setLevel(logging.CRITICAL)  # it logs the errors of tasks, which are shown here

broker = InMemoryBroker(max_async_tasks=100)
broker.add_middlewares(PoolLimitMiddleware(pools={"api": 3}))


class Meter:
    """Counts how many runs go on at once."""

    running = most = 0

    async def __aenter__(self):
        self.running += 1
        self.most = max(self.most, self.running)

    async def __aexit__(self, *exc):
        self.running -= 1


api, tenants = Meter(), Meter()
report_may_end = asyncio.Event()


@broker.task(pool="api")  # declared once, above
async def call_api() -> None:
    async with api:
        await asyncio.sleep(0.01)


@broker.task(pool="tenant:{tenant}", pool_size=1)  # one pool for each tenant
async def sync_tenant(tenant: str) -> None:  # noqa: ARG001 - it names the pool
    async with tenants:
        await asyncio.sleep(0.01)


@broker.task(pool="report", pool_size=1)
async def report() -> None:
    await report_may_end.wait()


async def result_of(task):
    return await task.wait_result(check_interval=0.01)


async def main() -> None:
    await broker.startup()
    for task in [await call_api.kiq() for _ in range(30)]:
        await result_of(task)
    print(f"30 messages, never more than {api.most} calls of the API at once")

    for task in [await sync_tenant.kiq(tenant) for tenant in ("acme", "zenith") * 5]:
        await result_of(task)
    print(f"2 tenants, 1 run each at a time: never more than {tenants.most} at once")

    holding = await report.kicker().with_task_id("report-1").kiq()
    for labels in ({"pool_on_full": "fail"}, {"pool_timeout": 0.05}):
        error = (await result_of(await report.kicker().with_labels(**labels).kiq())).error
        (label,) = labels.items()
        print(f"{label[0]}={label[1]!r}".replace("'", '"') + f": {type(error).__name__}: {error}")
    dropped = await report.kicker().with_labels(pool_on_full="drop").kiq()
    report_may_end.set()
    await result_of(holding)
    await broker.wait_all()
    print(f'pool_on_full="drop": {"a result" if await dropped.is_ready() else "no result"}')

    try:
        broker.register_task(report.original_func, pool="report", pool_size=0)
    except InvalidOptionError as error:
        print(f"a bad label is refused where it is written: {error}")
    await broker.shutdown()


if __name__ == "__main__":
    asyncio.run(main())
