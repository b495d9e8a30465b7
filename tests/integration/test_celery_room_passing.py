"""A run from the room that ends makes way for the next one at once, in every kind of pool."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from kombu.message import Message

from celery_ext.mailbox import AnywhereMailbox, HubMailbox
from celery_ext.parcel import pack
from celery_ext.parking import Parking
from celery_ext.processes import Processes
from celery_ext.store_watch import StoreWatch
from slotline import Pool, RedisStore
from slotline.pools import Parked, Room
from slotline.stores._scripts import load
from tests.harness.redis_server import RedisServer
from tests.harness.waiting import wait_until
from tests.integration.celery_apps import Deployment

RUNS = 6
SCRIPTS = ("room_pass", "room_take", "pool_release")


@pytest.fixture(scope="module", params=["prefork", "threads", "solo", "gevent"])
def deployment(
    request: pytest.FixtureRequest, module_redis: RedisServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Deployment]:
    made = Deployment(tmp_path_factory.mktemp(request.param), module_redis, acks_late=request.param == "prefork")
    with made.worker(request.param):
        yield made
    made.close()
    module_redis.client().flushall()


def commands_of_turns(commands: Iterable[Any]) -> Counter[str]:
    shas = {load(name).sha.decode(): name for name in SCRIPTS}
    return Counter(shas.get(command.line.split()[1], "another") for command in commands if command.name == "evalsha")


def test_a_slot_passes_from_run_to_run_with_one_command(deployment: Deployment, module_redis: RedisServer) -> None:
    store = RedisStore(module_redis.url)
    pool = Pool("one:turns", 1, slot_exp=None, store=store)
    held = pool.sync.acquire()
    sent = [deployment.module.one.delay("turns", seconds=0.01) for _ in range(RUNS)]
    wait_until("all are parked", lambda: pool.sync.info().waiting == RUNS, 20)
    with module_redis.recording() as commands:
        pool.sync.release(held)
        for result in sent:
            result.get(timeout=30)
        wait_until("nothing is left", lambda: pool.sync.size() == 0, 10)
    called = commands_of_turns(commands)
    assert (called["room_pass"], called["pool_release"]) == (RUNS, 1)
    assert called["room_take"] <= 2, "the first, and one more that was under way"
    assert deployment.peak("one-turns") == 1
    store.sync.close()


def test_a_run_that_had_its_slot_at_once_hands_it_to_what_was_parked_meanwhile(
    request: pytest.FixtureRequest, deployment: Deployment, module_redis: RedisServer
) -> None:
    meets = request.node.callspec.params["deployment"] != "solo"  # which takes the second when the first has ended
    store = RedisStore(module_redis.url)
    pool = Pool("one:meanwhile", 1, slot_exp=None, store=store)
    with module_redis.recording() as commands:
        sent = [deployment.module.one.delay("meanwhile", seconds=seconds) for seconds in (0.5, 0.01)]
        for result in sent:
            result.get(timeout=30)
        wait_until("nothing is left", lambda: pool.sync.size() == 0, 10)
    called = commands_of_turns(commands)
    assert (called["room_pass"], called["pool_release"]) == ((2, 0) if meets else (0, 2))
    store.sync.close()


def test_a_green_worker_whose_only_greenlet_ends_a_run_takes_the_next(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    made = Deployment(tmp_path, redis_server)
    with made.worker("gevent", concurrency=1):
        with made.slot("one:alone"):
            sent = [made.module.one.delay("alone", seconds=0.01) for _ in range(3)]
            wait_until("all are parked", lambda: made.parked("one:alone") == 3, 20)
        for result in sent:
            result.get(timeout=20)
    made.close()


@pytest.fixture
def parking(store: RedisStore, room: Room) -> Parking:
    """A worker's part of the room, with a message to be taken and a consumer that is about to lose its connection."""
    task_consumer = SimpleNamespace(on_message=lambda message: None, accept={"json"})
    consumer = SimpleNamespace(
        controller=None,
        add_task_queue=None,
        cancel_task_queue=None,
        pool=SimpleNamespace(limit=4),
        on_task_request=None,
        task_consumer=task_consumer,
        hub=None,
        timer=SimpleNamespace(call_after=print),
        task_buckets={},
    )
    parking = Parking(
        consumer, AnywhereMailbox(), Processes(SimpleNamespace(semaphore=None), consumer),
        StoreWatch(store, lambda: None), "name", lambda slot: None,
    )  # fmt: skip
    parking._room = room
    return parking


@pytest.mark.parametrize("goes", ["before the question", "before the answer"])
def test_what_comes_when_the_connection_has_gone_is_put_back(parking: Parking, goes: str) -> None:
    room, pool = parking._room, Pool("p", 1, slot_exp=None, store=parking._watch.store)
    held = pool.sync.acquire()
    assert room is not None
    assert room.sync.park(pool, b"message", lane="q") == Parked(0)
    if goes == "before the question":
        parking.let_go()
    else:
        parking._mailbox.post = lambda errand, *args: (parking.let_go(), errand(*args))  # type: ignore[method-assign]
    parking.pass_on(pool, held)
    assert ((info := pool.sync.info()).used, info.waiting) == (0, 1)


def test_a_slot_that_ends_while_the_store_is_away_is_given_back_when_it_is_back(parking: Parking) -> None:
    pool = Pool("p", 1, slot_exp=None, store=parking._watch.store)
    held = pool.sync.acquire()
    parking._watch._away = True
    parking.pass_on(pool, held)
    assert pool.sync.size() == 1
    looking = threading.Thread(target=parking._watch._look)
    looking.start()
    looking.join(20)
    assert pool.sync.size() == 0


@pytest.mark.parametrize(
    ("headers", "buckets", "where"),
    [
        ({"task": "plain"}, {"limited": object()}, "here"),
        ({"task": "late", "eta": "2026-01-01T00:00:00"}, {}, "loop"),
        ({"task": "limited"}, {"limited": object()}, "loop"),
        ({}, {}, "loop"),
    ],
    ids=["plain", "a time", "a rate of Celery's", "the first protocol"],
)
def test_what_needs_no_timer_goes_on_in_the_thread_of_the_run_that_has_ended(
    parking: Parking, headers: dict[str, str], buckets: dict[str, object], where: str
) -> None:
    home, handled = threading.get_ident(), []
    parking._mailbox = HubMailbox()
    parking._consumer.task_buckets = buckets
    parking._consumer.task_consumer.on_message = lambda message: handled.append(
        (threading.get_ident() == home, parking.hands_over(message), message.headers)
    )
    pool, room = Pool("p", 1, slot_exp=None, store=parking._watch.store), parking._room
    assert room is not None
    held = pool.sync.acquire()
    room.sync.park(pool, pack(Message(body="[]", headers=headers)), lane="q")
    thread = threading.Thread(target=parking.pass_on, args=(pool, held))
    thread.start()
    thread.join()
    assert len(handled) == (where == "here")
    parking._mailbox.drain()
    assert handled == [(where == "loop", True, headers)]
    parking.let_go()
    parking._mailbox.close()
    assert (pool.sync.size(), pool.sync.info().waiting) == (0, 1)
