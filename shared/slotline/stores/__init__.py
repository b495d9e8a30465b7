"""Where pools and caches keep their state."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from slotline.stores.base import Command, Store, SyncStore
from slotline.stores.memory import MemoryStore

if TYPE_CHECKING:
    from slotline.stores.redis import RedisStore

__all__ = ["Command", "MemoryStore", "RedisStore", "Store", "SyncStore"]


def __getattr__(name: str) -> Any:
    # redis is an extra: the rest works without it.
    if name == "RedisStore":
        from slotline.stores.redis import RedisStore  # noqa: PLC0415 - see above

        return RedisStore
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
