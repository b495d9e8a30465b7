"""The end of a run whose slot is lost, or is to go to another."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter
from typing import TYPE_CHECKING, Any

from slotline import settings
from slotline.errors import SlotLostError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from slotline.pools import Slot
    from taskiq_ext._interception import Plan
    from taskiq_ext._limits import OnLost

logger = logging.getLogger(__name__)


class Guard:
    """Lets a run be ended from outside, with an error of its own; all of it in the run's event loop.

    Args:
        home: The asyncio task in which it runs.

    Attributes:
        error: What the run ends with, once :meth:`end` was called.
    """

    __slots__ = ("_cancelled", "_home", "_runs", "error")

    def __init__(self, home: asyncio.Task[Any] | None) -> None:
        self.error: Exception | None = None
        self._home = home
        self._runs = False
        self._cancelled = 0

    async def run(self, start: Callable[..., Awaitable[Any]], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return what ``await start(*args, **kwargs)`` returns.

        Raises:
            Exception: What :meth:`end` was given; the run was cancelled, or did not begin.
        """
        self._check()
        home = self._home
        assert home is not None  # noqa: S101 - a coroutine runs in a task
        cancelled_before = home.cancelling()
        self._runs = True
        try:
            return await start(*args, **kwargs)
        except asyncio.CancelledError:
            # As asyncio.timeout() does: a cancellation that comes from elsewhere at the same time goes on.
            if home.cancelling() - self._cancelled <= cancelled_before:
                self._check()
            raise
        finally:
            self._runs = False
            for _ in range(self._cancelled):
                home.uncancel()

    def _check(self) -> None:
        if self.error is not None:
            raise self.error from None

    def end(self, error: Exception) -> None:
        """Cancel the run, or keep it from beginning."""
        if self.error is None:
            self.error = error
            self.cancel()

    def cancel(self) -> bool:
        """Cancel the run; ``False``: there is none, or no more."""
        if not self._runs or self._home is None:
            return False
        self._cancelled += self._home.cancel()
        return True


class GuardedRuns:
    """The runs that hold slots, and what becomes of those that must end.

    Attributes:
        losses: How many runs had to end: ``"ended"``, or ``"running"`` on, since nothing can end them or nothing is to.
    """

    def __init__(self) -> None:
        self.losses: Counter[str] = Counter()
        self._runs: dict[str, Plan] = {}

    def add(self, plan: Plan, slot: Slot, on_lost: OnLost) -> None:
        """Guard the run of ``plan``, which is about to begin in this asyncio task."""
        if on_lost == "cancel":
            plan.guard = Guard(plan.home)
        self._runs[slot.token] = plan
        if slot.forfeited:  # before it was known here
            self.forfeit(slot)

    def remove(self, slot: Slot) -> None:
        """Its run is over."""
        self._runs.pop(slot.token, None)

    def forfeit(self, slot: Slot) -> None:
        """End the run that holds ``slot``, which is lost or evicted; called in any thread."""
        plan = self._runs.get(slot.token)
        if plan is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed, and what ran in it is over
                plan.loop.call_soon_threadsafe(self._end, slot)

    def _end(self, slot: Slot) -> None:
        plan = self._runs.pop(slot.token, None)
        if plan is None:
            return
        loss = f"{plan.name} is to give its slot up" if slot.evicted else f"{plan.name} has lost its slot"
        guard = plan.guard
        if guard is not None:
            reason = {"reason": "it was evicted"} if slot.evicted else {}
            guard.end(SlotLostError(slot.key, slot.token, **reason))
            lease = settings.current().heartbeat_lease
            self._insist(plan, guard, lease if slot.evicted else lease / 12)
        if guard is not None and plan.can_be_ended:
            self.losses["ended"] += 1
            logger.warning("%s of pool %r, and is cancelled.", loss, slot.key)
            return
        self.losses["running"] += 1
        why = "a thread cannot be ended" if guard is not None else 'pool_on_lost="warn"'
        beside = "" if slot.evicted else " beside its successor"
        logger.error("%s of pool %r, and runs on%s: %s.", loss, slot.key, beside, why)

    def _insist(self, plan: Plan, guard: Guard, pause: float) -> None:
        # The run may have caught the cancellation, or asyncio.wait_for() may have: that of Python 3.11 does where what
        # it waits for ends at the same moment. Others can have a lost slot a sixth of the lease after its end.
        def again() -> None:
            if guard.cancel():
                logger.warning("%s goes on all the same, and is cancelled again.", plan.name)
                self._insist(plan, guard, pause)

        plan.loop.call_later(pause, again)
