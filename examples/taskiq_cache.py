"""Cached results in Taskiq: a stampede runs the task once.

Run it with ``python examples/taskiq_cache.py``. It needs no server: the cache is this process's memory. With
``CacheMiddleware(RedisCacheAdapter(redis_url=...))`` the same holds for all workers.

Expected output:

    200 messages, 1 run, 199 answers from the cache
    "7" and 7 are one call: price 7.70 EUR, served from the cache
    with cache=False it runs: 2 runs
    a failing run is not kept: 2 runs for 2 messages
"""

import asyncio
import logging

from taskiq import InMemoryBroker

from taskiq_ext import CacheMiddleware

logging.getLogger("taskiq").setLevel(logging.CRITICAL)  # it logs the errors of tasks, which are shown here

broker = InMemoryBroker(max_async_tasks=500, max_stored_results=-1)
broker.add_middlewares(CacheMiddleware())
runs = {"price": 0, "broken": 0}


@broker.task(cache_ttl=60)
async def price(item: int) -> str:
    runs["price"] += 1
    await asyncio.sleep(0.2)  # a slow query
    return f"{item * 1.1:.2f} EUR"


@broker.task(cache=True)
def broken() -> None:
    runs["broken"] += 1
    raise ConnectionError("no answer")


async def main() -> None:
    await broker.startup()
    sent = [await price.kiq(7) for _ in range(200)]
    results = [await task.wait_result(check_interval=0.01) for task in sent]
    hits = sum("cache_hit" in result.labels for result in results)
    print(f"200 messages, {runs['price']} run, {hits} answers from the cache")

    again = await (await price.kiq("7")).wait_result(check_interval=0.01)
    served = "served from the cache" if again.labels.get("cache_hit") else "computed"
    print(f'"7" and 7 are one call: price {again.return_value}, {served}')

    await (await price.kicker().with_labels(cache=False).kiq(7)).wait_result(check_interval=0.01)
    print(f"with cache=False it runs: {runs['price']} runs")

    for _ in range(2):
        await (await broken.kiq()).wait_result(check_interval=0.01)
    print(f"a failing run is not kept: {runs['broken']} runs for 2 messages")
    await broker.shutdown()


if __name__ == "__main__":
    asyncio.run(main())
