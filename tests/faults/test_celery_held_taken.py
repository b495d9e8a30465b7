"""What a worker has taken out of the room and holds for a slot is the room's again when its connection breaks."""

from __future__ import annotations

from pathlib import Path

from slotline import Pool, RedisStore
from slotline.pools import Place, Slot
from tests.harness.proxy import TcpProxy
from tests.harness.redis_server import RedisServer
from tests.harness.waiting import wait_until
from tests.integration.celery_apps import Deployment

TASKS = """
@app.task(shared=False, name="app.second", cache_ttl=60, pool="second", pool_size=2, pool_on_full="wait")
def second(item):
    until_told(item)
    if history().llen("celery-test:runs") == 1:
        raise Ignore
    return item
"""


def test_a_call_that_was_taken_out_of_its_line_and_is_held_for_a_slot_runs_after_a_cut(
    tmp_path: Path, own_redis: RedisServer
) -> None:
    store, slots = RedisStore(own_redis.url), list[Slot]()
    pool = Pool("second", 2, store=store)
    with RedisServer() as broker, TcpProxy(broker.port) as proxy:
        made = Deployment(tmp_path, own_redis, broker=proxy.redis_url, extra=TASKS)
        with made.worker("threads") as worker:
            made.module.second.delay(7)
            wait_until("one runs", lambda: made.list("runs"), 20)
            waits = made.module.second.delay(7)
            wait_until("another waits for its value", lambda: made.parked("cache-line:*") == 1, 20)
            other = pool.sync.acquire()
            place = Place(pool, on_grant=slots.append)
            assert place.sync.enter() is None
            made.history.set("celery-test:go", 1, ex=60)
            wait_until("somebody else has the slot", lambda: slots, 20)
            wait_until("it is held", lambda: pool.sync.info().waiting == 1, 20)
            proxy.cut()
            wait_until("the worker has connected again", lambda: worker.log.count("Connected to") == 2, 20)
            for slot in (other, *slots):
                pool.sync.release(slot)
            assert waits.get(timeout=20) == 7
        made.close()
    store.sync.close()
