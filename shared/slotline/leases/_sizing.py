"""How many executors a manager should have."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from slotline.leases._places import Place

if TYPE_CHECKING:
    from slotline.leases._core import LeaseCore


class Sizing:
    """Turns a count of units into a count of executors.

    Args:
        provider: Returns the number of units, or ``None`` for no adaptive sizing.
        units_per_pool: Units that one executor serves.
        least: The fewest executors.
        most: The most executors.
        logger: Gets a line when the provider fails.
    """

    def __init__(
        self,
        provider: Callable[[], float] | None,
        *,
        units_per_pool: int,
        least: int,
        most: int,
        logger: logging.Logger,
    ) -> None:
        self._provider, self._units_per_pool, self._least, self._most = provider, units_per_pool, least, most
        self._logger = logger

    def desired(self) -> int:
        """Ask the provider and return how many executors there should be."""
        if self._provider is None:
            return self._least
        return max(self._least, min(self._most, math.ceil(self._units() / self._units_per_pool)))

    def _units(self) -> float:
        if self._provider is None:
            return 0
        try:
            answer = self._provider()
        except (Exception, SystemExit):
            self._logger.exception("The size_provider failed; its answer counts as 0 units.")
            return 0
        units = _number(answer)
        if not 0 <= units < math.inf:
            self._logger.error(
                "The size_provider answered %.200r, which is no number of units; it counts as 0.", answer
            )
            return 0
        return units

    def apply(self, core: LeaseCore) -> int:
        """Add or retire idle executors until their number is the desired one or no idle one is left; return it."""
        desired = self.desired()
        surplus, waiters = [], []
        with core.lock:
            while core.open and core.total < desired:
                core.total += 1
                waiters.append(core.hand_on(Place(core.backend)))
            while core.total > desired and core.idle:
                core.total -= 1
                surplus.append(core.idle.pop(0))
        for waiter in waiters:
            core.wake(waiter)
        for place in surplus:
            executor = place.empty()
            if executor is not None:
                core.backend.close(executor, wait=False)
        return desired


def _number(answer: Any) -> float:
    """Return what is a number, of this or another library, as a ``float``; NaN for anything else."""
    if isinstance(answer, bool | str | bytes | bytearray):
        return math.nan
    try:
        return float(answer)
    except Exception:  # noqa: BLE001 - it is the user's object
        return math.nan
