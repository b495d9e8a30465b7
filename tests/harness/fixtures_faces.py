"""Fixtures that run one test body on every store and on both faces."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest


class Call:
    """Use an object through one of its faces.

    ``await call(pool, "acquire", timeout=1)`` awaits ``pool.acquire(timeout=1)``, or runs
    ``pool.sync.acquire(timeout=1)`` in a thread; ``async with call.using(pool) as slot:`` enters and leaves the
    object's own context manager in the same way.

    Attributes:
        face: ``"async"`` or ``"sync"``.
    """

    def __init__(self, face: str) -> None:
        self.face = face

    async def __call__(self, target: Any, method: str, *args: Any, **options: Any) -> Any:
        if self.face == "async":
            return await getattr(target, method)(*args, **options)
        return await asyncio.to_thread(getattr(target.sync, method), *args, **options)

    @asynccontextmanager
    async def using(self, manager: Any) -> AsyncIterator[Any]:
        if self.face == "async":
            async with manager as value:
                yield value
            return
        value = await asyncio.to_thread(manager.__enter__)
        try:
            yield value
        except BaseException as error:
            if not await asyncio.to_thread(manager.__exit__, type(error), error, error.__traceback__):
                raise
        else:
            await asyncio.to_thread(manager.__exit__, None, None, None)


@pytest.fixture(params=["async", "sync"])
def call(request: pytest.FixtureRequest) -> Call:
    """The face through which this run of the test uses objects; the test runs once for each."""
    return Call(request.param)


@pytest.fixture(params=["memory", "redis"])
async def store(request: pytest.FixtureRequest) -> AsyncIterator[Any]:
    """A new store; the test runs once for each kind."""
    from slotline import stores

    made = (
        stores.MemoryStore() if request.param == "memory" else stores.RedisStore(request.getfixturevalue("redis_url"))
    )
    yield made
    await made.close()
