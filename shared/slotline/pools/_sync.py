"""The blocking faces of pools and of several pools."""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, TypeVar

from slotline.pools._purging import purging
from slotline.pools._share import Partition, Weight
from slotline.pools.info import PoolInfo, Waiter
from slotline.pools.slot import Slot
from slotline.steps import run_blocking

if TYPE_CHECKING:
    from slotline.pools.limit import Limit
    from slotline.pools.pool import Pool

Held = TypeVar("Held", bound=Slot)


class SyncLimit(Generic[Held]):
    """The blocking face of a :class:`Limit`, for threads and for Celery."""

    def __init__(self, limit: Limit[Held]) -> None:
        self._limit = limit

    def acquire(
        self,
        *,
        owner: str | None = None,
        timeout: float | None = 0.0,
        evict: bool = False,
        weight: Weight = 1,
        partition: Partition = None,
    ) -> Held:
        """See :meth:`Limit.acquire`."""
        return run_blocking(self._limit.acquiring(owner, timeout, weight, partition, evict=evict))

    def release(self, slot: Held) -> bool:
        """See :meth:`Limit.release`."""
        return run_blocking(self._limit.releasing(slot))

    def evict(
        self,
        token: str | None = None,
        *,
        fence: int | None = None,
        weight: Weight = 1,
        partition: Partition = None,
    ) -> str | None:
        """See :meth:`Limit.evict`."""
        return run_blocking(self._limit.evicting(token, self._limit.shares_of(weight, partition), fence))


class SyncPool(SyncLimit[Slot]):
    """The blocking face of a :class:`Pool`."""

    def __init__(self, pool: Pool) -> None:
        super().__init__(pool)
        self._pool = pool

    def size(self) -> int:
        """See :meth:`Pool.size`."""
        return self.info(holders=0).used

    def info(self, *, holders: int = 100) -> PoolInfo:
        """See :meth:`Pool.info`."""
        return run_blocking(self._pool.informing(holders))

    def waiting(self, *, most: int = 100) -> tuple[Waiter, ...]:
        """See :meth:`Pool.waiting`."""
        return run_blocking(self._pool.listing(most))

    def purge(self) -> int:
        """See :meth:`Pool.purge`."""
        return run_blocking(purging(self._pool)).removed

    def pause(self) -> bool:
        """See :meth:`Pool.pause`."""
        return run_blocking(self._pool.pausing(paused=True))

    def resume(self) -> bool:
        """See :meth:`Pool.resume`."""
        return run_blocking(self._pool.pausing(paused=False))

    def resize(self, max_size: int) -> int:
        """See :meth:`Pool.resize`."""
        return run_blocking(self._pool.resizing(max_size))
