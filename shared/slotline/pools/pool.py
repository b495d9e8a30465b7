"""A pool: so many slots, whoever holds them."""

from __future__ import annotations

import logging
import re
import time
from typing import Any

from slotline import _checks, settings
from slotline._default import DEFAULT, Default
from slotline.metrics import _telling
from slotline.pools._passing import Passing
from slotline.pools._purging import purging
from slotline.pools._share import SINGLE, Caller, Partition, Share, Shares, Weight
from slotline.pools._sync import SyncPool
from slotline.pools._tending import OnLost, evicting, tend
from slotline.pools._wire import (
    UNLIMITED,
    Answer,
    Granted,
    declaration,
    in_words,
    info_command,
    milliseconds,
    pool_keys,
    pool_name,
    read_answer,
    read_info,
    read_waiter,
)
from slotline.pools.info import PoolInfo, Waiter
from slotline.pools.limit import Limit
from slotline.pools.place import Place
from slotline.pools.rate import Rate
from slotline.pools.slot import Slot
from slotline.steps import Call, Sleep, Steps, run_awaiting
from slotline.stores.base import Command, Store

_GROUP = re.compile(r"[A-Za-z0-9_.:@/+=-]{1,48}")

logger = logging.getLogger("slotline.pools")


class Pool(Limit[Slot]):
    """At most ``max_size`` holders at a time, across all processes that share its store.

    ``with pool:`` and ``async with pool:`` take a slot at once or raise; :meth:`slot` waits in line. A pool may be
    shared by threads, tasks and event loops, and entered again by its own holder, which takes another slot.

    A holder that dies frees its slots: in a shared store every process renews what it holds, and what is not renewed
    for ``heartbeat_lease`` seconds (default 30) passes on. ``slot_exp`` is a second end, counted from acquisition:
    after it the slot no longer counts, whatever runs inside; running code is not interrupted.

    Args:
        key: What the pool is called; the same key in the same store is the same pool.
        max_size: How many slots it has; ``None`` for a pool that only has a rate. When declarations differ, the newest
            one wins.
        slot_exp: Seconds; ``None`` for no such end; default: ``default_pool_slot_expiration`` of the settings (600).
        rate: How often slots are given at the most, such as ``"100/m"`` (units s, m, h, d; ``"3/10s"``); evenly
            spaced (GCRA), and waiters are served at this pace.
        burst: How many starts may come at once after a pause (default 1).
        max_per_partition: How many slots one partition may have at the most; ``None``: as many as there are. What is
            acquired without a partition counts in none.
        group: What its keys have in common with those of other pools, by their hash tag, so that a Redis Cluster can
            give slots of all of them at once: see :class:`Limits`. With another group it is another pool.
        store: Where the slots are kept; default: the configured store.
        on_lost: Called in a background thread with a slot that was lost before its release (not when ``slot_exp``
            ended it), a sixth of the lease before anybody else can have it; and with one that was evicted.

    Raises:
        InvalidOptionError: An argument has a value that it cannot have.
    """

    def __init__(
        self,
        key: str,
        max_size: int | None,
        slot_exp: float | Default | None = DEFAULT,
        *,
        rate: str | None = None,
        burst: int | None = None,
        max_per_partition: int | None = None,
        group: str | None = None,
        store: Store | None = None,
        on_lost: OnLost | None = None,
    ) -> None:
        self.key = _checks.text("key", key)
        if group is not None and not (isinstance(group, str) and _GROUP.fullmatch(group)):
            raise _checks.refuse("group", group, "at most 48 letters, digits and _.:@/+=-, or None")
        self.group = group
        self.name = pool_name(key, group)
        self.rate = Rate.parse(rate, burst)
        if max_size is None and self.rate is None:
            raise _checks.refuse("max_size", max_size, "a whole number of at least 1, or None beside a rate")
        self.max_size = UNLIMITED if max_size is None else _checks.whole_number("max_size", max_size)
        self.max_per_partition = (
            None if max_per_partition is None else _checks.whole_number("max_per_partition", max_per_partition)
        )
        self._declaration = declaration(self.max_size, self.rate, self.max_per_partition)
        self._slot_exp = slot_exp if slot_exp is DEFAULT else _checks.optional_seconds("slot_exp", slot_exp)
        if store is not None and not isinstance(store, Store):
            raise _checks.refuse("store", store, "a Store, such as MemoryStore() or RedisStore(url), or None")
        super().__init__(on_lost)
        self._store = store
        self._at: tuple[Store, tuple[bytes, ...]] | None = None
        self._declared = False
        self._passing = Passing()
        self.pools = (self,)
        self.sync: SyncPool = SyncPool(self)

    def __repr__(self) -> str:
        return f"Pool({self.key!r}, {self.max_size})"

    @property
    def store(self) -> Store:
        """Where the slots are kept."""
        return self._store or settings.default_store()

    @property
    def store_is_given(self) -> bool:
        """Whether it has a store of its own, and not the configured one."""
        return self._store is not None

    @property
    def keys(self) -> tuple[bytes, ...]:
        """Its keys in the store."""
        return self._where()[1]

    @property
    def slot_exp(self) -> float | None:
        """Seconds after which a slot no longer counts; ``None``: no such end."""
        if self._slot_exp is DEFAULT:
            return settings.current().default_pool_slot_expiration
        return self._slot_exp

    async def size(self) -> int:
        """Return how many slots are in use."""
        return (await self.info(holders=0)).used

    async def info(self, *, holders: int = 100) -> PoolInfo:
        """Return the limit in force, what is used, who waits, and at most ``holders`` of the holders."""
        return await run_awaiting(self.informing(holders))

    async def waiting(self, *, most: int = 100) -> tuple[Waiter, ...]:
        """Return who waits in line, callers and parked messages, those who came first, ``most`` of them.

        Partitions are served in turn, and limits made smaller are heeded, so the next one served may be another.
        """
        return await run_awaiting(self.listing(most))

    async def purge(self) -> int:
        """Remove the messages that are parked for it by now, with those that want slots of other pools, too.

        Nothing is heard of them any more: whoever asks for their results, a chord of Celery for instance, waits for
        ever. The queues' own commands, such as ``celery -A app slotline purge``, see to results. Messages that are run
        by now go on, callers keep their places, and other messages come and wait as ever. If the process dies, or the
        store is away, what was removed by then is gone, and all others are back at their old places within the
        heartbeat's lease.

        Returns:
            How many there were.
        """
        return (await run_awaiting(purging(self))).removed

    async def resize(self, max_size: int) -> int:
        """Change the limit for everybody, at once; holders keep their slots, waiters get new ones.

        It lasts until another size is declared in code.

        Returns:
            The limit before.
        """
        return await run_awaiting(self.resizing(max_size))

    async def pause(self) -> bool:
        """Let nobody in until :meth:`resume`, here or anywhere; holders are left alone, waiters keep their places.

        Returns:
            Whether it was not paused before.
        """
        return await run_awaiting(self.pausing(paused=True))

    async def resume(self) -> bool:
        """Let callers in again; waiters are served at once.

        Returns:
            Whether it was paused before.
        """
        return await run_awaiting(self.pausing(paused=False))

    # What Place, Room and the other face build on.

    def shares_of(self, weight: Weight, partition: Partition) -> Shares:
        """Check what is asked of this pool."""
        if weight == 1 and weight is not True and partition is None:
            return SINGLE
        return (Share.of(weight, partition, key=self.key, size=self.max_size, most=self.max_per_partition),)

    def evicting(self, token: str | None, shares: Shares = SINGLE, fence: int | None = None) -> Steps[str | None]:
        """Tell a holder to end."""
        store, keys = self._where()
        named = None if token is None else _checks.text("token", token)
        if fence is not None:
            fence = _checks.whole_number("fence", fence)
            if named is None:
                raise _checks.refuse("fence", fence, "used with a token")
        return (yield from evicting(store, keys, named, shares[0], fence))

    def freeing(self, token: str, fence: int | None) -> Steps[bool]:
        """Take a slot from whoever holds it, from the holder with ``fence`` alone if that is given."""
        store, keys = self._where()
        free = self.release_command(token) if fence is None else Command("pool_release", keys, (token, "", fence))
        freed = yield Call(store, free)
        while freed < 0:  # it may have passed to another run, of which the store hears by then
            yield Sleep(-freed / 1000)
            freed = yield Call(store, free)
        return bool(freed)

    def acquire_command(self, caller: Caller | Place, patience_ms: int, channel: str) -> Command:
        """The command by which ``caller`` asks."""
        store, keys = self._where()
        lease_ms = 0 if store.keeper is None else milliseconds(self.patience)
        args = self._ask(caller.token, caller.owner, lease_ms, caller.shares)
        return Command("pool_acquire", keys, (*args, patience_ms, channel) if patience_ms else args)

    def read(self, reply: Any) -> Answer:
        """Read the reply to it."""
        return read_answer(reply)

    def park_command(
        self, token: str, owner: str, lane: str, digest: str, message: bytes, channels: str, shares: Shares = SINGLE
    ) -> Command:
        """The command by which a message takes a slot or is parked."""
        asked = self._ask(token, owner, milliseconds(self.patience), shares)
        return Command("pool_park", self._where()[1], (*asked, lane, digest, message, self.name, channels))

    def _ask(self, token: str, owner: str, lease_ms: int, shares: Shares) -> tuple[str | int, ...]:
        return (token, owner, *self.declaring(), lease_ms, milliseconds(self.slot_exp), *shares[0])

    def declaring(self) -> tuple[str, int]:
        """What it is declared to have, and whether this is the first time that it is said."""
        return self._declaration, 0 if self._declared else 1

    def release_command(self, token: str, shares: Shares = SINGLE) -> Command:  # noqa: ARG002 - of several pools
        """The command that gives a slot or a place back."""
        return Command("pool_release", self._where()[1], (token,))

    def note_declared(self, declared: str) -> None:
        """Take notice of what was declared before."""
        if not self._declared:
            self._declared = True
            if declared not in ("", self._declaration):
                logger.warning(
                    "pool %r is declared as %s here and was as %s before; the newest declaration counts",
                    *(self.key, in_words(self._declaration), in_words(declared)),
                )

    def hold(self, token: str, owner: str, grant: Granted, since: float, shares: Shares = SINGLE) -> Slot:  # noqa: ARG002 - of several pools
        """Make the slot that was granted to ``token``, and keep it alive."""
        slot = Slot(self.key, token, owner, grant.fences[0], since=since, life=grant.lives[0], cap=self.slot_exp)
        self.tend(slot, grant.lives[0], since, self._on_lost)
        now = time.monotonic()
        self._passing.granted(slot.fence, since, now, roomy=grant.roomy)
        if grant.roomy:
            slot.may_pass_on(self._passing, since, now, self.slot_exp)
        return slot

    def tend(self, slot: Slot, life: float | None, since: float, on_lost: OnLost | None) -> None:
        """Keep a slot alive that was granted for ``life`` seconds."""
        store, keys = self._where()
        tend(store, keys, slot, life, since=since, lease=self.patience, on_lost=on_lost)
        logger.debug("slot %s of pool %r taken by %s", slot.token, self.key, slot.owner)
        if (observer := _telling.observer) is not None:
            observer.decided(self, "admitted")

    def _where(self) -> tuple[Store, tuple[bytes, ...]]:
        store = self.store
        if self._at is None or self._at[0] is not store:
            self._at = (store, pool_keys(store, self.name))
            self._declared = False
        return self._at

    def informing(self, holders: int) -> Steps[PoolInfo]:
        """Read the pool's state."""
        most = _checks.whole_number("holders", holders, at_least=0)
        store, keys = self._where()
        return read_info(self.key, (yield Call(store, info_command(keys, self.max_size, most))))

    def listing(self, most: int) -> Steps[tuple[Waiter, ...]]:
        """Read who waits."""
        store, keys = self._where()
        told = yield Call(store, Command("pool_waiting", keys, (_checks.whole_number("most", most),)))
        return tuple(map(read_waiter, told[::2], told[1::2]))

    def resizing(self, max_size: int) -> Steps[int]:
        """Change the limit."""
        size = _checks.whole_number("max_size", max_size)
        store, keys = self._where()
        before = int((yield Call(store, Command("pool_resize", keys, (size, self._declaration)))))
        logger.info("pool %r resized from %d to %d slots", self.key, before, size)
        return before

    def pausing(self, *, paused: bool) -> Steps[bool]:
        """Pause or resume."""
        store, keys = self._where()
        changed = yield Call(store, Command("pool_pause", keys, (int(paused), self._declaration)))
        if changed:
            logger.info("pool %r %s", self.key, "paused" if paused else "resumed")
        return bool(changed)
