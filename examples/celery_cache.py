"""Cached results in Celery: a stampede runs the task once, and chains, groups and chords use what is there.

Run it with ``python examples/celery_cache.py``. It needs no server: a real worker with 8 threads takes its messages
from memory, and so is the cache. With ``slotline_redis_url="redis://..."`` the same holds for all workers.

Expected output:

    50 messages, 1 run, 50 answers
    price.delay(7), price.delay(item=7) and price.delay(7, "EUR") are one call: 1 run
    a hit is answered without sending a message: SUCCESS 7.70 EUR
    a chord over 3 calls, 2 of them cached: 33.00 EUR, 1 run more
    with cache=False it runs: 3 runs
    after price.invalidate(7) it runs: 4 runs
    a failing run is not kept: 2 runs for 2 messages
"""

import logging
import time

from celery import Celery, chord
from celery.contrib.testing.worker import start_worker

logging.getLogger("celery").setLevel(logging.CRITICAL)  # it logs the errors of tasks, which are shown here

app = Celery("demo", broker="memory://", backend="cache+memory://", task_cls="celery_ext:Task")
app.conf.update(broker_transport_options={"polling_interval": 0.02}, worker_hijack_root_logger=False)
runs = {"price": 0, "broken": 0}


@app.task(cache_ttl=60)
def price(item: int, currency: str = "EUR") -> str:
    runs["price"] += 1
    time.sleep(0.2)  # a slow query
    return f"{item * 1.1:.2f} {currency}"


@app.task
def total(prices: list[str]) -> str:
    return f"{sum(float(price.split()[0]) for price in prices):.2f} EUR"


@app.task(cache=True)
def broken() -> None:
    runs["broken"] += 1
    raise ConnectionError("no answer")


def main() -> None:
    answers = [result.get(timeout=30) for result in [price.delay(7) for _ in range(50)]]
    print(f"50 messages, {runs['price']} run, {len(answers)} answers")

    for result in [price.delay(7), price.delay(item=7), price.delay(7, "EUR")]:
        result.get(timeout=30)
    print(f'price.delay(7), price.delay(item=7) and price.delay(7, "EUR") are one call: {runs["price"]} run')

    hit = price.delay(7)
    print(f"a hit is answered without sending a message: {hit.state} {hit.get(timeout=0)}")

    summed = chord([price.s(7), price.s(16), price.s(7)], total.s()).delay().get(timeout=30)
    print(f"a chord over 3 calls, 2 of them cached: {summed}, {runs['price'] - 1} run more")

    price.apply_async((7,), cache=False).get(timeout=30)
    print(f"with cache=False it runs: {runs['price']} runs")

    price.invalidate(7)
    price.delay(7).get(timeout=30)
    print(f"after price.invalidate(7) it runs: {runs['price']} runs")

    for _ in range(2):
        broken.delay().get(timeout=30, propagate=False)
    print(f"a failing run is not kept: {runs['broken']} runs for 2 messages")


if __name__ == "__main__":
    with start_worker(app, pool="threads", concurrency=8, perform_ping_check=False, loglevel="CRITICAL"):
        main()
