"""Figures of real workers of both queues, as a scrape over HTTP shows them."""

from __future__ import annotations

import asyncio
import importlib
import time
import urllib.request

import pytest

from slotline import Pool, RedisStore, SlotLostError
from tests.harness.ports import free_port
from tests.harness.waiting import await_until, wait_until

pytestmark = pytest.mark.leaves("keys", reason="the brokers' own queues and results")

CELERY = """
import os, time
from celery import Celery
from celery.signals import worker_ready

URL = "{url}"
app = Celery("app", broker=URL, backend=URL, task_cls="celery_ext:Task")
app.conf.update(slotline_redis_url=URL, slotline_metrics="prometheus", result_expires=60, task_track_started=True)


@worker_ready.connect
def serve(**_):
    from prometheus_client import CollectorRegistry, start_http_server
    from prometheus_client.multiprocess import MultiProcessCollector
    from slotline.metrics import PoolCollector
    registry = CollectorRegistry()
    MultiProcessCollector(registry)
    registry.register(PoolCollector())
    start_http_server({port}, addr="127.0.0.1", registry=registry)


@app.task(shared=False, pool="crm:{{tenant}}", pool_size=2)
def limited(tenant, seconds=0.05):
    time.sleep(seconds)


@app.task(shared=False, pool="once", pool_size=1, pool_on_full="drop", ignore_result=True)
def dropped(seconds):
    time.sleep(seconds)


@app.task(shared=False, pool="held", pool_size=1, pool_on_full="wait")
def held(until):
    while not os.path.exists(until):
        time.sleep(0.02)


@app.task(shared=False, cache_ttl=60)
def weather(city):
    return city
"""

TASKIQ = """
import asyncio
from pathlib import Path
from taskiq.middlewares.prometheus_middleware import PrometheusMiddleware
from taskiq_redis import RedisAsyncResultBackend, RedisStreamBroker
import slotline
from slotline import RedisStore
from slotline.caches import RedisCacheAdapter
from taskiq_ext import CacheMiddleware, PoolLimitMiddleware

URL = "{url}"
slotline.configure(metrics="prometheus", redis_url=URL)
store = RedisStore(URL)
broker = RedisStreamBroker(URL, socket_timeout=None).with_result_backend(
    RedisAsyncResultBackend(URL, result_ex_time=60, socket_timeout=None)
).with_middlewares(
    PrometheusMiddleware(metrics_path=Path("{directory}"), server_addr="127.0.0.1", server_port={port}),
    CacheMiddleware(RedisCacheAdapter(store=store), answer_senders=False),
    PoolLimitMiddleware(store),
)


@broker.task(pool="crm:{{tenant}}", pool_size=2)
async def limited(tenant: str) -> None:
    await asyncio.sleep(0.05)


@broker.task(cache_ttl=60)
async def weather(city: str) -> str:
    return city
"""


BROKEN = """
from celery import Celery
from slotline.metrics import Exporter

URL = "{url}"


class Broken(Exporter):
    def count(self, metric, labels, by):
        raise OSError("nobody listens")

    def observe(self, metric, labels, seconds):
        raise OSError("nobody listens")


app = Celery("app", broker=URL, backend=URL, task_cls="celery_ext:Task")
app.conf.update(slotline_redis_url=URL, slotline_metrics=Broken(), result_expires=60, task_default_queue="broken")


@app.task(shared=False, pool="broken", pool_size=1)
def limited(x):
    return x


@app.task(shared=False, cache_ttl=60)
def weather(city):
    return city
"""


def scraped(port: int) -> dict[str, float]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    pairs = (line.rsplit(" ", 1) for line in lines if line.startswith("slotline_"))
    return {name: float(value) for name, value in pairs}


@pytest.mark.filterwarnings("ignore:Call to deprecated setex")  # Celery's own call, in its result backend
def test_a_prefork_worker_shows_what_its_main_process_and_its_children_count(
    module_redis, app_module, celery_worker, tmp_path
):
    port, files = free_port(), tmp_path / "prometheus"
    files.mkdir()
    name = app_module(CELERY.format(url=module_redis.url, port=port))
    celery_worker(name, args=("--concurrency", "2"), env={"PROMETHEUS_MULTIPROC_DIR": str(files)})
    app = importlib.import_module(name)
    for sent in [app.limited.delay(tenant) for tenant in ("acme", "wayne") for _ in range(10)]:
        sent.get(timeout=30)
    for sent in [app.weather.apply_async(("Oslo",), link=[]) for _ in range(3)]:
        sent.get(timeout=30)
    wait_until("all slots are given back", lambda: _of(port, "pool_hold_seconds_count", pool="crm:{tenant}") == 20)
    now = scraped(port)
    assert now['slotline_pool_decisions_total{outcome="admitted",pool="crm:{tenant}"}'] == 20
    parked = now.get('slotline_pool_decisions_total{outcome="parked",pool="crm:{tenant}"}', 0)
    assert now.get('slotline_pool_wait_seconds_count{pool="crm:{tenant}"}', 0) == parked
    assert now['slotline_pool_slots{pool="crm:{tenant}",state="used"}'] == 0
    assert now['slotline_pool_limit{pool="crm:{tenant}"}'] == 4
    assert now['slotline_cache_requests_total{result="miss"}'] == 1
    assert now["slotline_cache_compute_seconds_count"] == 1
    assert not any("acme" in sample or "wayne" in sample or "Oslo" in sample for sample in now)
    go = tmp_path / "go"
    all_sent = [app.held.delay(str(go)) for _ in range(3)]
    wait_until("two are held", lambda: _of(port, "pool_decisions_total", outcome="queued", pool="held") == 2)
    since = time.monotonic()
    time.sleep(0.5)
    waited_at_least = time.monotonic() - since
    go.touch()
    for sent in all_sent:
        sent.get(timeout=30)
    wait_until("they have given their slots back", lambda: _of(port, "pool_hold_seconds_count", pool="held") == 3)
    now = scraped(port)
    assert now['slotline_pool_decisions_total{outcome="admitted",pool="held"}'] == 3
    assert now['slotline_pool_decisions_total{outcome="queued",pool="held"}'] == 2
    assert now['slotline_pool_wait_seconds_count{pool="held"}'] == 2
    assert now['slotline_pool_wait_seconds_sum{pool="held"}'] > 2 * waited_at_least  # the last one, too, all the time
    sent = app.held.delay(str(tmp_path / "never"))
    pool = Pool("held", 1, store=RedisStore(module_redis.url))
    wait_until("it runs", lambda: sent.state == "STARTED")  # what has not begun need not be killed
    (holder,) = pool.sync.info().holders
    pool.sync.evict(holder.token)
    with pytest.raises(SlotLostError):
        sent.get(timeout=30)
    pool.store.sync.close()
    assert _of(port, "worker_kills_total", reason="evicted") == 1
    assert _of(port, "lease_reclaimed_total", reason="evicted") == 1
    app.dropped.delay(3)
    wait_until("it runs", lambda: _of(port, "pool_slots", pool="once", state="used") == 1)
    app.dropped.delay(0)
    wait_until("the other is dropped", lambda: _of(port, "pool_decisions_total", outcome="dropped", pool="once") == 1)
    app.app.close()


@pytest.mark.needs("taskiq>=0.12.2", reason="before that its middleware shows the figures of one process")
async def test_the_processes_of_a_taskiq_worker_are_seen_together(module_redis, app_module, taskiq_worker, tmp_path):
    port, files = free_port(), tmp_path / "prometheus"
    name = app_module(TASKIQ.format(url=module_redis.url, port=port, directory=files))
    taskiq_worker(f"{name}:broker", workers=2)
    app = importlib.import_module(name)
    await app.broker.startup()
    sent = [await app.limited.kiq(tenant) for tenant in ("acme", "wayne") for _ in range(10)]
    for task in sent:
        assert not (await task.wait_result(timeout=30)).is_err
    for _ in range(3):
        assert (await (await app.weather.kiq("Oslo")).wait_result(timeout=30)).return_value == "Oslo"

    async def held() -> bool:
        return await asyncio.to_thread(_of, port, "pool_hold_seconds_count", pool="crm:{tenant}") == 20

    await await_until("all slots are given back", held)
    now = await asyncio.to_thread(scraped, port)
    assert now['slotline_pool_decisions_total{outcome="admitted",pool="crm:{tenant}"}'] == 20
    parked = now['slotline_pool_decisions_total{outcome="parked",pool="crm:{tenant}"}']
    assert now['slotline_pool_wait_seconds_count{pool="crm:{tenant}"}'] == parked > 0
    assert now['slotline_cache_requests_total{result="hit"}'] == 2
    assert now['slotline_cache_requests_total{result="miss"}'] == 1
    assert not any("acme" in sample or "wayne" in sample or "Oslo" in sample for sample in now)
    await app.broker.shutdown()
    await app.store.close()


@pytest.mark.filterwarnings("ignore:Call to deprecated setex")  # Celery's own call, in its result backend
def test_an_exporter_that_fails_is_logged_once_in_each_process_and_fails_no_task(
    module_redis, app_module, celery_worker
):
    name = app_module(BROKEN.format(url=module_redis.url))
    worker = celery_worker(name, args=("--concurrency", "1"))
    app = importlib.import_module(name)
    assert [sent.get(timeout=30) for sent in [app.limited.delay(x) for x in range(10)]] == list(range(10))
    assert [app.weather.apply_async(("Oslo",), link=[]).get(timeout=30) for _ in range(3)] == ["Oslo"] * 3
    assert 1 <= worker.log.count("metrics fail") <= 2
    app.app.close()


def _of(port: int, name: str, **labels: str) -> float | None:
    inside = ",".join(f'{label}="{value}"' for label, value in sorted(labels.items()))
    return scraped(port).get(f"slotline_{name}{{{inside}}}")
