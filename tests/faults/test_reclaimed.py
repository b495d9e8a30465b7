"""What dead processes held is counted once, by one of those that live."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from slotline import Pool, RedisStore, configure
from slotline.pools import Parked, Taken
from tests.harness.waiting import wait_until

LEASE = 1.5

BEGIN = """
import json, sys
import slotline
from slotline.metrics import Exporter
from slotline.pools import Room

counts = {{}}


class Counting(Exporter):
    def count(self, metric, labels, by):
        if metric.name == "lease_reclaimed":
            counts[labels[0]] = counts.get(labels[0], 0) + by

    def observe(self, metric, labels, seconds):
        pass


slotline.configure(heartbeat_lease={lease}, metrics=Counting())
store = slotline.RedisStore({url!r})
pools = [slotline.Pool(key, 1, store=store) for key in {keys!r}]
limit = slotline.Limits(*pools) if len(pools) > 1 else pools[0]
"""

HOLD = """
limit.sync.acquire()
print("holds", flush=True)
sys.stdin.read()
"""

TAKE_TURNS = """
for turn in range(20):
    with limit.slot(timeout=60):
        pass
print(json.dumps(counts), flush=True)
"""

RUN = """
room = Room(store, ["q"])
while room.sync.take() is None:
    pass
print("runs", flush=True)
sys.stdin.read()
"""

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start(redis_url: str) -> Iterator[Start]:
    """A function that starts a process which uses the pools ``keys``."""
    with ExitStack() as started:

        def begin(source: str, keys: str = "p") -> subprocess.Popen[str]:
            text = BEGIN.format(lease=LEASE, url=redis_url, keys=keys) + source
            process = started.enter_context(
                subprocess.Popen([sys.executable, "-c", text], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            )
            started.callback(process.kill)
            return process

        yield begin


@pytest.mark.parametrize("keys", ["p", "abc"], ids=["one pool", "several pools"])
def test_slots_of_a_killed_process_are_counted_once_by_those_that_take_turns_then(start: Start, keys: str):
    holder = start(HOLD, keys)
    assert holder.stdout.readline() == "holds\n"
    others = [start(TAKE_TURNS, keys) for _ in range(2)]
    holder.kill()
    counted = Counter[str]()
    for other in others:
        counted.update(json.loads(other.stdout.readline()))
    assert counted == {"lapsed": len(keys)}


async def test_a_killed_workers_message_and_its_slot_are_counted_by_the_worker_that_runs_it_then(
    start: Start, figures, make_room, redis_url
):
    configure(metrics=figures, heartbeat_lease=LEASE)
    store = RedisStore(redis_url)
    room, pool = make_room("q", of=store), Pool("p", 1, store=store)
    first = await pool.acquire()
    assert isinstance(await room.park(pool, b"message", lane="q"), Parked)
    await pool.release(first)
    worker = start(RUN)
    assert worker.stdout.readline() == "runs\n"
    worker.kill()
    found: list[Taken] = []

    def taken() -> bool:
        room.call(pool.name)
        found.extend(filter(None, [room.sync.take()]))
        return bool(found)

    wait_until("the message is taken again", taken, timeout=30)
    assert found[0].message == b"message"
    await found[0].settle()
    await pool.release(found[0].slot)
    await store.close()
    reclaimed = {labels[1]: count for labels, count in figures.counts.items() if labels[0] == "lease_reclaimed"}
    assert reclaimed == {"lapsed": 2}
