"""The blocking face of a pool."""

from __future__ import annotations

from typing import TYPE_CHECKING

from slotline.pools.info import PoolInfo
from slotline.pools.slot import Slot
from slotline.steps import run_blocking

if TYPE_CHECKING:
    from slotline.pools.pool import Pool


class SyncPool:
    """The blocking face of a :class:`Pool`, for threads and for Celery."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    def acquire(
        self,
        *,
        owner: str | None = None,
        timeout: float | None = 0.0,
        evict: bool = False,
        weight: int = 1,
        partition: str | bytes | None = None,
    ) -> Slot:
        """See :meth:`Pool.acquire`."""
        return run_blocking(self._pool.acquiring(owner, timeout, weight, partition, evict=evict))

    def release(self, slot: Slot) -> bool:
        """See :meth:`Pool.release`."""
        return run_blocking(self._pool.releasing(slot))

    def size(self) -> int:
        """See :meth:`Pool.size`."""
        return self.info(holders=0).used

    def info(self, *, holders: int = 100) -> PoolInfo:
        """See :meth:`Pool.info`."""
        return run_blocking(self._pool.informing(holders))

    def pause(self) -> bool:
        """See :meth:`Pool.pause`."""
        return run_blocking(self._pool.pausing(paused=True))

    def resume(self) -> bool:
        """See :meth:`Pool.resume`."""
        return run_blocking(self._pool.pausing(paused=False))

    def evict(self, token: str | None = None, *, weight: int = 1, partition: str | bytes | None = None) -> str | None:
        """See :meth:`Pool.evict`."""
        return run_blocking(self._pool.evicting(token, self._pool.share_of(weight, partition)))

    def resize(self, max_size: int) -> int:
        """See :meth:`Pool.resize`."""
        return run_blocking(self._pool.resizing(max_size))
