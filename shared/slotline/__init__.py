"""Concurrency limits, stampede-free caches and killable executors for task queues, and for any Python program.

Names beyond the errors are looked up when they are used: every worker process of an executor imports this package, and
needs next to nothing of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from slotline._default import DEFAULT
from slotline._lazy import looked_up
from slotline._version import __version__
from slotline.errors import (
    InvalidOptionError,
    LeaseExpiredError,
    LeaseUnavailableError,
    MessagePurgedError,
    MessageTooLargeError,
    PoolFullError,
    PoolTimeoutError,
    RunCancelledError,
    SerializationError,
    SlotlineError,
    SlotLostError,
    StoreError,
    StoreUnavailableError,
    UnsupportedBackendError,
    UnsupportedFrameworkError,
)

if TYPE_CHECKING:
    from slotline.pools.holding import Holding
    from slotline.pools.limits import Limits
    from slotline.pools.pool import Pool
    from slotline.pools.pooled import pooled
    from slotline.pools.slot import Slot
    from slotline.settings import Settings, configure
    from slotline.stores import MemoryStore, Store
    from slotline.stores.redis import RedisStore

__all__ = [
    "DEFAULT",
    "Holding",
    "InvalidOptionError",
    "LeaseExpiredError",
    "LeaseUnavailableError",
    "Limits",
    "MemoryStore",
    "MessagePurgedError",
    "MessageTooLargeError",
    "Pool",
    "PoolFullError",
    "PoolTimeoutError",
    "RedisStore",
    "RunCancelledError",
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

_HOMES = {
    "Holding": "pools",
    "Limits": "pools",
    "MemoryStore": "stores",
    "Pool": "pools",
    "RedisStore": "stores",  # and only then redis, which is an extra
    "Settings": "settings",
    "Slot": "pools",
    "Store": "stores",
    "configure": "settings",
    "pooled": "pools",
}

__getattr__ = looked_up(__name__, _HOMES)
