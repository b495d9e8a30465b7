"""A parked message that nobody can read, as of a version that is yet to come, costs its room a slot now and then."""

from __future__ import annotations

from pathlib import Path

import pytest

from celery_ext.lanes import lane_name
from slotline import Pool, RedisStore
from slotline.pools import Room
from tests.harness.redis_server import RedisServer
from tests.harness.waiting import wait_until
from tests.integration.celery_apps import Deployment


@pytest.mark.parametrize("kind", ["prefork", "threads"])
def test_a_message_that_cannot_be_read_costs_no_process_and_no_slot(
    tmp_path: Path, own_redis: RedisServer, kind: str
) -> None:
    made = Deployment(tmp_path, own_redis)
    lane, store = lane_name("0", "celery"), RedisStore(own_redis.url)
    pool = Pool("one:unreadable", 1, slot_exp=None, store=store)
    with made.worker(kind, concurrency=1) as worker:
        held = pool.sync.acquire()
        Room(store, [lane]).sync.park(pool, b"of another make", lane=lane)
        pool.sync.release(held)
        worker.wait_log("cannot be read")
        wait_until("its slot is free", lambda: pool.sync.size() == 0, 20)
        assert made.module.one.delay("unreadable", 0).get(timeout=20) == "one:unreadable"
        assert made.parked("one:unreadable") == 1
    store.sync.close()
    made.close()
