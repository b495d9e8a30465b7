"""Figures of pools on Redis, of worker processes, and what Prometheus sees of all of it."""

from __future__ import annotations

import gc
import math
import os
import subprocess
import sys
import threading
import time
import weakref

import pytest
from billiard.exceptions import TimeLimitExceeded
from prometheus_client import CollectorRegistry, generate_latest

from slotline import Limits, Pool, RedisStore, Slot, configure
from slotline.leases import LeasedExecutorManager
from slotline.metrics import Exporter, PoolCollector, PrometheusMetrics, _sampling, _telling, sample_pools
from slotline.pools import Parked, Relay, Room
from slotline.stores import Command
from slotline.workers import BilliardExecutor
from tests.harness.fixtures_relays import hurry
from tests.harness.proxy import TcpProxy
from tests.harness.redis_server import RedisServer
from tests.harness.waiting import await_until, wait_until
from tests.harness.workers import ROOT
from tests.integration import billiard_tasks


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


def seen(registry: CollectorRegistry) -> dict[str, float]:
    """Return the samples as Prometheus reads them: ``{'slotline_pool_limit{pool="p"}': 3.0}``."""
    lines = generate_latest(registry).decode().splitlines()
    pairs = (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    return {name: float(value) for name, value in pairs}


async def take(room: Room) -> object:
    found: list[object] = []

    async def look() -> bool:
        taken = await room.take()
        if taken is not None:
            found.append(taken)
        return bool(found)

    await await_until("a message can be taken", look)
    return found[0]


async def test_a_parked_message_has_waited_from_its_parking_to_its_slot(figures, store, room):
    configure(metrics=figures, metrics_pools=["parked"])
    pool = Pool("parked", 1, store=store)
    slot = await pool.acquire()
    assert isinstance(await room.park(pool, b"message", lane="q"), Parked)
    began = time.monotonic()
    await room.take()  # listens
    time.sleep(0.05)
    taken = await room.pass_on(pool, slot)
    waited_at_most = time.monotonic() - began + 1
    assert taken is not None
    await taken.pool.release(taken.slot)
    await taken.settle()
    assert figures.counts["pool_decisions", "parked", "parked"] == 1
    assert figures.counts["pool_decisions", "parked", "admitted"] == 2
    (waited,) = figures.seconds["pool_wait", "parked"]
    assert 0.04 < waited < waited_at_most
    assert len(figures.seconds["pool_hold", "parked"]) == 2


async def test_a_message_for_several_pools_has_waited_at_the_one_that_was_full(figures, store, room):
    configure(metrics=figures, metrics_pools=["full-one", "open-one"])
    full, free = Pool("full-one", 1, store=store), Pool("open-one", 5, store=store)
    slot = await full.acquire()
    assert isinstance(await room.park(Limits(full, free), b"message", lane="q"), Parked)
    await full.release(slot)
    taken = await take(room)
    await taken.pool.release(taken.slot)
    await taken.settle()
    assert figures.counts["pool_decisions", "full-one", "parked"] == 1
    assert len(figures.seconds["pool_wait", "full-one"]) == 1
    assert not figures.seconds["pool_wait", "open-one"]
    assert len(figures.seconds["pool_hold", "open-one"]) == 1


def test_each_run_that_a_slot_passes_to_is_admitted_and_holds_it(figures, store, relay: Relay):
    configure(metrics=figures, metrics_pools=["passing"])
    pool = Pool("passing", 10, store=store)
    runs = 0
    for _ in range(100):  # on a busy machine a run may be too long to pass its slot on
        hurry(relay)
        slot, runs = pool.sync.acquire(timeout=None), runs + 1
        if relay.keep(pool, slot):
            break
        pool.sync.release(slot)
    passed = relay.take(pool, "next")
    assert passed is not None
    pool.sync.release(passed)
    assert figures.counts["pool_decisions", "passing", "admitted"] == runs + 1
    assert len(figures.seconds["pool_hold", "passing"]) == runs + 1


def test_renewals_and_what_the_store_has_forgotten_are_counted(figures, store):
    configure(metrics=figures, metrics_pools=["forgotten"], heartbeat_lease=0.6)
    slot = Pool("forgotten", 1, store=store).sync.acquire()
    wait_until("it is renewed", lambda: figures.counts["lease_renewals", "renewed"])
    store.sync.execute(Command("FLUSHALL", ()))
    wait_until("it is lost", lambda: slot.lost)
    wait_until("it is counted", lambda: figures.counts["lease_reclaimed", "gone"])
    assert figures.counts["lease_renewals", "gone"] == 1
    assert len(figures.seconds["pool_hold", "forgotten"]) == 1


def test_what_cannot_be_renewed_and_what_is_evicted_is_counted(figures, redis_proxy: TcpProxy):
    configure(metrics=figures, heartbeat_lease=0.6)
    store = RedisStore(redis_proxy.redis_url, timeout=0.2, retries=0)
    evicted = Pool("evicted", 1, store=store)
    held = evicted.sync.acquire()
    evicted.sync.evict(held.token)
    wait_until("it is evicted", lambda: held.evicted)
    evicted.sync.release(held)
    slot = Pool("cut-off", 1, store=store).sync.acquire()
    redis_proxy.refuse()
    redis_proxy.cut()
    wait_until("it is lost", lambda: slot.lost)
    wait_until("it is counted", lambda: figures.counts["lease_reclaimed", "expired"])
    redis_proxy.resume()
    store.sync.close()
    assert figures.counts["lease_reclaimed", "evicted"] == 1
    assert figures.counts["lease_renewals", "failed"] >= 1


def test_slots_that_come_to_the_end_of_their_slot_exp_are_counted_as_that_and_are_no_loss(figures, store):
    configure(metrics=figures, heartbeat_lease=9)
    losses: list[Slot] = []
    pool = Pool("capped", 20, slot_exp=0.3, store=store, on_lost=losses.append)
    slots = [pool.sync.acquire() for _ in range(20)]
    wait_until("all are counted", lambda: sum(_reclaimed(figures).values()) == 20)
    assert all(slot.lost for slot in slots)
    assert (_reclaimed(figures), losses) == ({"slot_exp": 20}, [])
    assert figures.counts["lease_renewals", "renewed"] == 0, "nothing prolongs them"


def _reclaimed(figures) -> dict[str, int]:
    return {labels[1]: count for labels, count in figures.counts.items() if labels[0] == "lease_reclaimed"}


def test_killed_workers_are_counted_by_reason(figures):
    with BilliardExecutor(1) as executor:
        limited = executor.options(timeout=0.1).submit(billiard_tasks.sleep, 30)
        with pytest.raises(TimeLimitExceeded):
            limited.result(30)
    assert figures.counts["worker_kills", "time_limit"] == 1
    for backend in ("billiard", "process"):
        with (
            LeasedExecutorManager(backend=backend, max_pools=1, workers_per_pool=1) as manager,
            manager.sync.acquire(owner="o") as lease,
        ):
            work = lease.executor.submit(billiard_tasks.sleep, 30)
            wait_until("it runs", work.running)
            lease.sync.revoke()
    assert figures.counts["worker_kills", "revoked"] == 2
    assert figures.counts["lease_reclaimed", "revoked"] == 2


# Prometheus.


def test_prometheus_sees_what_happens_and_what_the_store_says(registry, store):
    configure(metrics=PrometheusMetrics(registry), metrics_pools=["crm:{tenant}"])
    acme, wayne = Pool("crm:acme", 2, store=store), Pool("crm:wayne", 3, store=store)
    with acme, wayne:
        text = generate_latest(registry).decode()
        now = seen(registry)
    assert now['slotline_pool_slots{pool="crm:{tenant}",state="used"}'] == 2
    assert now['slotline_pool_slots{pool="crm:{tenant}",state="waiting"}'] == 0
    assert now['slotline_pool_limit{pool="crm:{tenant}"}'] == 5
    later = seen(registry)
    assert later['slotline_pool_decisions_total{outcome="admitted",pool="crm:{tenant}"}'] == 2
    assert later['slotline_pool_hold_seconds_count{pool="crm:{tenant}"}'] == 2
    assert "# TYPE slotline_pool_hold_seconds histogram" in text
    assert "acme" not in text


def test_a_look_is_one_batch_and_two_at_the_same_time_are_one(registry, store, redis_server: RedisServer, monkeypatch):
    configure(metrics=PrometheusMetrics(registry))
    for number in range(20):
        with Pool(f"many-{number}", 1, store=store):
            pass
    seen(registry)  # and the server knows the script
    monkeypatch.setattr(_sampling, "_SAME", 60)
    _telling.observer.pools._told_at = -math.inf
    with redis_server.counting() as counted:
        seen(registry)
        seen(registry)
    assert counted["evalsha"] == 20


def test_a_store_that_is_away_hides_no_other(registry, store, redis_proxy: TcpProxy, monkeypatch):
    monkeypatch.setattr(_sampling, "PATIENCE", 0.5)
    away = RedisStore(redis_proxy.redis_url, timeout=2, retries=0)
    configure(metrics=PrometheusMetrics(registry), metrics_pools=["away", "there"])
    with Pool("away", 1, store=away), Pool("there", 1, store=store):
        redis_proxy.stall()
        now = seen(registry)
        assert 'slotline_pool_limit{pool="away"}' not in now
        assert now['slotline_pool_limit{pool="there"}'] == 1
        redis_proxy.resume()
    away.sync.close()


def test_who_looks_while_another_does_sees_as_much(registry, store, monkeypatch):
    configure(metrics=PrometheusMetrics(registry), metrics_pools=["watched"])
    asking, ask, looks = threading.Event(), _sampling.infos_of, []

    def slowly(*args):
        asking.set()
        time.sleep(0.3)
        return ask(*args)

    monkeypatch.setattr(_sampling, "infos_of", slowly)
    with Pool("watched", 2, store=store):
        first = threading.Thread(target=lambda: looks.append(sample_pools()))
        first.start()
        assert asking.wait(30)
        looks.append(sample_pools())
        first.join()
    assert [[figures.pool for figures in look] for look in looks] == [["watched"], ["watched"]]


def test_a_store_that_nobody_has_any_more_is_neither_asked_nor_kept(registry, redis_url, monkeypatch):
    configure(metrics=PrometheusMetrics(registry))
    monkeypatch.setattr(_sampling, "_SAME", 0)

    def use() -> weakref.ref[RedisStore]:
        store = RedisStore(redis_url)
        with Pool("gone", 1, store=store):
            assert 'slotline_pool_limit{pool="other"}' in seen(registry)
        store.sync.close()
        return weakref.ref(store)

    gone = use()
    gc.collect()
    assert gone() is None
    assert 'slotline_pool_limit{pool="other"}' not in seen(registry)


def test_a_store_that_is_away_neither_hangs_a_look_nor_collects_threads(registry, redis_proxy: TcpProxy, monkeypatch):
    monkeypatch.setattr(_sampling, "PATIENCE", 0.2)
    store = RedisStore(redis_proxy.redis_url, timeout=2, retries=0)
    configure(metrics=PrometheusMetrics(registry), metrics_pools=["silent"])
    with Pool("silent", 1, store=store):
        pass
    redis_proxy.stall()
    for _ in range(3):
        now = seen(registry)
        assert not any(name.startswith("slotline_pool_slots") for name in now)
        assert now['slotline_pool_decisions_total{outcome="admitted",pool="silent"}'] == 1
    looking = [thread for thread in threading.enumerate() if thread.name == "slotline-metrics"]
    assert len(looking) <= 1
    redis_proxy.resume()
    wait_until("it is seen again", lambda: sample_pools() and seen(registry)['slotline_pool_limit{pool="silent"}'])
    for thread in looking:
        thread.join()
    store.sync.close()


def test_a_registry_of_ones_own_shows_the_pools_beside_anything_else(store):
    registry = CollectorRegistry()
    registry.register(PoolCollector())
    assert seen(registry) == {}
    configure(metrics=PrometheusMetrics(CollectorRegistry()), metrics_pools=["beside"])
    with Pool("beside", 4, store=store):
        assert seen(registry)['slotline_pool_limit{pool="beside"}'] == 4


SEVERAL = """
import os, sys
import slotline
from slotline.caches import InMemoryCacheAdapter

slotline.configure(metrics="prometheus", metrics_pools=["several"])
pool = slotline.Pool("several", 9, store=slotline.MemoryStore())
cache = InMemoryCacheAdapter()
with pool:
    pass
children = []
for number in range(3):
    child = os.fork()
    if child == 0:
        with pool:
            cache.sync.get_or_create("k", lambda: 1)
            cache.sync.get_or_create("k", lambda: 1)
        os._exit(0)
    children.append(child)
for child in children:
    assert os.waitpid(child, 0)[1] == 0
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector
registry = CollectorRegistry()
MultiProcessCollector(registry)
print(generate_latest(registry).decode())
"""


def test_processes_that_share_a_directory_are_seen_as_one(tmp_path):
    env = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path), "PYTHONPATH": str(ROOT / "shared")}
    done = subprocess.run(
        [sys.executable, "-c", SEVERAL], env=env, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert 'slotline_pool_decisions_total{outcome="admitted",pool="several"} 4.0' in done.stdout
    assert 'slotline_pool_hold_seconds_count{pool="several"} 4.0' in done.stdout
    assert 'slotline_cache_requests_total{result="hit"} 3.0' in done.stdout
    assert 'slotline_cache_requests_total{result="miss"} 3.0' in done.stdout


def test_a_child_that_is_forked_while_figures_are_told_can_tell_its_own(store):
    inside, go_on = threading.Event(), threading.Event()
    lock = threading.Lock()

    class Slow(Exporter):
        def count(self, metric, labels, by):
            with lock:
                if labels[-1] == "admitted" and not inside.is_set():
                    inside.set()
                    go_on.wait(10)

        def observe(self, metric, labels, seconds):
            self.count(metric, ("",), 1)

    configure(metrics=Slow())
    pool = Pool("p", 5, store=store)
    slots = []
    telling = threading.Thread(target=lambda: slots.append(pool.sync.acquire()))
    telling.start()
    assert inside.wait(10)
    threading.Timer(0.1, go_on.set).start()  # the fork waits for the thread that has the library's lock
    child = os.fork()
    if child == 0:
        from slotline.metrics import _telling

        _telling.observer.killed("stuck")
        os._exit(0)
    assert go_on.is_set()
    wait_until("the child ends", lambda: os.waitpid(child, os.WNOHANG) != (0, 0), timeout=20)
    telling.join()
    pool.sync.release(slots[0])
