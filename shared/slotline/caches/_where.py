"""Which store a cache is on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from slotline._checks import refuse

if TYPE_CHECKING:
    from slotline.stores.base import Store


def store_for(redis_url: str | None, store: Store | None) -> tuple[Store, bool]:
    """Return the store that the arguments of a cache name, and whether it was made for that cache alone.

    Raises:
        InvalidOptionError: Processes do not share it.
    """
    if redis_url is not None:
        from slotline.stores.redis import RedisStore  # noqa: PLC0415 - redis is an extra

        return RedisStore(redis_url), True
    if store is None:
        from slotline.settings import default_store  # noqa: PLC0415 - only where nothing is named

        store = default_store()
    if not store.shared:
        raise refuse("store", store, "a RedisStore (name redis_url, or configure a store that processes share)")
    return store, False
