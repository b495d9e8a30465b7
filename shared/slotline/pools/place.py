"""One caller's way to a slot: at once, or over a place in line."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from slotline.errors import PoolTimeoutError, StoreUnavailableError
from slotline.metrics import _telling
from slotline.pools._share import Partition, Weight
from slotline.pools._tokens import default_owner, new_token
from slotline.pools._wire import Granted, Queued, milliseconds, read_grant
from slotline.pools.slot import Slot
from slotline.steps import Call, Steps, in_time, run_awaiting, run_blocking
from slotline.stores.wakeups import Bell, Here, Listen, Wait, Wakeups

if TYPE_CHECKING:
    from slotline.pools.limit import Limit
    from slotline.pools.pool import Pool

logger = logging.getLogger("slotline.pools")

LOOKS = 3
"""How often a waiter looks again within the time after which its place would be given up."""
_JITTER = 0.25
_GRACE = 1.0
"""Seconds that the store has for its answers when a waiter's time is up: a slow one is no outage, a silent one is."""


class Place:
    """A token on its way to a slot of ``pool``, or of several pools.

    For callers that must not block: :meth:`enter` takes a slot at once or stands in line, and ``on_grant`` is called
    with the slot later, from whatever thread the message comes in. Whoever stands in line calls :meth:`enter` again
    after :attr:`look_after` seconds, and when ``on_nudge`` is called: it keeps the place, and finds a slot whose
    message was lost. A place whose process dies is passed over at once, and forgotten within the heartbeat's lease.

    Args:
        pool: The pool, or several.
        owner: Who asks, for people; default ``"host:pid"``.
        on_grant: Called once with the slot that a waiting place gets.
        on_nudge: Called when a message may have been lost.
        weight: How many of the pool's slots it asks for.
        partition: On whose account.
        since: Since when it has waited by now, by the monotonic clock, for metrics; ``None``: it begins to.

    Raises:
        InvalidOptionError: ``weight`` is more than the pool, or a partition of it, is declared to have.
    """

    def __init__(
        self,
        pool: Limit[Any],
        *,
        owner: str | None = None,
        on_grant: Callable[[Slot], None] | None = None,
        on_nudge: Callable[[], None] | None = None,
        weight: Weight = 1,
        partition: Partition = None,
        since: float | None = None,
    ) -> None:
        self.pool = pool
        self.shares = pool.shares_of(weight, partition)
        self.token = new_token()
        self.owner = owner or default_owner()
        self.sync = SyncPlace(self)
        self._on_grant, self._on_nudge = on_grant, on_nudge
        self._bell: Bell | None = None
        self._slot: Slot | None = None
        self._queued: Queued | None = None
        self._sizes = tuple(one.max_size for one in pool.pools)
        self._asked: tuple[float, float | None] = (0.0, None)  # by our clock, and by the store's
        self._lock = threading.Lock()
        self._left = False
        self._warned = False
        self._since = since

    @property
    def position(self) -> int | None:
        """The place in line at the last look, 0 for the next to be served; ``None`` when not in line."""
        return None if self._queued is None else self._queued.place

    @property
    def is_passed_over(self) -> bool:
        """Whether a pool was smaller at the last look than what is asked of it: others are served meanwhile."""
        return any(share.weight > size for share, size in zip(self.shares, self._sizes, strict=True))

    @property
    def look_after(self) -> float:
        """Seconds after which a waiting place should look again: jittered, and when the next slot expires."""
        pause = self.pool.patience / LOOKS * (1 - random.uniform(0, _JITTER))  # noqa: S311 - jitter, not a secret
        expiry = None if self._queued is None else self._queued.next_expiry
        if expiry is not None:
            pause = min(pause, expiry + random.uniform(0.001, 0.02))  # noqa: S311 - jitter, not a secret
        return pause

    async def enter(self) -> Slot | None:
        """Take a slot, or a place in line (``None``); one command. Calling it again looks again.

        Raises:
            StoreUnavailableError: The store cannot be reached; the place, if there was one, is still kept.
        """
        return await run_awaiting(self.entering())

    async def leave(self) -> None:
        """Give up the place, or the slot that may have come in the meantime."""
        await run_awaiting(self.leaving())

    def entering(self) -> Steps[Slot | None]:
        """Take a slot or a place in line."""
        self._left = False
        if self._slot is not None:
            return None if self._on_grant is not None else self._slot
        store, called = self.pool.store, self._on_grant is not None or self._on_nudge is not None
        # One who is called is called from whatever thread, also when no event loop runs.
        hub: Wakeups = store.wakeups if called else (yield Here(store))
        if self._bell is None or not self._bell.hangs_on(hub):
            self.close()
            self._bell = hub.bell(self.token)
            if called:
                self._bell.on_ring(self._rung)
        yield Listen(hub)
        return (yield from self._ask(hub.channel))

    def obtaining(self, timeout: float | None, *, evict: bool = False) -> Steps[Slot]:
        """Take a slot; wait in line for at most ``timeout`` seconds."""
        until = None if timeout is None else time.monotonic() + timeout
        try:
            waiting = self._waiting(timeout, until, evict=evict)
            return (yield from waiting if until is None else in_time(waiting, until + _GRACE))
        except PoolTimeoutError:
            raise
        except BaseException as error:
            # Cancelled, interrupted, or the store is away: whatever the token may have got by now is given back.
            self.abandon()
            if self._slot is not None:  # a signal's exception came when the slot was here, and not with the caller yet
                self.pool.give_up(self._slot)
            if not isinstance(error, TimeoutError):
                raise
            if self._queued is not None:
                raise self._late(timeout) from None
            silent = f"it has not answered within {timeout:g} s"
            raise StoreUnavailableError(self.pool.store.name, silent) from None

    def _waiting(self, timeout: float | None, until: float | None, *, evict: bool) -> Steps[Slot]:
        slot = yield from self.entering()
        if slot is None and evict:
            yield from self.pool.evicting(None, self.shares)
        while slot is None:
            left = None if until is None else until - time.monotonic()
            if left is not None and left <= 0:
                yield from self.leaving()
                raise self._late(timeout)
            pause = self.look_after if left is None else min(self.look_after, left)
            payload = yield Wait(self.bell, pause)
            if payload:
                slot, _ = self._granted(payload)
            if slot is None and (until is None or time.monotonic() < until):
                slot = yield from self.entering()
        self.close()
        return slot

    def _late(self, timeout: float | None) -> PoolTimeoutError:
        at = self._full_at
        if (observer := _telling.observer) is not None:
            observer.decided(self.pool.pools[at], "timed_out")
        return PoolTimeoutError(self.pool.pools[at].key, self._sizes[at], timeout=timeout)

    @property
    def _full_at(self) -> int:
        return 0 if self._queued is None else self._queued.pool

    @property
    def _full_pool(self) -> Pool:
        return self.pool.pools[self._full_at]

    def leaving(self) -> Steps[None]:
        """Give up the place or the slot."""
        slot = self._leave()
        if slot is None:
            yield Call(self.pool.store, self.pool.release_command(self.token, self.shares))
        else:
            yield from self.pool.closing(slot)

    def _granted(self, payload: bytes) -> tuple[Slot | None, bool]:
        """Take the slot that a message brought; one that has ended by now is asked for anew."""
        self.close()
        grant, clock = read_grant(payload)
        # The store's clock says how long after our question the slot was given: a message that was long on its
        # way brings a slot that is as old as it is.
        asked_at, asked_clock = self._asked
        waited = 0.0 if asked_clock is None else clock - asked_clock
        since = min(asked_at + waited, time.monotonic())  # that clock may have been set forward meanwhile
        # What was given before the store answered that we stand in line had ended by then.
        if waited < 0 or self.pool.is_over(grant, since):
            return None, False
        return self._won(grant, since, by_message=True)

    def abandon(self) -> None:
        """Give up whatever the token has, without waiting for the store."""
        if self._leave() is None:
            store = self.pool.store
            store.settle(self.pool.release_command(self.token, self.shares), self.pool.patience)

    def _leave(self) -> Slot | None:
        # A message on its way in another thread brings nothing any more: the release that follows takes it back.
        self.close()
        with self._lock:
            self._left = True
            return self._slot

    def close(self) -> None:
        """Take the doorbell down."""
        if self._bell is not None:
            self._bell.close()

    @property
    def bell(self) -> Bell:
        """The doorbell of a place that has entered."""
        if self._bell is None:
            raise RuntimeError("enter() comes first")
        return self._bell

    def _ask(self, channel: str) -> Steps[Slot | None]:
        pool = self.pool
        if self._bell is not None:
            self._bell.nudged = False  # this question is the answer to it
        if not self._asked[0]:
            self._asked = (time.monotonic(), None)
        command = pool.acquire_command(self, milliseconds(pool.patience), channel)
        answer, asked_at = yield from pool.asking(command)
        if isinstance(answer.outcome, Granted):
            slot, first = self._won(answer.outcome, asked_at)
            self.close()
            return slot if first or self._on_grant is None else None
        assert isinstance(answer.outcome, Queued)  # noqa: S101 - whoever has patience is not sent away
        self._sizes = answer.sizes
        for one, share, size in zip(pool.pools, self.shares, answer.sizes, strict=True):
            if share.weight > size and not self._warned:
                self._warned = True
                logger.warning(
                    "%s waits for %d slots of pool %r, which has only %d since it was made smaller; it is passed over",
                    *(self.owner, share.weight, one.key, size),
                )
        self._queued, self._asked = answer.outcome, (asked_at, answer.outcome.clock)
        if self._since is None:
            self._since = asked_at
            if (observer := _telling.observer) is not None:
                observer.decided(self._full_pool, "queued")
        return None

    def _won(self, grant: Granted, since: float, *, by_message: bool = False) -> tuple[Slot | None, bool]:
        """Return the slot, and whether this is the first word of it: answers and messages cross."""
        with self._lock:
            if self._slot is not None or (by_message and self._left):
                return self._slot, False
            self._slot = self.pool.hold(self.token, self.owner, grant, since, self.shares)
        if (observer := _telling.observer) is not None and self._since is not None:
            observer.waited(self._full_pool.key, since - self._since)
        return self._slot, True

    def _rung(self) -> None:
        payload = self.bell.payload
        slot, first = (None, False) if payload is None else self._granted(payload)
        if slot is None:
            if self._on_nudge is not None and not self._left:
                self._on_nudge()
        elif first and self._on_grant is not None:
            self._on_grant(slot)


class SyncPlace:
    """The blocking face of a :class:`Place`."""

    def __init__(self, place: Place) -> None:
        self._place = place

    def enter(self) -> Slot | None:
        """See :meth:`Place.enter`."""
        return run_blocking(self._place.entering())

    def leave(self) -> None:
        """See :meth:`Place.leave`."""
        run_blocking(self._place.leaving())
