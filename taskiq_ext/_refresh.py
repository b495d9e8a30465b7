"""A run that refreshes a value whose TTL is over, while its grace lets the old one serve all other messages."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

from slotline.errors import PoolFullError, StoreError
from slotline.pools import Pool, Slot

if TYPE_CHECKING:
    from slotline.stores.base import Store
    from taskiq_ext._entry import CacheEntry

logger = logging.getLogger(__name__)


class Refresh:
    """The one run of all workers that refreshes an entry; if its worker dies, the next message may.

    Attributes:
        old: The value that still serves, this message too should its run fail.
    """

    __slots__ = ("_pool", "_slot", "entry", "old")

    def __init__(self, entry: CacheEntry, old: Any, pool: Pool, slot: Slot) -> None:
        self.entry, self.old, self._pool, self._slot = entry, old, pool, slot

    @classmethod
    async def begin(cls, entry: CacheEntry, old: Any, store: Store) -> Refresh | None:
        """Return the right to refresh, or ``None`` where another message has it or the store is away."""
        pool = Pool(f"cache-refresh:{entry.key}", 1, None, store=store)
        try:
            return cls(entry, old, pool, await pool.acquire())
        except (PoolFullError, StoreError):
            return None

    async def land(self, value: Any) -> None:
        """Keep what the function returned."""
        try:
            await self.entry.keep(value)
        except Exception:
            logger.exception("The result of %r could not be cached; its task goes on.", self.entry.key)
        await self.turn_back()

    async def fail(self, error: BaseException) -> None:
        """Leave the old value where it is."""
        logger.warning("Refreshing %r failed, its old value serves on: %r", self.entry.key, error)
        await self.turn_back()

    async def turn_back(self) -> None:
        """Give the right back."""
        try:
            await self._pool.release(self._slot)
        except StoreError as error:  # it is tried again in the background
            logger.debug("The right to refresh %r is given back late: %s", self.entry.key, error)

    def abandon(self) -> None:
        """Give the right back from where nothing can be awaited."""
        releasing = asyncio.get_running_loop().create_task(self.turn_back())
        _releasing.add(releasing)
        releasing.add_done_callback(_releasing.discard)


_releasing: set[asyncio.Task[None]] = set()
