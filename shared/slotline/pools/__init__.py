"""Concurrency limits that hold across threads, processes and machines."""

from slotline.pools._sync import SyncLimit, SyncPool
from slotline.pools._sync_room import SyncRoom, SyncTaken
from slotline.pools.holding import Holding
from slotline.pools.info import Holder, PoolInfo, Waiter
from slotline.pools.limit import Limit
from slotline.pools.limits import Limits
from slotline.pools.place import Place, SyncPlace
from slotline.pools.pool import Pool
from slotline.pools.pooled import pooled
from slotline.pools.relay import Relay
from slotline.pools.room import Room
from slotline.pools.slot import Slot
from slotline.pools.taken import Parked, Taken

__all__ = [
    "Holder",
    "Holding",
    "Limit",
    "Limits",
    "Parked",
    "Place",
    "Pool",
    "PoolInfo",
    "Relay",
    "Room",
    "Slot",
    "SyncLimit",
    "SyncPlace",
    "SyncPool",
    "SyncRoom",
    "SyncTaken",
    "Taken",
    "Waiter",
    "pooled",
]
