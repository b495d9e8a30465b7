"""Concurrency limits, stampede-free caches and killable executors for task queues, and for any Python program."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from slotline._default import DEFAULT
from slotline._version import __version__
from slotline.errors import (
    InvalidOptionError,
    LeaseExpiredError,
    LeaseUnavailableError,
    PoolFullError,
    PoolTimeoutError,
    SerializationError,
    SlotlineError,
    SlotLostError,
    StoreError,
    StoreUnavailableError,
    UnsupportedBackendError,
    UnsupportedFrameworkError,
)
from slotline.pools import Pool, Slot, pooled
from slotline.settings import Settings, configure
from slotline.stores import MemoryStore, Store

if TYPE_CHECKING:
    from slotline.stores.redis import RedisStore

__all__ = [
    "DEFAULT",
    "InvalidOptionError",
    "LeaseExpiredError",
    "LeaseUnavailableError",
    "MemoryStore",
    "Pool",
    "PoolFullError",
    "PoolTimeoutError",
    "RedisStore",
    "SerializationError",
    "Settings",
    "Slot",
    "SlotLostError",
    "SlotlineError",
    "Store",
    "StoreError",
    "StoreUnavailableError",
    "UnsupportedBackendError",
    "UnsupportedFrameworkError",
    "__version__",
    "configure",
    "pooled",
]


def __getattr__(name: str) -> Any:
    if name == "RedisStore":  # redis is an extra
        from slotline.stores import RedisStore  # noqa: PLC0415 - see above

        return RedisStore
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
