"""A task is cancelled at each of its awaits, as it begins to wait and as the answer comes: nothing is left behind."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable, Coroutine, Generator
from contextlib import suppress
from typing import Any

import pytest

from slotline import Limits, MemoryStore, Pool, RedisStore, Slot
from slotline.pools import Parked, PoolInfo, Room, Taken
from tests.harness.waiting import await_until

SOON = 10.0
"""Seconds, far below the lease of 30: what is left behind comes free by being given back, not by its lease."""


class CancelledAt:
    """Awaits ``work``, and cancels the running task at the await of this number.

    Args:
        number: Which of the awaits, from 0.
        late: Whether the cancellation comes together with what is awaited, and not before.

    Attributes:
        happened: Whether there was such an await.
    """

    def __init__(self, work: Coroutine[Any, Any, Any], number: int, *, late: bool) -> None:
        self._work, self._number, self._late = work, number, late
        self.happened = False

    def __await__(self) -> Generator[Any, Any, Any]:
        task, steps = asyncio.current_task(), self._work.__await__()
        count, resume, value = 0, steps.send, None
        while True:
            try:
                waits_for = resume(value)
            except StopIteration as end:
                return end.value
            if count == self._number:
                self.happened = True
                if self._late and waits_for is not None:
                    waits_for.add_done_callback(lambda _: task.cancel())
                else:
                    task.cancel()
            count += 1
            try:
                value, resume = (yield waits_for), steps.send
            except BaseException as error:
                value, resume = error, steps.throw


Prepared = tuple[Callable[[], Coroutine[Any, Any, Any]], Callable[[Any], Awaitable[None]]]
"""What is cancelled, and what is done with its outcome where it came through."""


class Stage:
    """A pool of one slot, another one, and a room on one store, and what may be done in them."""

    def __init__(self, store: MemoryStore | RedisStore) -> None:
        self.pool, self.other = (Pool(key, 1, slot_exp=None, store=store) for key in ("p", "o"))
        self.both = Limits(self.pool, self.other)
        self.room = Room(store, ["q"]) if store.shared else None
        self.parked: list[bytes] = []
        self.ran: list[bytes] = []
        self._beside: list[asyncio.Task[None]] = []

    async def _nothing(self, _: Any = None) -> None:
        pass

    async def _release(self, slot: Slot) -> None:
        await self.pool.release(slot)

    async def _run(self, outcome: Slot | Taken | Parked | None) -> None:
        """Do with a message what a worker does."""
        if isinstance(outcome, Slot):
            self.ran.append(self.parked[-1])
            await self.pool.release(outcome)
        elif isinstance(outcome, Taken):
            self.ran.append(outcome.message)
            await self.pool.release(outcome.slot)
            await outcome.settle()

    async def acquire(self) -> Prepared:
        return self.pool.acquire, self._release

    async def acquire_in_line(self) -> Prepared:
        return await self._in_line(self.pool), self._release

    async def acquire_both(self) -> Prepared:
        return self.both.acquire, self.both.release

    async def acquire_both_in_line(self) -> Prepared:
        return await self._in_line(self.both), self.both.release

    async def release_both(self) -> Prepared:
        holding = await self.both.acquire()
        return lambda: self.both.release(holding), self._nothing

    async def _in_line(self, limit: Pool | Limits) -> Callable[[], Coroutine[Any, Any, Slot]]:
        held = await self.pool.acquire()

        async def pass_on() -> None:
            async def waits() -> bool:
                return (await self.pool.info()).waiting > 0

            with suppress(AssertionError):  # it was cancelled before it waited
                await await_until("somebody waits", waits, timeout=0.2)
            await self.pool.release(held)

        def wait() -> Coroutine[Any, Any, Slot]:
            self._beside.append(asyncio.create_task(pass_on()))
            return limit.acquire(timeout=SOON)

        return wait

    async def release(self) -> Prepared:
        slot = await self.pool.acquire()
        return lambda: self.pool.release(slot), self._nothing

    async def block(self) -> Prepared:
        async def use() -> None:
            async with self.pool:
                await asyncio.sleep(0)

        return use, self._nothing

    async def block_that_waits(self) -> Prepared:
        async def use() -> None:
            async with self.pool.slot(timeout=SOON):
                await asyncio.sleep(0)

        return use, self._nothing

    def _park(self) -> Coroutine[Any, Any, Slot | Parked]:
        self.parked.append(uuid.uuid4().bytes)
        return self.room.park(self.pool, self.parked[-1], lane="q")

    async def park(self) -> Prepared:
        return self._park, self._run

    async def park_in_line(self) -> Prepared:
        held = await self.pool.acquire()

        def park() -> Coroutine[Any, Any, Slot | Parked]:
            work = self._park()
            self._beside.append(asyncio.create_task(self.pool.release(held)))
            return work

        return park, self._run

    async def take(self) -> Prepared:
        held = await self.pool.acquire()
        assert isinstance(await self._park(), Parked)
        await self.pool.release(held)
        self.room.call("p")
        return self.room.take, self._run

    async def pass_on(self) -> Prepared:
        held = await self.pool.acquire()
        assert isinstance(await self._park(), Parked)
        return lambda: self.room.pass_on(self.pool, held), self._run

    async def _taken(self) -> Taken:
        take, _ = await self.take()
        taken = await take()
        assert taken is not None
        return taken

    async def give_back(self) -> Prepared:
        taken = await self._taken()
        return taken.give_back, self._nothing

    async def settle(self) -> Prepared:
        taken = await self._taken()
        self.ran.append(taken.message)
        await self.pool.release(taken.slot)
        return taken.settle, self._nothing

    async def _infos(self) -> list[PoolInfo]:
        return [await pool.info() for pool in (self.pool, self.other)]

    async def close(self) -> None:
        if self.room is not None:
            self.room.close()
        await self.pool.store.close()

    async def ends_empty(self) -> None:
        """Work off what is in the room, and wait until nothing is left in the pool."""
        await asyncio.gather(*self._beside)
        self._beside.clear()

        async def empty() -> bool:
            if self.room is not None:
                await self._run(await self.room.take())
                client = self.pool.store.client()
                state = [field for key in ("p", "o") for field in client.hkeys(f"slotline:{{pool:{key}}}:state")]
                if any(field.startswith((b"m:", b"o:", b"x:", b"w:", b"h:", b"s:", b"k:")) for field in state):
                    return False
            return all((info.used, info.waiting) == (0, 0) for info in await self._infos())

        await await_until("nothing is held and nothing waits", empty, timeout=SOON)


async def cancelled_at(stage: Stage, verb: str, number: int, *, late: bool) -> bool:
    """Cancel a verb at one of its awaits; return whether there was one."""
    prepared, after = await getattr(stage, verb)()
    work = CancelledAt(prepared(), number, late=late)

    async def run() -> Any:
        return await work

    task = asyncio.create_task(run())
    await asyncio.wait([task])
    if not task.cancelled():
        await after(task.result())
    else:
        assert work.happened
    return work.happened


ON_BOTH = [
    "acquire", "acquire_in_line", "release", "block", "block_that_waits",
    "acquire_both", "acquire_both_in_line", "release_both",
]  # fmt: skip
IN_THE_ROOM = ["park", "park_in_line", "take", "pass_on", "give_back", "settle"]


@pytest.mark.parametrize("late", [False, True], ids=["before the answer", "with the answer"])
@pytest.mark.parametrize(
    ("kind", "verb"), [*(("memory", verb) for verb in ON_BOTH), *(("redis", verb) for verb in ON_BOTH + IN_THE_ROOM)]
)
async def test_cancelled_at_any_await_it_leaves_nothing_behind(kind, verb, late, redis_url):
    number, reached = 0, True
    while reached:
        store = MemoryStore() if kind == "memory" else RedisStore(redis_url)
        stage = Stage(store)
        # The first call of a process awaits more than those that follow.
        reached = False
        for _ in range(2):
            reached |= await cancelled_at(stage, verb, number, late=late)
            await stage.ends_empty()
        assert len(set(stage.ran)) == len(stage.ran), "a message ran twice"
        if not verb.startswith("park"):  # of a cancelled parking nothing is known: its caller has the message still
            assert sorted(stage.ran) == sorted(stage.parked)
        await stage.close()
        number += reached
    assert number > 0 or kind == "memory", "it was never cancelled"
