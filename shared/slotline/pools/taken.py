"""What a room answers: a message is parked; or one is taken, with its slot, and is to be settled."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any, NamedTuple

from slotline.pools._sync_room import SyncTaken
from slotline.pools._tending import leave
from slotline.pools._wire import milliseconds
from slotline.pools.slot import Slot
from slotline.steps import Call, Steps, run_awaiting
from slotline.stores.base import Command
from slotline.stores.keeper import Kept

if TYPE_CHECKING:
    from slotline.pools.limit import Limit
    from slotline.pools.room import Room

logger = logging.getLogger("slotline.pools")


class Parked(NamedTuple):
    """A message in the room: how many of its lane came before it; 0 for one that was there already."""

    place: int


class Taken:
    """A parked message that this worker runs, with the slot for it.

    Attributes:
        message: The message, byte for byte as it was parked.
        lane: The name of its lane.
        slot: Its slot, which the caller releases when the run has ended; a ``Holding`` where it needs several pools.
        pool: The slot's pool, or several.
        place: Where it stood; a later place is a greater text.
    """

    def __init__(
        self,
        room: Room,
        pool: Limit[Any],
        slot: Slot,
        lane: str,
        digest: str,
        message: bytes,
        place: str,
        back: Command,
    ) -> None:
        self.pool, self.slot, self.lane, self.message, self.place = pool, slot, lane, message, place
        self.sync = SyncTaken(self)
        self._room, self._digest, self._back = room, digest, back
        self._kept: Kept | None = None
        self._lost = False

    @property
    def lost(self) -> bool:
        """Whether the claim was lost, by this process's own clock: another worker may run the message again."""
        return self._lost or (self._kept is not None and time.monotonic() >= self._kept.deadline)

    @property
    def runs_elsewhere(self) -> bool:
        """Whether it must not begin here: its claim or its slot was lost. What is only evicted begins, and is ended."""
        return self.lost or (self.slot.lost and not self.slot.evicted)

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
        store = self._room.store
        command = self._back if outcome == "back" else self._about("room_settle", outcome)
        self.abandon()
        if outcome == "back":
            for slot in self.slot.slots:
                leave(store, slot)
        try:
            yield Call(store, command)
        except BaseException:
            store.settle(command, self.pool.patience)
            raise
        if outcome == "back":
            for pool in self.pool.pools:
                self._room.call(pool.name)

    def keep(self, lease: float, since: float) -> None:
        """Renew the claim until it is ended."""
        keeper = self._room.store.keeper
        if keeper is not None:
            self._kept = keeper.keep(
                self._claim, self._about("room_renew", milliseconds(lease)), lease, since, self._lose
            )

    def _about(self, script: str, what: str | int) -> Command:
        # The message is in its first pool, and taken by that pool's slot.
        return Command(script, self.pool.pools[0].keys, (self._digest, self.slot.slots[0].token, what))

    @property
    def _claim(self) -> str:
        return f"claim-{self.slot.token}"

    def _lose(self) -> None:
        self._lost = True
        logger.warning(
            "the claim on a message of lane %r, pool %r, is lost: it may run again", self.lane, self.pool.key
        )
