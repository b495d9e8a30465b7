"""The integration tests' store: the run's Redis, and no other."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from slotline import RedisStore


@pytest.fixture
async def store(redis_url: str) -> AsyncIterator[RedisStore]:
    """A store on an empty Redis; both its faces are closed at the end."""
    store = RedisStore(redis_url)
    yield store
    await store.close()
