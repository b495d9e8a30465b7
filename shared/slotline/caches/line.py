"""The line for a cache entry: messages that want a value which another message's run makes wait in the room for it.

Such a line is a pool of one slot. Whoever has the slot makes the value, or finds that it is there; when the slot is
given back, the next message of the line is taken by a worker with capacity, finds the value and ends as a hit. If the
run fails, whoever stands in line then gets its exception. If its worker dies, the slot passes on within the
heartbeat's lease, and the next message makes the value.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from slotline.caches import _commands as commands
from slotline.caches._failures import from_payload, to_payload
from slotline.errors import PoolFullError, StoreError
from slotline.pools._share import SINGLE
from slotline.pools._tending import leave
from slotline.pools._wire import pool_keys
from slotline.pools.fleeting import LINE, FleetingPool
from slotline.steps import Call, Steps
from slotline.stores.base import Command, Store

if TYPE_CHECKING:
    from slotline.caches._options import EntryOptions
    from slotline.caches.base import BaseCacheAdapter, Hit
    from slotline.caches.redis import RedisCacheAdapter
    from slotline.pools.room import Room
    from slotline.pools.slot import Slot
    from slotline.pools.taken import Parked, Taken

logger = logging.getLogger("slotline.caches")


class Line(FleetingPool):
    """The messages that wait for one entry.

    Args:
        name: The pool's name, see :func:`line_for`.
        store: Where the room is.
    """

    def __init__(self, name: str, store: Store) -> None:
        super().__init__(name, 1, None, store=store)

    def joining(self, room: Room, message: bytes, lane: str, owner: str) -> Steps[Slot | Parked]:
        """Take the slot, or park the message behind the one that has it.

        Raises:
            StoreUnavailableError: The store cannot be reached; nothing is known of the message.
        """
        try:  # a line that nobody waits in need not be in the lane's index
            return (yield from self.acquiring(owner, 0.0, 1, None, evict=False))
        except PoolFullError:
            return (yield from room.parking(self, message, lane, owner, SINGLE))

    def verdict(self, taken: Taken) -> Steps[bytes | None]:
        """Return the exception, for :func:`failure_in`, of a run for which a message was waiting when it failed."""
        told = yield Call(self.store, Command("HGET", (pool_keys(self.store, self.name)[2],), ("verdict",)))
        if told is None:
            return None
        place, _, payload = told.partition(b"|")
        return bytes(payload) if taken.place <= place.decode() else None

    def last_word(self, slot: Slot, error: BaseException | None = None) -> Command:
        """Return the command that gives the slot back; with an error, everyone who is parked by then gets that."""
        leave(self.store, slot)
        return self._ending(slot.token, b"" if error is None else to_payload(error))

    def ending(self, slot: Slot, error: BaseException | None = None) -> Steps[None]:
        """Do as :meth:`last_word` says; a store that is away is tried again in the background."""
        command = self.last_word(slot, error)
        try:
            yield Call(self.store, command)
        except StoreError as failure:
            self.store.settle(command, self.patience)
            logger.debug("the line for %r goes on in the background: %s", self.key, failure)
        except BaseException:
            self.store.settle(command, self.patience)
            raise


def shared_part(cache: BaseCacheAdapter) -> RedisCacheAdapter | None:
    """Return the cache on Redis that ``cache`` is or stands in front of; ``None`` where it has none."""
    from slotline.caches.redis import RedisCacheAdapter  # noqa: PLC0415 - redis is an extra

    part = getattr(cache, "shared", cache)
    return part if isinstance(part, RedisCacheAdapter) else None


def line_for(cache: RedisCacheAdapter, key: str, store: Store) -> Line:
    """Return the line for an entry of ``cache``, in a room on ``store``."""
    return Line(LINE + commands.writable(f"{cache.names.namespace}:{key}"), store)


def failure_in(payload: bytes) -> Exception:
    """Return the exception that a line has kept."""
    return from_payload(payload)


def is_there(cache: RedisCacheAdapter, key: str) -> Command:
    """Return the command that asks whether an entry is there."""
    return commands.exists(cache.names.base(key))


def is_away(cache: RedisCacheAdapter) -> bool:
    """Return whether the cache's server did not answer a moment ago."""
    return cache._outage.current() is not None  # noqa: SLF001 - the package's own


async def peek(cache: BaseCacheAdapter, key: str, options: EntryOptions) -> Hit | None:
    """Return what ``get_or_create`` would find at once; what it would not find is no miss yet."""
    copied = getattr(cache, "_copied", None)
    hit: Hit | None = None if copied is None else copied(key)
    shared = shared_part(cache)
    if hit is None and shared is not None:
        hit, _ = await shared._reads.read(key, options, shared._read)  # noqa: SLF001 - the package's own
    return hit
