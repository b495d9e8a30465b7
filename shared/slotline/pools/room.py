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
from typing import Any

from slotline import _checks, settings
from slotline.metrics import _telling
from slotline.pools._several import Ask
from slotline.pools._share import Partition, Shares, Weight
from slotline.pools._sync_room import SyncRoom
from slotline.pools._tending import OnLost, evictions_on, leave
from slotline.pools._tokens import default_owner, digest_of, lane_id_of, new_token
from slotline.pools._wire import Granted, Queued, channels, milliseconds, named_pool, pool_keys
from slotline.pools.fleeting import FleetingPool, is_line
from slotline.pools.limit import Limit
from slotline.pools.limits import Limits
from slotline.pools.pool import Pool
from slotline.pools.sizes import check_size
from slotline.pools.slot import Slot
from slotline.pools.taken import Parked, Taken
from slotline.steps import Call, Steps, all_or_error, run_awaiting
from slotline.stores.base import Command, Store
from slotline.stores.keeper import end_of
from slotline.stores.layout import base_key
from slotline.stores.wakeups import Listen, Wakeups

logger = logging.getLogger("slotline.pools")

SWEEPS = 3
"""How often within the heartbeat's lease a worker looks through its lanes, whatever it has heard."""
_JITTER = 0.25
_NOTE_AGAIN = 300.0
"""Seconds after which a pool is noted again: the index may be lost, and forgets what nobody notes for an hour."""
_NOTES_KEPT = 10_000
_AT_ONCE = 500
"""Pools of which a sweep asks in one round trip whether they have anything."""
_OLD_AFTER = 3_600_000
_SOON_OLD = 60_000
"""Milliseconds for which a pool stays in a lane's index at least; those that soon have nothing, so long only."""


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
        pool: Limit[Any],
        message: bytes,
        *,
        lane: str,
        owner: str | None = None,
        weight: Weight = 1,
        partition: Partition = None,
    ) -> Slot | Parked:
        """Take a slot for a message, or park it; one command, and one more when a pool is new to this lane.

        A message that is in the room already, parked or taken, is not parked again: the broker's second copy of it
        may be acknowledged.

        Args:
            pool: The pool that the message must count in, or several, of which it needs a slot each.
            message: The whole message; its digest, and its lane, are its identity.
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

    async def pass_on(self, pool: Limit[Any], slot: Slot) -> Taken | None:
        """Give a slot back, and take the longest parked message of these lanes that there is a slot for then.

        One command: the slot stands idle for no longer than that takes. Whoever comes before that message, in whatever
        lane, gets the slot as by :meth:`Limit.release`; only one pool can be looked into so, and the slots of several
        are given back alone.

        Args:
            pool: The slot's pool, or several.
            slot: The slot; giving it back twice is harmless.

        Raises:
            StoreUnavailableError: The store cannot be reached; the slot is given back in the background then, and what
                may have been taken as well.
        """
        return await run_awaiting(self.passing(pool, slot))

    def close(self) -> None:
        """Hear no more calls."""
        hub, self._hub = self._hub, None
        if hub is not None:
            for lane in self.lanes:
                hub.quit(self._channel(lane), self._heard)

    def parking(
        self, pool: Limit[Any], message: bytes, lane: str, owner: str | None, shares: Shares
    ) -> Steps[Slot | Parked]:
        """Take a slot for a message, or park it."""
        check_size(len(message), pool.key)
        lane_id, token, owner = lane_id_of(lane), new_token(), owner or default_owner()
        command = pool.park_command(
            token, owner, lane_id, digest_of(message, lane_id), message, self._channel(""), shares
        )
        try:
            for one in pool.pools:
                yield from self._note(one, lane_id)
            answer, asked_at = yield from pool.asking(command)
        except BaseException:
            self.store.settle(pool.release_command(token, shares), self.lease)
            raise
        if isinstance(answer.outcome, Granted):
            slot: Slot = pool.hold(token, owner, answer.outcome, asked_at, shares)
            return slot
        assert isinstance(answer.outcome, Queued)  # noqa: S101 - a message is never turned away
        if (observer := _telling.observer) is not None:
            observer.decided(pool.pools[answer.outcome.pool], "parked")
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

    def passing(self, pool: Limit[Any], slot: Slot) -> Steps[Taken | None]:
        """Give a slot back, and take a message with what is free then."""
        one = pool.pools[0]
        plain = len(pool.pools) == 1 and slot.key == one.key and not slot.passed_on
        if not plain or one.fleeting or one.store is not self.store:
            yield from pool.releasing(slot)
            for each in pool.pools:
                self.call(each.name)
            return None
        if (observer := _telling.observer) is not None:
            observer.given_up(slot)
        if not leave(self.store, slot):
            return None
        try:
            return (yield from self._take_from(one.name, slot.token))
        except BaseException:
            self.store.settle(one.release_command(slot.token, slot.shares), self.lease)
            raise

    def _take_from(self, name: str, freed: str | None = None) -> Steps[Taken | None]:
        token, asked_at = new_token(), time.monotonic()
        keys = pool_keys(self.store, name)
        if freed is None:
            take = Command("room_take", keys, (token, milliseconds(self.lease), *self.lanes))
        else:
            take = Command("room_pass", keys, (token, milliseconds(self.lease), freed, *self.lanes))
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
        if int(reply[0]) != 1:
            self.call(name)  # there may be more where this came from
            return (yield from self._take_several(Ask.read(reply[1:]), name))
        fence, life_ms, digest, lane, owner, cap_ms, message, place, look_ms = reply[1:]
        if look_ms == 0:
            self.call(name)
        else:
            self._look_within(look_ms / 1000 if look_ms > 0 else None, name)
        if time.monotonic() >= end_of(asked_at, self.lease, self.lease):  # it is another worker's by now, or soon
            self.store.settle(back, self.lease)
            return None
        key, group = named_pool(name)
        cap = None if cap_ms < 0 else cap_ms / 1000
        kind = FleetingPool if is_line(name) else Pool
        pool = kind(key, 1, cap, group=group, store=self.store, on_lost=self._on_lost)
        slot = pool.hold(token, owner.decode(), Granted((int(fence),), (life_ms / 1000,)), asked_at)
        if (observer := _telling.observer) is not None:
            observer.taken(key, place, fence)
        back = Command("room_settle", keys, (digest, token, "back"))
        taken = Taken(self, pool, slot, self.lanes[lane.decode()], digest.decode(), message, place.decode(), back)
        taken.keep(self.lease, asked_at)
        return taken

    def _take_several(self, ask: Ask, stood_at: str) -> Steps[Taken | None]:
        """Take the first message of a queue for several pools, of which one has called."""
        token, asked_at = new_token(), time.monotonic()
        pools = [
            Pool(key, 1, cap, group=group, store=self.store)
            for (key, group), cap in zip(map(named_pool, ask.names), ask.caps, strict=True)
        ]
        limits = Limits(*pools, on_lost=self._on_lost)
        about = ask.of_message(token, milliseconds(self.lease), self._channel(""))
        take, back = Command("several_take", limits.keys, about), Command("several_back", limits.keys, (*about, ""))
        try:
            reply = yield Call(self.store, take)
        except BaseException:
            self.store.settle(back, self.lease)
            raise
        waits_at = int(reply[-1 if reply[0] else 1])
        if waits_at:
            yield from self._note(pools[waits_at - 1], ask.lane)
        if not reply[0]:
            if waits_at:
                self._look_within(int(reply[2]) / 1000 if reply[2] >= 0 else None, ask.names[waits_at - 1])
            return None
        if waits_at:
            self.call(ask.names[waits_at - 1])
        if time.monotonic() >= end_of(asked_at, self.lease, self.lease):
            self.store.settle(back, self.lease)
            return None
        _, fences, lives, digest, owner, message, place, _ = reply
        grant = Granted(tuple(map(int, fences)), tuple(life / 1000 for life in lives))
        holding = limits.hold(token, owner.decode(), grant, asked_at, ask.shares)
        if (observer := _telling.observer) is not None:
            observer.taken(named_pool(stood_at)[0], place, fences[0])
        back = Command("several_back", limits.keys, (*about, digest))
        taken = Taken(self, limits, holding, self.lanes[ask.lane], digest.decode(), message, place.decode(), back)
        taken.keep(self.lease, asked_at)
        return taken

    def _sweep(self) -> Steps[None]:
        self._look_at = time.monotonic() + self.lease / SWEEPS * (1 - random.uniform(0, _JITTER))  # noqa: S311 - jitter
        for lane in self.lanes:
            listed = yield Call(self.store, Command("room_pools", (self._index(lane),), ("",)))
            names = [name.decode() for name in listed[::2]]
            filled = yield from self._filled(names)
            for name, old, some in zip(names, listed[1::2], filled, strict=True):
                if old:
                    self._old.setdefault(name, set()).add(lane)
                if old or some:
                    self._called.setdefault(name, None)

    def _filled(self, names: Sequence[str]) -> Steps[list[bool]]:
        """Tell of each pool whether anything waits there, or was taken by somebody who may be dead.

        Most have had messages at some time, and have none now: to look into each would stop the worker for seconds.
        """
        filled: list[bool] = []
        for at in range(0, len(names), _AT_ONCE):
            commands: list[Command] = []
            for name in names[at : at + _AT_ONCE]:
                _, line, _, claims, _ = pool_keys(self.store, name)
                commands += Command("EXISTS", (line,)), Command("ZCOUNT", (claims,), ("0", "+inf"))  # not its marks
            counts = yield from all_or_error(self.store, commands)
            filled += map(any, zip(counts[::2], counts[1::2], strict=True))
        return filled

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
        return f"{channels(self.store)}{lane_id}"

    def _index(self, lane_id: str) -> str:
        return base_key(self.store.prefix, "lane", lane_id) + ":pools"
