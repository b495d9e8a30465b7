"""The waiting room: messages over their limit wait in the store, in line, and cost no worker anything.

A message that finds its pool full is parked in its **lane** by the very command that finds the pool full; the broker's
copy can be acknowledged then. When a slot comes free, a worker that serves the lane takes the longest waiter together
with the slot. Until that run is settled, the message stays in the room under a claim that the worker's heartbeat
renews; a worker that dies gives it back at the head of its lane within the heartbeat's lease.
"""

from __future__ import annotations

import logging
import math
import random
import threading
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from slotline import _checks, settings
from slotline.pools._share import Shares
from slotline.pools._sync_room import SyncRoom, SyncTaken
from slotline.pools._tending import OnLost, evictions_on, leave
from slotline.pools._tokens import default_owner, digest_of, lane_id_of, new_token
from slotline.pools._wire import Granted, Queued, milliseconds, named_pool, pool_keys
from slotline.pools.fleeting import FleetingPool, is_line
from slotline.pools.pool import Pool
from slotline.pools.sizes import check_size
from slotline.pools.slot import Slot
from slotline.steps import Call, Steps, run_awaiting
from slotline.stores.base import Command, Store
from slotline.stores.keeper import Kept, end_of
from slotline.stores.layout import base_key
from slotline.stores.wakeups import Listen, Wakeups

logger = logging.getLogger("slotline.pools")

SWEEPS = 3
"""How often within the heartbeat's lease a worker looks through its lanes, whatever it has heard."""
_JITTER = 0.25
_LANE = ":lane:"
_NOTE_AGAIN = 300.0
"""Seconds after which a pool is noted again: the index may be lost, and forgets what nobody notes for an hour."""
_NOTES_KEPT = 10_000
_OLD_AFTER = 3_600_000
_SOON_OLD = 60_000
"""Milliseconds for which a pool stays in a lane's index at least; those that soon have nothing, so long only."""


class Parked(NamedTuple):
    """A message in the room: how many of its lane came before it; 0 for one that was there already."""

    place: int


class Taken:
    """A parked message that this worker runs, with the slot for it.

    Attributes:
        message: The message, byte for byte as it was parked.
        lane: The name of its lane.
        slot: Its slot, which the caller releases when the run has ended.
        pool: The slot's pool.
        place: Where it stood; a later place is a greater text.
    """

    def __init__(self, room: Room, pool: Pool, slot: Slot, lane: str, digest: str, message: bytes, place: str) -> None:
        self.pool, self.slot, self.lane, self.message, self.place = pool, slot, lane, message, place
        self.sync = SyncTaken(self)
        self._room, self._digest = room, digest
        self._kept: Kept | None = None
        self._lost = False

    @property
    def lost(self) -> bool:
        """Whether the claim was lost, by this process's own clock: another worker may run the message again."""
        return self._lost or (self._kept is not None and time.monotonic() >= self._kept.deadline)

    async def settle(self) -> None:
        """Remove the message from the room: its run is acknowledged. Again is harmless.

        Raises:
            StoreUnavailableError: The store cannot be reached; it is tried again in the background, and in the worst
                case the message runs once more, as after a lost acknowledgement to a broker.
        """
        await run_awaiting(self.ending("done"))

    async def give_back(self) -> None:
        """Put the message back at its old place, and release its slot.

        Raises:
            StoreUnavailableError: The store cannot be reached; it is tried again in the background, and in the worst
                case the message and the slot are free by their lease.
        """
        await run_awaiting(self.ending("back"))

    def abandon(self) -> None:
        """Renew the claim no more: the message is at its old place again when the lease has run out."""
        self._lost, self._kept = self.lost, None
        if self._room.store.keeper is not None:
            self._room.store.keeper.drop(self._claim)

    def ending(self, outcome: str) -> Steps[None]:
        """End the claim."""
        store, keys = self._room.store, pool_keys(self._room.store, self.pool.name)
        command = Command("room_settle", keys, (self._digest, self.slot.token, outcome))
        self.abandon()
        if outcome == "back":
            leave(store, self.slot)
        try:
            yield Call(store, command)
        except BaseException:
            store.settle(command, self.pool.patience)
            raise
        if outcome == "back":
            self._room.call(self.pool.name)

    def keep(self, lease: float, since: float) -> None:
        """Renew the claim until it is ended."""
        store, keys = self._room.store, pool_keys(self._room.store, self.pool.name)
        if store.keeper is not None:
            renew = Command("room_renew", keys, (self._digest, self.slot.token, milliseconds(lease)))
            self._kept = store.keeper.keep(self._claim, renew, lease, since, self._lose)

    @property
    def _claim(self) -> str:
        return f"claim-{self.slot.token}"

    def _lose(self) -> None:
        self._lost = True
        logger.warning(
            "the claim on a message of lane %r, pool %r, is lost: it may run again", self.lane, self.pool.key
        )


class Room:
    """The parked messages of the lanes that a worker serves.

    Args:
        store: A store that processes share; the embedded one has no room.
        lanes: The lanes that this worker serves, one for each queue of each broker. Applications that share a store
            must not share lanes.
        on_call: Called, in any thread, when there may be something to take.
        on_lost: Called in a background thread with the slot of a taken message that was lost or evicted; see ``Pool``.

    Raises:
        InvalidOptionError: An argument has a value that it cannot have.
    """

    def __init__(
        self,
        store: Store,
        lanes: Sequence[str],
        *,
        on_call: Callable[[], None] | None = None,
        on_lost: OnLost | None = None,
    ) -> None:
        if not isinstance(store, Store) or not store.shared:
            raise _checks.refuse("store", store, "a store that processes share, such as RedisStore(url)")
        self.store = store
        self.lanes = {lane_id_of(_checks.text("lanes", name)): name for name in lanes}
        self.sync = SyncRoom(self)
        self._on_call, self._on_lost = on_call, on_lost
        self._lock = threading.Lock()
        self._called: dict[str, None] = {}
        self._noted: dict[tuple[str, str], float] = {}
        self._old: dict[str, set[str]] = {}
        self._look_again: dict[str, float] = {}
        self._look_at = 0.0
        self._hub: Wakeups | None = None

    @property
    def lease(self) -> float:
        """Seconds after which a worker that says nothing loses what it has taken."""
        return settings.current().heartbeat_lease

    @property
    def due(self) -> bool:
        """Whether :meth:`take` has a reason to ask the store now."""
        return bool(self._called) or time.monotonic() >= self._look_at

    @property
    def look_after(self) -> float:
        """Seconds after which :meth:`take` should be called, whatever has been heard."""
        return 0.0 if self._called else max(0.0, self._look_at - time.monotonic())

    async def park(
        self,
        pool: Pool,
        message: bytes,
        *,
        lane: str,
        owner: str | None = None,
        weight: int = 1,
        partition: str | bytes | None = None,
    ) -> Slot | Parked:
        """Take a slot for a message, or park it; one command, and one more when a pool is new to this lane.

        A message that is in the room already, parked or taken, is not parked again: the broker's second copy of it
        may be acknowledged.

        Args:
            pool: The pool that the message must count in.
            message: The whole message; its digest is its identity.
            lane: The lane, which need not be one that this room serves.
            owner: Whose message it is, for people.
            weight: How many of the pool's slots it counts as.
            partition: On whose account it runs; partitions are served one after the other.

        Raises:
            InvalidOptionError: ``weight`` is more than the pool, or a partition of it, is declared to have.
            MessageTooLargeError: The message is larger than ``max_parked_bytes`` of the settings, slot or not.
            StoreUnavailableError: The store cannot be reached; nothing is known of the message.
        """
        shares = pool.shares_of(weight, partition)
        return await run_awaiting(self.parking(pool, message, lane, owner, shares))

    async def take(self) -> Taken | None:
        """Take the longest parked message of these lanes whose pool has a slot; ``None`` when there is none now.

        Raises:
            StoreUnavailableError: The store cannot be reached.
        """
        return await run_awaiting(self.taking())

    def close(self) -> None:
        """Hear no more calls."""
        hub, self._hub = self._hub, None
        if hub is not None:
            for lane in self.lanes:
                hub.quit(self._channel(lane), self._heard)

    def parking(self, pool: Pool, message: bytes, lane: str, owner: str | None, shares: Shares) -> Steps[Slot | Parked]:
        """Take a slot for a message, or park it."""
        check_size(len(message), pool.key)
        lane_id, token, owner = lane_id_of(lane), new_token(), owner or default_owner()
        command = pool.park_command(token, owner, lane_id, digest_of(message), message, self._channel(""), shares)
        try:
            yield from self._note(pool, lane_id)
            answer, asked_at = yield from pool.asking(command)
        except BaseException:
            self.store.settle(pool.release_command(token, shares), self.lease)
            raise
        if isinstance(answer.outcome, Granted):
            return pool.hold(token, owner, answer.outcome, asked_at, shares)
        assert isinstance(answer.outcome, Queued)  # noqa: S101 - a message is never turned away
        return Parked(answer.outcome.place)

    def taking(self) -> Steps[Taken | None]:
        """Take a message with its slot."""
        yield from self._listening()
        if time.monotonic() >= self._look_at:
            yield from self._sweep()
        while self._called:
            with self._lock:
                name = next(iter(self._called), None)
            if name is None:
                break
            taken = yield from self._take_from(name)
            if taken is not None:
                return taken
        return None

    def _listening(self) -> Steps[None]:
        hub = self.store.wakeups
        if self._hub is not hub:  # at first, and after the store was closed
            self._hub = hub
            if self._on_lost is not None:
                evictions_on(self.store).listen(self.store)
            for lane in self.lanes:
                hub.join(self._channel(lane), self._heard)
        yield Listen(hub)

    def _take_from(self, name: str) -> Steps[Taken | None]:
        token, asked_at = new_token(), time.monotonic()
        keys = pool_keys(self.store, name)
        take = Command("room_take", keys, (token, milliseconds(self.lease), *self.lanes))
        back = Command("room_settle", keys, ("", token, "back"))
        with self._lock:
            self._called.pop(name, None)
        try:
            reply = yield Call(self.store, take)
        except BaseException:
            self.call(name)
            self.store.settle(back, self.lease)
            raise
        if not reply[0]:
            self._look_within(int(reply[2]) / 1000 if reply[2] >= 0 else None, name)
            if reply[1] == 0 and reply[2] < 0:
                yield from self._forget(name)
            return None
        self.call(name)  # there may be more where this came from
        fence, life_ms, digest, lane, owner, cap_ms, message, place = reply[1:]
        if time.monotonic() >= end_of(asked_at, self.lease, self.lease):  # it is another worker's by now, or soon
            self.store.settle(back, self.lease)
            return None
        key, group = named_pool(name)
        cap = None if cap_ms < 0 else cap_ms / 1000
        kind = FleetingPool if is_line(name) else Pool
        pool = kind(key, 1, cap, group=group, store=self.store, on_lost=self._on_lost)
        slot = pool.hold(token, owner.decode(), Granted((int(fence),), (life_ms / 1000,)), asked_at)
        taken = Taken(self, pool, slot, self.lanes[lane.decode()], digest.decode(), message, place.decode())
        taken.keep(self.lease, asked_at)
        return taken

    def _sweep(self) -> Steps[None]:
        self._look_at = time.monotonic() + self.lease / SWEEPS * (1 - random.uniform(0, _JITTER))  # noqa: S311 - jitter
        for lane in self.lanes:
            listed = yield Call(self.store, Command("room_pools", (self._index(lane),), ("",)))
            for name, old in zip(listed[::2], listed[1::2], strict=True):
                self._called.setdefault(name.decode(), None)
                if old:
                    self._old.setdefault(name.decode(), set()).add(lane)

    def _note(self, pool: Pool, lane_id: str) -> Steps[None]:
        # Before the message is parked: a name too many in the index is harmless, a missing one is not.
        now, noted = time.monotonic(), (pool.name, lane_id)
        if pool.fleeting:
            index = (self._index(lane_id),)
            yield Call(self.store, Command("room_note", index, (pool.name, _OLD_AFTER - _SOON_OLD)))
        elif now - self._noted.get(noted, -math.inf) > _NOTE_AGAIN:
            yield Call(self.store, Command("room_note", (self._index(lane_id),), (pool.name, 0)))
            if len(self._noted) >= _NOTES_KEPT:
                self._noted.clear()
            self._noted[noted] = now

    def _forget(self, name: str) -> Steps[None]:
        for lane in self._old.pop(name, ()):
            yield Call(self.store, Command("room_pools", (self._index(lane),), (name,)))

    def _look_within(self, seconds: float | None, name: str) -> None:
        if seconds is None:
            return
        now = time.monotonic()
        at = now + seconds
        # One timer for each pool: every look that finds nothing would otherwise start a line of looks of its own.
        if at < self._look_at and not now < self._look_again.get(name, 0.0) <= at:
            self._look_again[name] = at
            timer = threading.Timer(seconds, self._look_now, (name, at))
            timer.daemon = True
            timer.start()

    def _look_now(self, name: str, at: float) -> None:
        if self._look_again.get(name) == at:
            self._look_again.pop(name, None)
        self.call(name)

    def _heard(self, message: bytes) -> None:
        if message:
            self.call(message.decode())
        else:
            self._look_at = 0.0
            self._tell()

    def call(self, name: str) -> None:
        """Look into a pool at the next :meth:`take`."""
        with self._lock:
            self._called[name] = None
        self._tell()

    def _tell(self) -> None:
        if self._on_call is not None and self._hub is not None:
            self._on_call()

    def _channel(self, lane_id: str) -> str:
        return f"{self.store.prefix}{_LANE}{lane_id}"

    def _index(self, lane_id: str) -> str:
        return base_key(self.store.prefix, "lane", lane_id) + ":pools"
