"""What is counted, under which names, and that nobody is disturbed by it."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from billiard.exceptions import SoftTimeLimitExceeded

from slotline import (
    InvalidOptionError,
    Limits,
    MemoryStore,
    Pool,
    PoolFullError,
    PoolTimeoutError,
    configure,
    pooled,
    settings,
)
from slotline.caches import InMemoryCacheAdapter, cached
from slotline.keys import KeyTemplate
from slotline.leases import LeasedExecutorManager
from slotline.metrics import Exporter, _choosing, _telling
from slotline.metrics._names import label_of, name_pools
from slotline.stores import Command
from slotline.stores.keeper import Keeper
from tests.harness.waiting import wait_until
from tests.harness.workers import ROOT


def decisions(figures, pool):
    return {labels[2]: count for labels, count in figures.counts.items() if labels[:2] == ("pool_decisions", pool)}


@pytest.fixture
def store():
    return MemoryStore()


class Broken(Exporter):
    def __init__(self, error):
        self.error, self.called = error, 0

    def count(self, metric, labels, by):
        self.called += 1
        raise self.error

    def observe(self, metric, labels, seconds):
        self.called += 1
        raise self.error


# What is asked for.


def test_nobody_is_told_unless_it_is_asked_for():
    settings.current()
    assert _telling.observer is None


@pytest.mark.parametrize("value", ["statsd", "Prometheus", "", 5, True, object])
def test_an_unknown_exporter_is_refused_by_name(value):
    with pytest.raises(InvalidOptionError, match=r"metrics=.*'prometheus', 'otel', an Exporter"):
        configure(metrics=value)


def test_a_variable_that_names_an_unknown_exporter_is_refused(monkeypatch):
    monkeypatch.setenv("SLOTLINE_METRICS", "graphite")
    settings.reset()
    with pytest.raises(InvalidOptionError, match="metrics='graphite'"):
        Pool("p", 1).sync.acquire()


@pytest.mark.parametrize(("name", "extra"), [("prometheus", "metrics"), ("otel", "otel")])
def test_a_library_that_is_missing_is_said_at_once_and_changes_nothing(monkeypatch, name, extra):
    monkeypatch.setattr("slotline.metrics.exporter.find_spec", lambda _: None)
    monkeypatch.setattr(_choosing, "_made", {})
    configure(prefix="before")
    with pytest.raises(ImportError, match=rf"pip install 'slotline\[{extra}\]'"):
        configure(metrics=name, prefix="after")
    assert (settings.current().prefix, _telling.observer) == ("before", None)


@pytest.mark.parametrize("make", [InMemoryCacheAdapter, lambda: LeasedExecutorManager(max_pools=1)])
def test_the_variable_takes_effect_with_the_first_part_that_could_tell_something(monkeypatch, make):
    monkeypatch.setenv("SLOTLINE_METRICS", "prometheus")
    settings.reset()
    make()
    assert _telling.observer is not None


def test_a_name_means_the_same_exporter_however_often_it_is_configured():
    configure(metrics="prometheus")
    first = _telling.observer
    configure(metrics="prometheus", heartbeat_lease=15)
    assert _telling.observer is first
    configure()
    assert _telling.observer is None


@pytest.mark.parametrize("value", [5, [5], ["a{"], "a{b"])
def test_names_of_pools_that_are_none_are_refused(value):
    with pytest.raises(InvalidOptionError, match="metrics_pools="):
        configure(metrics_pools=value)


def test_names_of_pools_come_from_a_variable_with_commas(monkeypatch):
    monkeypatch.setenv("SLOTLINE_METRICS_POOLS", "from-env, env:{tenant}")
    settings.reset()
    assert settings.current().metrics_pools == ("from-env", "env:{tenant}")
    assert (label_of("from-env"), label_of("env:acme")) == ("from-env", "env:{tenant}")


# Metrics that are turned off in a running process.


def test_who_is_told_is_looked_up_once_wherever_something_is_told():
    sources = [path for part in ("shared", "taskiq_ext", "celery_ext") for path in (ROOT / part).rglob("*.py")]
    telling = [path for path in sources if "_telling.observer" in path.read_text(encoding="utf-8")]
    assert len(telling) > 10
    assert [path for path in telling if "_telling.observer." in path.read_text(encoding="utf-8")] == []


def test_metrics_that_are_turned_off_while_renewals_are_told_leave_the_heartbeat_alone():
    told, renewed = [], []

    class TurnedOff(Exporter):
        def count(self, metric, labels, by):
            told.append(metric.name)
            configure()

        def observe(self, metric, labels, seconds):
            self.count(metric, labels, 1)

    def execute_many(commands):
        renewed.extend(commands)
        return [300] * len(commands)

    configure(metrics=TurnedOff())
    keeper, now = Keeper(execute_many), time.monotonic()
    for token in ("one", "other"):
        keeper.keep(token, Command("pool_renew", (token,), ()), 0.3, now, lambda: None)
    wait_until("metrics are off", lambda: settings.current().metrics is None)
    before = len(renewed)
    wait_until("both are renewed again", lambda: len(renewed) >= before + 2)
    keeper.close()
    assert "lease_renewals" in told


# What pools are called.


def test_a_pool_is_called_by_what_declares_it_and_never_by_its_key(store, figures):
    configure(metrics=figures, metrics_pools=["named", "names:{tenant}"])

    @pooled("declared:{tenant}", 5, store=store)
    def run(tenant):
        return tenant

    for key in ("named", "names:acme", "secret:42"):
        with Pool(key, 1, store=store):
            pass
    run("acme")
    run("wayne")
    told = {labels[1] for labels in figures.counts if labels[0] == "pool_decisions"}
    assert told == {"named", "names:{tenant}", "declared:{tenant}", "other"}
    assert decisions(figures, "declared:{tenant}") == {"admitted": 2}
    assert not any("acme" in part or "42" in part for labels in figures.counts for part in labels)


def test_of_several_templates_the_one_counts_that_says_most():
    name_pools(KeyTemplate(text) for text in ("of:{a}", "of:{a}:in:{b}", "of:{{x}}"))
    assert label_of("of:1") == "of:{a}"
    assert label_of("of:1:in:2") == "of:{a}:in:{b}"
    assert label_of("of:{x}") == "of:{{x}}"
    assert label_of("of") == "other"


def test_the_pools_of_caches_are_not_counted(store, figures):
    with Pool("cache-refresh:key", 1, store=store):
        pass
    assert not figures.counts


# Pools.


def test_slots_taken_and_refused_and_how_long_they_were_held(store, figures):
    configure(metrics=figures, metrics_pools=["p"])
    pool = Pool("p", 1, store=store)
    with pool:
        with pytest.raises(PoolFullError):
            pool.sync.acquire()
        time.sleep(0.02)
    assert decisions(figures, "p") == {"admitted": 1, "refused": 1}
    (held,) = figures.seconds["pool_hold", "p"]
    assert held > 0.01
    assert not figures.seconds["pool_wait", "p"]


def test_a_slot_that_is_released_twice_was_held_once(store, figures):
    pool = Pool("unnamed", 1, store=store)
    slot = pool.sync.acquire()
    pool.sync.release(slot)
    pool.sync.release(slot)
    assert len(figures.seconds["pool_hold", "other"]) == 1


def test_who_waits_in_line_is_counted_with_the_time_until_the_slot(store, figures):
    pool = Pool("unnamed", 1, store=store)
    slot = pool.sync.acquire()
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(pool.sync.acquire, timeout=10)
        wait_until("somebody waits", lambda: pool.sync.info().waiting)
        wait_until("it is counted", lambda: decisions(figures, "other").get("queued"))
        time.sleep(0.02)
        pool.sync.release(slot)
        pool.sync.release(waiting.result(10))
    assert decisions(figures, "other") == {"admitted": 2, "queued": 1}
    (waited,) = figures.seconds["pool_wait", "other"]
    assert waited > 0.01


async def test_who_waits_in_vain_is_counted(store, figures):
    pool = Pool("unnamed", 1, store=store)
    async with pool:
        with pytest.raises(PoolTimeoutError):
            await pool.acquire(timeout=0.01)
    assert decisions(figures, "other") == {"admitted": 1, "queued": 1, "timed_out": 1}
    assert not figures.seconds["pool_wait", "other"]


def test_of_several_pools_each_is_counted_and_a_refusal_at_the_one_that_is_full(store, figures):
    configure(metrics=figures, metrics_pools=["big", "small"])
    limits = Limits(Pool("big", 5, store=store), Pool("small", 1, store=store))
    with limits, pytest.raises(PoolFullError):
        limits.sync.acquire()
    assert decisions(figures, "big") == {"admitted": 1}
    assert decisions(figures, "small") == {"admitted": 1, "refused": 1}
    assert len(figures.seconds["pool_hold", "big"]) == len(figures.seconds["pool_hold", "small"]) == 1


# Caches.


def requests(figures):
    return {labels[1]: count for labels, count in figures.counts.items() if labels[0] == "cache_requests"}


@pytest.mark.parametrize("made", ["before", "after"])
async def test_what_callers_of_a_cache_get_whenever_the_cache_was_made(figures, made):
    if made == "before":
        configure()
    cache = InMemoryCacheAdapter(grace_seconds=60)
    configure(metrics=figures)
    gate = asyncio.Event()

    async def create():
        await gate.wait()
        return 1

    first = asyncio.create_task(cache.get_or_create("k", create))
    second = asyncio.create_task(cache.get_or_create("k", create))
    await asyncio.sleep(0)
    gate.set()
    assert await asyncio.gather(first, second) == [1, 1]
    assert await cache.get_or_create("k", create) == 1
    await cache.set("aged", 1, 0.001)
    await asyncio.sleep(0.01)
    assert await cache.lookup("aged", stale=True)
    assert await cache.get("nothing") is None
    assert requests(figures) == {"miss": 2, "coalesced": 1, "hit": 1, "stale": 1}
    assert len(figures.seconds["cache_compute",]) == 1
    assert {name: cache.get_stats()[name] for name in ("hits", "misses", "stale", "coalesced")} == {
        "hits": 2, "misses": 2, "stale": 1, "coalesced": 1,
    }  # fmt: skip
    configure()
    assert await cache.get_or_create("k", create) == 1
    assert requests(figures)["hit"] == 1


def test_a_creator_that_fails_is_timed_as_well(figures):
    def fail():
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        InMemoryCacheAdapter().sync.get_or_create("k", fail)
    assert len(figures.seconds["cache_compute",]) == 1


# Leases.


def test_leases_that_are_revoked_are_counted_by_reason(figures):
    with LeasedExecutorManager(max_pools=1) as manager, manager.sync.acquire(owner="me") as lease:
        lease.sync.revoke()
    assert figures.counts["lease_reclaimed", "revoked"] == 1


# Whoever fails in it.


def test_an_exporter_that_fails_is_logged_once_and_disturbs_nobody(store, caplog):
    broken = Broken(ValueError("down"))
    configure(metrics=broken)
    pool = Pool("p", 1, store=store)
    with caplog.at_level(logging.ERROR, logger="slotline.metrics"):
        for _ in range(3):
            with pool, pytest.raises(PoolFullError):
                pool.sync.acquire()
        cache = InMemoryCacheAdapter()
        assert [cache.sync.get_or_create("k", lambda: 7) for _ in range(3)] == [7] * 3
    assert broken.called > 9
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    assert "down" in caplog.text


def test_a_soft_time_limit_that_comes_while_figures_are_told_is_the_tasks(store):
    configure(metrics=Broken(SoftTimeLimitExceeded()))
    pool = Pool("p", 1, store=store)
    with pytest.raises(SoftTimeLimitExceeded):
        pool.sync.acquire()


def test_one_thread_at_a_time_tells_an_exporter(store):
    inside, most = [], []

    class Watching(Exporter):
        def count(self, metric, labels, by):
            inside.append(1)
            most.append(len(inside))
            time.sleep(0.001)
            inside.pop()

        def observe(self, metric, labels, seconds):
            self.count(metric, labels, 1)

    configure(metrics=Watching())
    pool = Pool("p", 100, store=store)

    def hold():
        for _ in range(5):
            with pool:
                pass

    threads = [threading.Thread(target=hold) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (max(most), len(most)) == (1, 40)


def test_a_decorated_function_counts_its_cache(figures):
    @cached(60, cache=InMemoryCacheAdapter())
    def double(x):
        return 2 * x

    assert [double(2), double(2), double(3)] == [4, 4, 6]
    assert requests(figures) == {"miss": 2, "hit": 1}
