"""A process of the soak run: holds slots, waits for them, parks messages and works parked ones off, until it is killed.

Everything it does is written to a stream: an ``enter`` after it has a slot, a ``leave`` before it gives it back.
"""

from __future__ import annotations

import random
import sys
import threading
import time

import redis
from pool_history import PoolHistory

import slotline
from slotline import Pool, PoolFullError, RedisStore, Slot, StoreError
from slotline.pools import Room

right = time.time
time.time = lambda: right() + int(sys.argv[5])

URL, SIZE, LEASE, NAME, HISTORY = sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), sys.argv[4], sys.argv[6]
slotline.configure(heartbeat_lease=LEASE)
store = RedisStore(URL, timeout=1, retries=5)
client = redis.Redis.from_url(HISTORY)
history = PoolHistory(client)


def lost(slot: Slot) -> None:
    """Whoever has lost a slot is out before anybody else can be in."""
    history.leave(slot.fence, NAME)


pool = Pool("soak", SIZE, slot_exp=None, store=store, on_lost=lost)


def work(slot: Slot, message: str = "") -> None:
    """Be inside for a moment, and say so."""
    if not slot.lost:
        history.enter(slot.fence, NAME, message)
        time.sleep(random.expovariate(200))
        history.leave(slot.fence, NAME, message)


def hold() -> None:
    with pool.slot(timeout=5) as slot:
        work(slot)


def try_once() -> None:
    with pool as slot:
        work(slot)


def park(room: Room, number: int) -> None:
    message = f"{NAME}-{threading.get_ident()}-{number}"
    client.sadd("sent", message)
    client.expire("sent", 3600)
    while True:
        try:
            outcome = room.sync.park(pool, message.encode(), lane="soak")
            break
        except StoreError:  # nothing is known of it: as a broker's message, it comes again
            time.sleep(0.01)
    if isinstance(outcome, Slot):
        with pool.holding(outcome):
            work(outcome, message)


def work_off(room: Room) -> None:
    taken = room.sync.take()
    if taken is not None and (taken.lost or taken.slot.lost):
        taken.sync.give_back()
    elif taken is not None:
        with pool.holding(taken.slot):
            work(taken.slot, taken.message.decode())
        taken.sync.settle()


def loop() -> None:
    room, number = Room(store, ["soak"], on_lost=lost), 0
    while True:
        number += 1
        try:
            choice = random.random()
            if choice < 0.3:
                hold()
            elif choice < 0.5:
                try_once()
            elif choice < 0.65 and not client.exists("drain"):
                park(room, number)
            else:
                work_off(room)
        except (PoolFullError, StoreError, redis.ConnectionError, redis.TimeoutError):
            time.sleep(0.01)


threads = [threading.Thread(target=loop, daemon=True) for _ in range(3)]
for thread in threads:
    thread.start()
print("ready", flush=True)
sys.stdin.read()
