"""A process that does in a pool of one slot and its room what it is told, a line at a time, and answers each line."""

from __future__ import annotations

import json
import sys
import threading

import slotline
from slotline import Pool, RedisStore, Slot
from slotline.pools import Room, Taken


class Actor:
    """Has at most one slot, and the message that came with it."""

    slot: Slot | None = None
    taken: Taken | None = None

    def __init__(self, url: str) -> None:
        store = RedisStore(url)
        self.told = threading.Event()
        self.pool = Pool("p", 1, slot_exp=None, store=store, on_lost=lambda _: self.told.set())
        self.room = Room(store, ["q"], on_lost=lambda _: self.told.set())

    def acquire(self) -> int:
        self.slot = self.pool.sync.acquire()
        return self.slot.fence

    def take(self) -> int | None:
        self.room.call("p")
        self.taken = self.room.sync.take()
        self.slot = self.taken and self.taken.slot
        return self.slot and self.slot.fence

    def lost(self) -> bool:
        """Whether it knows by itself, in every way, that it has nothing any more."""
        return self.slot.lost and (self.taken is None or self.taken.lost) and self.told.wait(10)

    def release(self) -> bool:
        return self.pool.sync.release(self.slot)

    def settle(self) -> None:
        self.taken.sync.settle()


slotline.configure(heartbeat_lease=float(sys.argv[2]))
actor = Actor(sys.argv[1])
for line in sys.stdin:
    print(json.dumps(getattr(actor, line.strip())()), flush=True)
