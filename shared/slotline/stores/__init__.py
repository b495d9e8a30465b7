"""Where pools and caches keep their state."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from slotline.stores.base import Command, Store, SyncStore

if TYPE_CHECKING:
    from slotline.stores.memory import MemoryStore
    from slotline.stores.redis import RedisStore

__all__ = ["Command", "MemoryStore", "RedisStore", "Store", "SyncStore"]


def __getattr__(name: str) -> Any:
    if name == "MemoryStore":
        from slotline.stores.memory import MemoryStore  # noqa: PLC0415 - a worker on Redis never needs it

        return MemoryStore
    # redis is an extra: the rest works without it.
    if name == "RedisStore":
        try:
            from slotline.stores.redis import RedisStore  # noqa: PLC0415 - see above
        except ModuleNotFoundError as error:
            if error.name != "redis":
                raise
            raise ImportError("RedisStore needs redis-py: pip install 'slotline[redis]'", name="redis") from error
        return RedisStore
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
