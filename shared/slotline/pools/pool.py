"""A pool: so many slots, whoever holds them."""

from __future__ import annotations

import logging
import time

from slotline import _checks, settings
from slotline._default import DEFAULT, Default
from slotline.errors import StoreError
from slotline.pools._context import Blocks, HeldSlot, SlotContext
from slotline.pools._share import SINGLE, Share
from slotline.pools._sync import SyncPool
from slotline.pools._tending import OnLost, evicting, leave, tend
from slotline.pools._wire import (
    UNLIMITED,
    Answer,
    Granted,
    declaration,
    info_command,
    milliseconds,
    pool_keys,
    read_answer,
    read_info,
)
from slotline.pools.info import PoolInfo
from slotline.pools.place import Place
from slotline.pools.rate import Rate
from slotline.pools.slot import Slot
from slotline.steps import Call, Steps, run_awaiting, run_blocking
from slotline.stores.base import Command, Store
from slotline.stores.keeper import end_of

logger = logging.getLogger("slotline.pools")

_ASKED = 3
"""How often a slot is asked for whose answers come when it has ended by then."""


class Pool:
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
        store: Where the slots are kept; default: the configured store.
        on_lost: Called in a background thread with a slot that was lost before its release (not when ``slot_exp``
            ended it), a sixth of the lease before anybody else can have it; and with one that was evicted.

    Raises:
        InvalidOptionError: An argument has a value that it cannot have.
    """

    fleeting = False
    """Whether nothing of it is kept when nobody is in it."""

    def __init__(
        self,
        key: str,
        max_size: int | None,
        slot_exp: float | Default | None = DEFAULT,
        *,
        rate: str | None = None,
        burst: int | None = None,
        max_per_partition: int | None = None,
        store: Store | None = None,
        on_lost: OnLost | None = None,
    ) -> None:
        self.key = _checks.text("key", key)
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
        if on_lost is not None and not callable(on_lost):
            raise _checks.refuse("on_lost", on_lost, "a callable that takes the slot, or None")
        self._store = store
        self._on_lost = on_lost
        self._at: tuple[Store, tuple[bytes, ...]] | None = None
        self._declared = False
        self._blocks = Blocks()
        self.sync = SyncPool(self)

    def __repr__(self) -> str:
        return f"Pool({self.key!r}, {self.max_size})"

    @property
    def store(self) -> Store:
        """Where the slots are kept."""
        return self._store or settings.default_store()

    @property
    def slot_exp(self) -> float | None:
        """Seconds after which a slot no longer counts; ``None``: no such end."""
        if self._slot_exp is DEFAULT:
            return settings.current().default_pool_slot_expiration
        return self._slot_exp

    @property
    def patience(self) -> float:
        """Seconds for which the store keeps a place in line, or a slot, of a process that says nothing."""
        return settings.current().heartbeat_lease

    async def acquire(
        self,
        *,
        owner: str | None = None,
        timeout: float | None = 0.0,
        evict: bool = False,
        weight: int = 1,
        partition: str | bytes | None = None,
    ) -> Slot:
        """Take a slot.

        Args:
            owner: Who takes it, for people; default ``"host:pid"``.
            timeout: Seconds to wait in line, first come, first served; 0 (the default) does not wait, ``None`` waits
                for as long as it takes.
            evict: Whether a caller that has to wait has the longest holder told to end; see :meth:`evict`.
            weight: How many of the pool's slots it counts as (default 1). Whoever waits for several is not overtaken
                by those behind. To a rate it is one start.
            partition: On whose account, such as a tenant's; any text or bytes. Partitions that wait are served one
                after the other.

        Raises:
            InvalidOptionError: ``weight`` is more than the pool, or a partition of it, is declared to have.
            PoolFullError: There is none, and ``timeout`` is 0.
            PoolTimeoutError: None came free in time.
            StoreUnavailableError: The store cannot be reached; nothing is held then.
        """
        return await run_awaiting(self.acquiring(owner, timeout, weight, partition, evict=evict))

    async def release(self, slot: Slot) -> bool:
        """Give a slot back; the longest waiter gets it. Releasing twice is harmless.

        Returns:
            Whether the slot still counted.

        Raises:
            StoreUnavailableError: The store cannot be reached; the release is tried again in the background, and in
                the worst case the slot passes on by its lease.
        """
        return await run_awaiting(self.releasing(slot))

    async def size(self) -> int:
        """Return how many slots are in use."""
        return (await self.info(holders=0)).used

    async def info(self, *, holders: int = 100) -> PoolInfo:
        """Return the limit in force, what is used, who waits, and at most ``holders`` of the holders."""
        return await run_awaiting(self.informing(holders))

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

    async def evict(
        self, token: str | None = None, *, weight: int = 1, partition: str | bytes | None = None
    ) -> str | None:
        """Tell a holder, in whatever process, to end; its slot counts until it is released, or its lease ends.

        A queue's task is cancelled or killed, as when its slot is lost. Another holder's ``on_lost`` is called, with
        ``slot.evicted`` set, and one that has none goes on.

        Args:
            token: The token of its slot. ``None``: the holder that has held its slot longest, if somebody waits for
                whom no slot is free and no other holder was told yet.
            weight: How many slots the one who waits asks for: as many holders are told as it needs.
            partition: On whose account it waits: if that has all that it may have, its own holders are told.

        Returns:
            The token of the slot whose holder was told, of the longest if there are several; ``None`` if there is none.
        """
        return await run_awaiting(self.evicting(token, self.share_of(weight, partition)))

    def slot(
        self,
        *,
        timeout: float | None = None,
        owner: str | None = None,
        weight: int = 1,
        partition: str | bytes | None = None,
    ) -> SlotContext:
        """Return a context manager, for ``with`` and ``async with``, that waits for a slot and gives it back.

        Args:
            timeout: Seconds to wait in line; ``None`` (the default) waits for as long as it takes.
            owner: Who takes it, for people.
            weight: How many of the pool's slots it counts as; see :meth:`acquire`.
            partition: On whose account; see :meth:`acquire`.

        Raises:
            InvalidOptionError: An argument has a value that it cannot have.
            PoolTimeoutError: On entering, when none came free in time.
        """
        self.share_of(weight, partition)
        seconds = _checks.optional_seconds("timeout", timeout, zero=True)
        return SlotContext(self, timeout=seconds, owner=owner, weight=weight, partition=partition)

    def holding(self, slot: Slot) -> HeldSlot:
        """Return a context manager, for ``with`` and ``async with``, that gives ``slot`` back at its end.

        A store that is away then does not change the block's outcome: the slot is released in the background.
        """
        return HeldSlot(self, slot)

    def __enter__(self) -> Slot:
        return self._blocks.enter(self, self.sync.acquire())

    def __exit__(self, *exc: object) -> None:
        run_blocking(self.closing(self._blocks.leave(self)))

    async def __aenter__(self) -> Slot:
        return self._blocks.enter(self, await self.acquire())

    async def __aexit__(self, *exc: object) -> None:
        await run_awaiting(self.closing(self._blocks.leave(self)))

    # What Place, Room and the other face build on.

    def share_of(self, weight: int, partition: str | bytes | None) -> Share:
        """Check what is asked of this pool."""
        return Share.of(weight, partition, key=self.key, size=self.max_size, most=self.max_per_partition)

    def evicting(self, token: str | None, share: Share = SINGLE) -> Steps[str | None]:
        """Tell a holder to end."""
        store, keys = self._where()
        named = None if token is None else _checks.text("token", token)
        return (yield from evicting(store, keys, named, share))

    def acquire_command(self, place: Place, patience_ms: int, channel: str) -> Command:
        """The command by which ``place`` asks."""
        store, keys = self._where()
        lease_ms = 0 if store.keeper is None else milliseconds(self.patience)
        args = (*self._ask(place.token, place.owner, lease_ms, place.share), patience_ms, channel)
        return Command("pool_acquire", keys, args)

    def park_command(
        self, token: str, owner: str, lane: str, digest: str, message: bytes, channels: str, share: Share = SINGLE
    ) -> Command:
        """The command by which a message takes a slot or is parked."""
        asked = self._ask(token, owner, milliseconds(self.patience), share)
        return Command("pool_park", self._where()[1], (*asked, lane, digest, message, self.key, channels))

    def _ask(self, token: str, owner: str, lease_ms: int, share: Share) -> tuple[str | int, ...]:
        declare, cap_ms = 0 if self._declared else 1, milliseconds(self.slot_exp)
        return (token, owner, self._declaration, declare, lease_ms, cap_ms, *share)

    def release_command(self, token: str) -> Command:
        """The command that gives a slot or a place back."""
        return Command("pool_release", self._where()[1], (token,))

    def note(self, answer: Answer) -> None:
        """Take notice of what an answer says about the pool's declaration."""
        if not self._declared:
            self._declared = True
            if answer.declared not in ("", self._declaration):
                logger.warning(
                    "pool %r is declared as %s here and was as %s before; the newest declaration counts, with %d slots",
                    *(self.key, self._declaration, answer.declared, answer.max_size),
                )

    def asking(self, command: Command) -> Steps[tuple[Answer, float]]:
        """Send a command that may take a slot; return the answer, and the monotonic time at which it was asked for."""
        for left in reversed(range(_ASKED)):
            asked_at = time.monotonic()
            answer = read_answer((yield Call(self.store, command)))
            self.note(answer)
            # Asked again by the same token, the store says what the token has now.
            if not (left and isinstance(answer.outcome, Granted) and self.is_over(answer.outcome, asked_at)):
                break
        return answer, asked_at

    def is_over(self, grant: Granted, since: float) -> bool:
        """Whether a slot ended before its holder heard of it, since the process or the network stood still."""
        work = None if self.store.keeper is None else self.patience
        return grant.life is not None and time.monotonic() >= end_of(since, grant.life, work)

    def hold(self, token: str, owner: str, grant: Granted, since: float, cap: float | None) -> Slot:
        """Make the slot that was granted to ``token``, and keep it alive."""
        slot = Slot(self.key, token, owner, grant.fence, since=since, life=grant.life, cap=cap)
        store, keys = self._where()
        tend(store, keys, slot, grant.life, since=since, lease=self.patience, on_lost=self._on_lost)
        logger.debug("slot %s of pool %r taken by %s", slot.token, self.key, slot.owner)
        return slot

    def closing(self, slot: Slot) -> Steps[None]:
        """Release at the end of a block: the block's outcome stands, whatever becomes of the release."""
        try:
            yield from self.releasing(slot)
        except StoreError as error:
            logger.warning("slot %s of pool %r is released in the background: %s", slot.token, self.key, error)

    def _where(self) -> tuple[Store, tuple[bytes, ...]]:
        store = self.store
        if self._at is None or self._at[0] is not store:
            self._at = (store, pool_keys(store, self.key))
            self._declared = False
        return self._at

    def acquiring(
        self, owner: str | None, timeout: float | None, weight: int, partition: str | bytes | None, *, evict: bool
    ) -> Steps[Slot]:
        """Take a slot, at once or over a place in line."""
        timeout = _checks.optional_seconds("timeout", timeout, zero=True)
        return (yield from Place(self, owner=owner, weight=weight, partition=partition).obtaining(timeout, evict=evict))

    def releasing(self, slot: Slot) -> Steps[bool]:
        """Give a slot back."""
        if not isinstance(slot, Slot) or slot.key != self.key:
            raise _checks.refuse("slot", slot, f"a slot of pool {self.key!r}")
        store = self.store
        leave(store, slot)
        command = self.release_command(slot.token)
        try:
            had = yield Call(store, command)
            return bool(had) and not slot._ended  # noqa: SLF001 - made here
        except BaseException:
            store.settle(command, self.patience)
            raise

    def informing(self, holders: int) -> Steps[PoolInfo]:
        """Read the pool's state."""
        most = _checks.whole_number("holders", holders, at_least=0)
        store, keys = self._where()
        return read_info(self.key, (yield Call(store, info_command(keys, self.max_size, most))))

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
