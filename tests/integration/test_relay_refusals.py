"""A slot that rests between two runs is nobody's reason: not for a refusal, and not for the end of another's run."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
from celery import Celery
from celery.worker import state

import celery_ext
from slotline import Limits, Pool, PoolFullError, RedisStore, Slot, configure
from slotline.pools import Place, Relay
from slotline.pools._passing import PASSES
from slotline.pools.relay import LOOKS
from slotline.steps import Sleep
from tests.harness.fixtures_relays import hurry
from tests.harness.redis_server import RedisServer
from tests.harness.waiting import wait_until
from tests.unit.test_celery_gate import Request, Worker, lambda_like


def rests(relay: Relay, pool: Pool, *, beside: Callable[[], None] = lambda: None) -> Slot:
    """Have the slot of a run rest that has just ended; return it. ``beside`` is called before the run ends."""
    while True:
        pool.sync.release(pool.sync.acquire(timeout=None))  # a pool's very first slot does not pass on
        slot = pool.sync.acquire(timeout=None)
        beside()
        hurry(relay)
        if relay.keep(pool, slot):
            return slot
        pool.sync.release(slot)  # this machine was too slow


def test_a_slot_is_sent_back_well_before_nobody_waits_for_that_any_more() -> None:
    assert PASSES + 2 * LOOKS < 0.4, "RESTING_MS of lib_pool.lua"


@pytest.mark.parametrize("several", [False, True])
def test_who_does_not_wait_is_refused_for_no_slot_that_only_rests(
    relay: Relay, store: RedisStore, several: bool
) -> None:
    pool = Pool("p", 2, store=store)
    limit: Any = Limits(pool, Pool("q", 1, store=store)) if several else pool
    others: list[Slot] = []

    def another_runs() -> None:
        while others:
            pool.sync.release(others.pop())
        others.append(pool.sync.acquire(timeout=None))

    rests(relay, pool, beside=another_runs)
    slot = limit.sync.acquire()
    with pytest.raises(PoolFullError):
        limit.sync.acquire()
    limit.sync.release(slot)
    pool.sync.release(others.pop())


@pytest.mark.parametrize(
    "options",
    [
        {"pool_on_full": "wait", "pool_timeout": 0},
        {"pool_on_full": "fail"},
        {"pool_on_full": "cancel_oldest", "pool_timeout": 60},
    ],
    ids=repr,
)
def test_a_celery_task_that_does_not_wait_is_refused_for_no_slot_that_only_rests(
    relay: Relay, store: RedisStore, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    app = Celery("unit", broker="memory://", backend="cache+memory://", set_as_current=False)
    app.Task, app.conf.slotline_store = celery_ext.Task, store
    limit = {"pool": "p", "pool_size": 2, **options}
    task = app.task(lambda_like, name="unit.task", shared=False, **limit)
    worker, pool = Worker(app, 2), Pool("p", 2, store=store)
    others: list[Slot] = []

    def another_runs() -> None:
        while others:
            pool.sync.release(others.pop())
        others.append(pool.sync.acquire(timeout=None))

    rests(relay, pool, beside=another_runs)
    with monkeypatch.context() as awake:
        awake.setattr(Sleep, "blocking", lambda _: pytest.fail("the worker has other things to do meanwhile"))
        request = worker.receive(Request(task))
        free = worker.receive(Request(app.task(lambda_like, name="unit.free", shared=False)))
        assert (request.error, worker.ran, worker.consumer.qos.held) == (None, [free], 1)
    worker.finish(free)

    def runs() -> bool:
        worker.consumer.timer.fire()
        return worker.ran == [free, request]

    wait_until("it runs when the slot is back", runs)
    assert (request.error, worker.consumer.qos.held, others[0].evicted) == (None, 0, False)
    worker.finish(request)
    pool.sync.release(others.pop())
    worker.gate.close()
    state.reset_state()
    app.close()


def test_where_somebody_may_be_refused_no_slot_passes_on_and_a_refusal_is_one_command(
    relay: Relay, store: RedisStore, redis_server: RedisServer
) -> None:
    pool = Pool("p", 2, store=store)
    rests(relay, pool)
    pool.sync.release(pool.sync.acquire())
    for _ in range(20):
        slot = pool.sync.acquire(timeout=None)
        hurry(relay)
        assert not relay.keep(pool, slot)
        pool.sync.release(slot)
    slots = [pool.sync.acquire() for _ in range(2)]

    def refused_at_once() -> bool:
        with redis_server.counting() as counted, pytest.raises(PoolFullError):
            pool.sync.acquire()
        return counted["evalsha"] == 1

    wait_until("nothing can rest any more", refused_at_once)
    for slot in slots:
        pool.sync.release(slot)


def test_who_does_not_wait_is_noted_although_the_slot_is_plain(store: RedisStore, redis_client: Any) -> None:
    pool = Pool("p", 2, store=store)
    pool.sync.release(pool.sync.acquire())
    for timeout, noted in ((None, False), (0, True)):
        redis_client.hdel("slotline:{pool:p}:state", "impatient")
        pool.sync.release(pool.sync.acquire(timeout=timeout))
        assert redis_client.hexists("slotline:{pool:p}:state", "impatient") is noted


def test_a_pool_that_is_new_refuses_at_once(store: RedisStore, redis_server: RedisServer) -> None:
    pool = Pool("p", 2, store=store)
    slots = [pool.sync.acquire() for _ in range(2)]
    with redis_server.counting() as counted, pytest.raises(PoolFullError):
        pool.sync.acquire()
    assert counted["evalsha"] == 1
    for slot in slots:
        pool.sync.release(slot)


def test_nobody_is_told_to_end_for_one_who_waits_for_a_slot_that_only_rests(relay: Relay, store: RedisStore) -> None:
    told: list[Slot] = []
    pool = Pool("p", 4, store=store, on_lost=told.append)
    longest, others = pool.sync.acquire(timeout=None), list[Slot]()

    def others_run() -> None:
        while others:
            pool.sync.release(others.pop())
        others.extend(pool.sync.acquire(timeout=None) for _ in range(2))

    rests(relay, pool, beside=others_run)
    slot = pool.sync.acquire(timeout=30, evict=True)
    assert (told, slot.lost) == ([], False)
    place = Place(pool)
    assert place.sync.enter() is None
    assert pool.sync.evict() == longest.token, "this one waits for a run"
    wait_until("its holder is told", lambda: told == [longest])
    place.sync.leave()
    for one in (longest, slot, *others):
        pool.sync.release(one)


def test_who_was_to_end_and_has_ended_is_not_mistaken_for_the_one_after(
    relay: Relay, store: RedisStore, redis_client: Any
) -> None:
    configure(heartbeat_lease=1.5)
    told: list[Slot] = []
    pool = Pool("p", 10, store=store, on_lost=told.append)
    before = rests(relay, pool)
    slot = relay.take(pool, "after")
    assert slot is not None
    assert slot.token == before.token
    elsewhere = Pool("p", 10, store=store)
    assert elsewhere.sync.evict(before.token) == before.token, "the store does not know yet that it has ended"
    wait_until("the store knows", lambda: [one.owner for one in pool.sync.info().holders] == ["after"])
    wait_until("it is to end no more", lambda: not _to_end(redis_client))
    renewed_at = time.monotonic() + 1.0
    wait_until("it was renewed again", lambda: time.monotonic() > renewed_at)
    assert (told, slot.evicted, slot.lost) == ([], False, False)
    assert elsewhere.sync.evict(before.token, fence=before.fence) is None
    assert elsewhere.sync.evict(slot.token, fence=slot.fence) == slot.token
    wait_until("it is told", lambda: told == [slot])
    pool.sync.release(slot)


def _to_end(client: Any) -> list[bytes]:
    return [name for name in client.hkeys("slotline:{pool:p}:state") if name.startswith(b"e:")]
