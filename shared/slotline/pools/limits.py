"""Several limits at once: a slot of each of several pools, or of none."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

from slotline import _checks
from slotline.pools._several import CALLERS, Ask
from slotline.pools._share import Caller, Partition, Shares, Weight
from slotline.pools._sync import SyncLimit
from slotline.pools._tending import OnLost
from slotline.pools._wire import Answer, Granted, milliseconds, read_answer_of_several
from slotline.pools.holding import Holding
from slotline.pools.limit import Limit
from slotline.pools.place import Place
from slotline.pools.pool import Pool
from slotline.pools.slot import Slot
from slotline.steps import Steps
from slotline.stores.base import Command, Store

FEWEST, MOST = 2, 8


class Limits(Limit[Holding]):
    """A slot of each of several pools, all of them taken in one step, or none.

    It is used as a :class:`Pool` is: ``with limits:``, ``async with limits.slot(timeout=30) as holding:``. The pools
    are ordinary ones, and others may use them alone or in other company. Whoever waits holds nothing: it stands in the
    line of one pool that is full, at its old place wherever it has to move, and a pool that is full keeps nobody from
    the others. Only one that has moved between full pools before keeps, for a while, what it could have had of the
    others, so that it has them all in the end.

    Callers who want the same slots of the same pools are served in the order in which they came.

    Args:
        pools: Two to eight pools of one store. On a Redis Cluster all of them need the same ``group``.
        on_lost: Called once, in a background thread, with a :class:`Holding` of which a slot was lost or evicted, as
            the ``on_lost`` of a pool is with that slot.

    Raises:
        InvalidOptionError: The pools cannot be held together.
    """

    def __init__(self, *pools: Pool, on_lost: OnLost | None = None) -> None:
        if not FEWEST <= len(pools) <= MOST or not all(isinstance(pool, Pool) for pool in pools):
            raise _checks.refuse("pools", pools, f"{FEWEST} to {MOST} pools")
        if len({pool.name for pool in pools}) < len(pools):
            raise _checks.refuse("pools", pools, "different pools")
        super().__init__(on_lost)
        self.pools = tuple(sorted(pools, key=lambda pool: pool.name))  # scripts keep slots only in one order
        self.key = " + ".join(pool.key for pool in self.pools)
        self.sync: SyncLimit[Holding] = SyncLimit(self)
        self._together: Store | None = None
        if all(pool.store_is_given for pool in pools):
            self.store  # noqa: B018 - whether they can be held together shows now

    def __repr__(self) -> str:
        return f"Limits({', '.join(map(repr, self.pools))})"

    @property
    def store(self) -> Store:
        """Where the slots are kept.

        Raises:
            InvalidOptionError: The pools have no store in common, or no group where it is on a Redis Cluster.
        """
        store = self.pools[0].store
        if self._together is not store:
            if any(pool.store is not store for pool in self.pools):
                raise _checks.refuse("pools", self.pools, "pools of one store")
            if store.scattered and (self.pools[0].group is None or len({pool.group for pool in self.pools}) > 1):
                raise _checks.refuse(
                    "pools",
                    self.pools,
                    "pools of one group: a Redis Cluster runs no command on keys of several hash slots",
                )
            self._together = store
        return store

    def shares_of(self, weight: Weight, partition: Partition) -> Shares:
        """Check what is asked of each pool."""
        return tuple(
            pool.shares_of(_for(self, pool, "weight", weight, 1), _for(self, pool, "partition", partition, None))[0]
            for pool in self.pools
        )

    def acquire_command(self, caller: Caller | Place, patience_ms: int, channel: str) -> Command:
        """The command by which ``caller`` asks."""
        asked = self._ask(caller.shares).of_caller(caller.token, self._lease_ms)
        return Command("several_acquire", self.keys, (*asked, *self._declaring(), caller.owner, patience_ms, channel))

    def read(self, reply: Any) -> Answer:
        """Read the reply to it."""
        return read_answer_of_several(reply)

    def release_command(self, token: str, shares: Shares) -> Command:
        """The command that gives the slots, or a place, back."""
        return Command("several_release", self.keys, self._ask(shares).of_caller(token, self._lease_ms))

    def hold(self, token: str, owner: str, grant: Granted, since: float, shares: Shares) -> Holding:
        """Make the holding that was granted to ``token``, and keep it alive."""
        slots = tuple(
            Slot(pool.key, f"{token}.{number}", owner, fence, since=since, life=life, cap=pool.slot_exp)
            for number, (pool, fence, life) in enumerate(zip(self.pools, grant.fences, grant.lives, strict=True), 1)
        )
        holding = Holding(self.key, token, owner, slots, shares)
        told = threading.Lock()

        def on_lost(_: Slot) -> None:
            if self._on_lost is not None and told.acquire(blocking=False):
                self._on_lost(holding)

        for pool, slot, life in zip(self.pools, slots, grant.lives, strict=True):
            pool.tend(slot, life, since, None if self._on_lost is None else on_lost)
        return holding

    def evicting(self, token: str | None, shares: Shares, fence: int | None = None) -> Steps[str | None]:
        """Tell a holder to end: of the pool that is full and waited for, or the one of the holding ``token``."""
        if token is not None:
            return (yield from self.pools[0].evicting(f"{_checks.text('token', token)}.1", fence=fence))
        for pool, share in zip(self.pools, shares, strict=True):
            told = yield from pool.evicting(None, (share,), fence)
            if told is not None:
                return told
        return None

    def park_command(
        self, token: str, owner: str, lane: str, digest: str, message: bytes, channels: str, shares: Shares
    ) -> Command:
        """The command by which a message takes a slot of each pool or is parked."""
        asked = self._ask(shares, lane).of_message(token, self._lease_ms, channels)
        return Command("several_park", self.keys, (*asked, *self._declaring(), owner, digest, message))

    @property
    def keys(self) -> tuple[bytes, ...]:
        """The keys of all the pools."""
        self.store  # noqa: B018 - whether they can be held together
        return tuple(key for pool in self.pools for key in pool.keys)

    @property
    def _lease_ms(self) -> int:
        return 0 if self.store.keeper is None else milliseconds(self.patience)

    def _ask(self, shares: Shares, lane: str = CALLERS) -> Ask:
        names, caps = tuple(pool.name for pool in self.pools), tuple(pool.slot_exp for pool in self.pools)
        return Ask.of(names, caps, shares, lane)

    def _declaring(self) -> list[str | int]:
        return [part for pool in self.pools for part in pool.declaring()]


def _for(limits: Limits, pool: Pool, option: str, value: Any, default: Any) -> Any:
    if not isinstance(value, Mapping):
        return value
    keys = {one.key for one in limits.pools}
    if not value.keys() <= keys:
        raise _checks.refuse(option, value, f"by the keys of the pools, {', '.join(map(repr, sorted(keys)))}")
    return value.get(pool.key, default)
