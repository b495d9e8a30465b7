"""Concurrency limits that hold across threads, processes and machines."""

from slotline.pools._sync import SyncPool
from slotline.pools.info import Holder, PoolInfo
from slotline.pools.place import Place, SyncPlace
from slotline.pools.pool import Pool
from slotline.pools.pooled import pooled
from slotline.pools.room import Parked, Room, SyncRoom, SyncTaken, Taken
from slotline.pools.slot import Slot

__all__ = [
    "Holder",
    "Parked",
    "Place",
    "Pool",
    "PoolInfo",
    "Room",
    "Slot",
    "SyncPlace",
    "SyncPool",
    "SyncRoom",
    "SyncTaken",
    "Taken",
    "pooled",
]
