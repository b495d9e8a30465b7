"""What limits have in common, whether it is one pool or several: taking, waiting in line, giving back."""

from __future__ import annotations

import logging
import time
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

from slotline import _checks, settings
from slotline.errors import PoolFullError, StoreError
from slotline.metrics import _telling
from slotline.pools._context import Blocks, HeldSlot, SlotContext
from slotline.pools._share import Caller, Partition, Shares, Weight
from slotline.pools._tending import LOOKS_FOR_RESTING, OnLost, leave
from slotline.pools._tokens import default_owner, new_token
from slotline.pools._wire import Answer, Full, Granted
from slotline.pools.place import Place
from slotline.pools.slot import Slot
from slotline.steps import Call, Sleep, Steps, run_awaiting, run_blocking
from slotline.stores.base import Command, Store
from slotline.stores.keeper import end_of

if TYPE_CHECKING:
    from slotline.pools._sync import SyncLimit
    from slotline.pools.pool import Pool

logger = logging.getLogger("slotline.pools")

_ASKED = 3
"""How often a slot is asked for whose answers come when it has ended by then."""
Held = TypeVar("Held", bound=Slot)


class Limit(ABC, Generic[Held]):
    """A :class:`Pool`, or several: see :class:`Limits`.

    Attributes:
        key: What it is called.
        pools: The pools.
        sync: The same methods, blocking.
    """

    fleeting = False
    """Whether nothing of it is kept when nobody is in it."""

    key: str
    pools: tuple[Pool, ...]
    sync: SyncLimit[Held]

    def __init__(self, on_lost: OnLost | None) -> None:
        if on_lost is not None and not callable(on_lost):
            raise _checks.refuse("on_lost", on_lost, "a callable that takes the slot, or None")
        self._on_lost = on_lost
        self._blocks: Blocks[Held] = Blocks()

    @property
    @abstractmethod
    def store(self) -> Store:
        """Where the slots are kept."""

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
        weight: Weight = 1,
        partition: Partition = None,
    ) -> Held:
        """Take a slot; of several pools, one of each, or none.

        Args:
            owner: Who takes it, for people; default ``"host:pid"``.
            timeout: Seconds to wait in line, first come, first served, and for a store that does not answer; 0 (the
                default) does not wait in line, ``None`` waits for as long as it takes.
            evict: Whether a caller that has to wait has the longest holder told to end; see :meth:`evict`.
            weight: How many of the pool's slots it counts as (default 1). Whoever waits for several is not overtaken
                by those behind. To a rate it is one start. For several pools also by key: ``{"gpu": 2}``.
            partition: On whose account, such as a tenant's; any text or bytes. Partitions that wait are served one
                after the other. For several pools also by key.

        Raises:
            InvalidOptionError: ``weight`` is more than the pool, or a partition of it, is declared to have.
            PoolFullError: There is none, and ``timeout`` is 0.
            PoolTimeoutError: None came free in time.
            StoreUnavailableError: The store cannot be reached, or has not answered in time; nothing is held then.
        """
        return await run_awaiting(self.acquiring(owner, timeout, weight, partition, evict=evict))

    async def release(self, slot: Held) -> bool:
        """Give a slot back; the longest waiter gets it. Releasing twice is harmless.

        Returns:
            Whether the slot still counted.

        Raises:
            StoreUnavailableError: The store cannot be reached; the release is tried again in the background, and in
                the worst case the slot passes on by its lease.
        """
        return await run_awaiting(self.releasing(slot))

    async def evict(
        self,
        token: str | None = None,
        *,
        fence: int | None = None,
        weight: Weight = 1,
        partition: Partition = None,
    ) -> str | None:
        """Tell a holder, in whatever process, to end; its slot counts until it is released, or its lease ends.

        A queue's task is cancelled or killed, as when its slot is lost. Another holder's ``on_lost`` is called, with
        ``slot.evicted`` set, and one that has none goes on.

        Args:
            token: The token of its slot. ``None``: the holder that has held its slot longest, if somebody waits for
                whom no slot is free and no other holder was told yet.
            fence: Its fence: nobody is told who has the slot after that holder. ``None``: whoever the store knows to
                have it, see :class:`Relay`.
            weight: How many slots the one who waits asks for: as many holders are told as it needs.
            partition: On whose account it waits: if that has all that it may have, its own holders are told.

        Returns:
            The token of the slot whose holder was told, of the longest if there are several; ``None`` if there is none.
        """
        return await run_awaiting(self.evicting(token, self.shares_of(weight, partition), fence))

    def slot(
        self, *, timeout: float | None = None, owner: str | None = None, weight: Weight = 1, partition: Partition = None
    ) -> SlotContext[Held]:
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
        self.shares_of(weight, partition)
        seconds = _checks.optional_seconds("timeout", timeout, zero=True)
        return SlotContext(self, timeout=seconds, owner=owner, weight=weight, partition=partition)

    def holding(self, slot: Held) -> HeldSlot[Held]:
        """Return a context manager, for ``with`` and ``async with``, that gives ``slot`` back at its end.

        A store that is away then does not change the block's outcome: the slot is released in the background.
        """
        return HeldSlot(self, slot)

    def __enter__(self) -> Held:
        return run_blocking(self._entering())

    def __exit__(self, *exc: object) -> None:
        run_blocking(self.closing(self._blocks.leave(self)))

    async def __aenter__(self) -> Held:
        return await run_awaiting(self._entering())

    async def __aexit__(self, *exc: object) -> None:
        await run_awaiting(self.closing(self._blocks.leave(self)))

    # What Place, Room and the other face build on.

    @abstractmethod
    def shares_of(self, weight: Weight, partition: Partition) -> Shares:
        """Check what is asked of each pool."""

    @abstractmethod
    def acquire_command(self, caller: Caller | Place, patience_ms: int, channel: str) -> Command:
        """The command by which ``caller`` asks."""

    @abstractmethod
    def park_command(
        self, token: str, owner: str, lane: str, digest: str, message: bytes, channels: str, shares: Shares
    ) -> Command:
        """The command by which a message takes a slot or is parked."""

    @abstractmethod
    def read(self, reply: Any) -> Answer:
        """Read the reply to it."""

    @abstractmethod
    def release_command(self, token: str, shares: Shares) -> Command:
        """The command that gives a slot, or a place, back."""

    @abstractmethod
    def hold(self, token: str, owner: str, grant: Granted, since: float, shares: Shares) -> Held:
        """Make the slot that was granted to ``token``, and keep it alive."""

    @abstractmethod
    def evicting(self, token: str | None, shares: Shares, fence: int | None = None) -> Steps[str | None]:
        """Tell a holder to end."""

    def _entering(self) -> Steps[Held]:
        slot = yield from self.acquiring(None, 0.0, 1, None, evict=False)
        try:
            return self._blocks.enter(slot)
        except BaseException:  # a signal's: a block that is not entered is not left, either
            self.give_up(slot)
            raise

    def asking(self, command: Command) -> Steps[tuple[Answer, float]]:
        """Send a command that may take a slot; return the answer, and the monotonic time at which it was asked for."""
        for left in reversed(range(_ASKED)):
            asked_at = time.monotonic()
            answer = self.read((yield Call(self.store, command)))
            self.note(answer)
            # Asked again by the same token, the store says what the token has now.
            if not (left and isinstance(answer.outcome, Granted) and self.is_over(answer.outcome, asked_at)):
                break
        return answer, asked_at

    def is_over(self, grant: Granted, since: float) -> bool:
        """Whether a slot ended before its holder heard of it, since the process or the network stood still."""
        work, now = None if self.store.keeper is None else self.patience, time.monotonic()
        for life in grant.lives:  # noqa: SIM110 - it is asked of each grant, and a generator costs more than all the rest
            if life is not None and now >= end_of(since, life, work):
                return True
        return False

    def note(self, answer: Answer) -> None:
        """Take notice of what an answer says about the pools' declarations."""
        for pool, declared in zip(self.pools, answer.declared, strict=True):
            pool.note_declared(declared)

    def acquiring(
        self, owner: str | None, timeout: float | None, weight: Weight, partition: Partition, *, evict: bool
    ) -> Steps[Held]:
        """Take a slot, at once or over a place in line."""
        timeout = _checks.optional_seconds("timeout", timeout, zero=True)
        if timeout == 0:
            caller = Caller(new_token(), owner or default_owner(), self.shares_of(weight, partition))
            return (yield from self._at_once(caller))
        place = Place(self, owner=owner, weight=weight, partition=partition)
        return cast("Held", (yield from place.obtaining(timeout, evict=evict)))

    def _at_once(self, caller: Caller) -> Steps[Held]:
        command = self.acquire_command(caller, 0, "")
        try:
            answer, asked_at = yield from self.asking(command)
            while isinstance(answer.outcome, Full) and answer.outcome.resting:
                yield Sleep(min(answer.outcome.resting, LOOKS_FOR_RESTING))
                answer, asked_at = yield from self.asking(command)
            if isinstance(answer.outcome, Granted):
                return self.hold(caller.token, caller.owner, answer.outcome, asked_at, caller.shares)
        except BaseException:
            # Cancelled, interrupted, or the store is away: whatever the token may have got by now is given back.
            self.store.settle(self.release_command(caller.token, caller.shares), self.patience)
            raise
        assert isinstance(answer.outcome, Full)  # noqa: S101 - nobody stands in line without patience
        at, owners, retry_after, _ = answer.outcome
        if (observer := _telling.observer) is not None:
            observer.decided(self.pools[at], "refused")
        raise PoolFullError(self.pools[at].key, answer.sizes[at], owners, retry_after, caller.shares[at].weight)

    def releasing(self, slot: Held) -> Steps[bool]:
        """Give a slot back."""
        if not isinstance(slot, Slot) or slot.key != self.key:
            raise _checks.refuse("slot", slot, f"a slot of pool {self.key!r}")
        if (observer := _telling.observer) is not None:
            observer.given_up(slot)
        try:
            if not self._leaves(slot):
                return False
            return bool((yield Call(self._store_of(slot), self.release_of(slot)))) and not slot.lost
        except BaseException:
            self.give_up(slot)
            raise

    def give_up(self, slot: Held) -> None:
        """Give a slot back without waiting for the store; again is harmless."""
        if self._leaves(slot):
            self._store_of(slot).settle(self.release_of(slot), self.patience)

    def _store_of(self, slot: Held) -> Store:
        # Another store may have been configured since it was taken.
        tending = slot.slots[0]._tending  # noqa: SLF001 - of this package
        return self.store if tending is None else tending.store

    def _leaves(self, slot: Held) -> bool:
        store = self.store
        left = [leave(store, part) for part in slot.slots]
        return all(left)

    def release_of(self, slot: Held) -> Command:
        """The command that gives ``slot`` back."""
        command = self.release_command(slot.token, slot.shares)
        if self._store_of(slot) is not self.store:
            tendings = [part._tending for part in slot.slots]  # noqa: SLF001 - of this package
            command = command._replace(keys=tuple(key for tending in tendings if tending for key in tending.keys))
        return command._replace(args=(*command.args, slot.fence)) if slot.passed_on else command

    def closing(self, slot: Held) -> Steps[None]:
        """Release at the end of a block: the block's outcome stands, whatever becomes of the release."""
        try:
            yield from self.releasing(slot)
        except StoreError as error:
            logger.warning("slot %s of pool %r is released in the background: %s", slot.token, self.key, error)
