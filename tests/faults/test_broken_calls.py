"""A connection breaks at one call, whichever: a day in a pool and its room goes on, and comes to the same end.

It breaks before the server has seen the call, or when it has acted and before it has answered; by a reset, or by
falling silent. All of it happens at once, to each face, each time to a pool, a lane and a store of its own.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import ExitStack

import pytest

from slotline import Limits, Pool, RedisStore, Slot, configure
from slotline.pools import Parked, Room, Taken
from slotline.pools._wire import pool_keys
from slotline.pools.fleeting import LINE, FleetingPool
from slotline.stores._scripts import load
from tests.faults.pool_history import PoolHistory
from tests.harness.fixtures_faces import Call
from tests.harness.proxy import TcpProxy
from tests.harness.redis_server import RedisServer
from tests.harness.waiting import await_until

CALLED = [
    "pool_acquire", "pool_release", "pool_info", "pool_pause", "pool_resize", "pool_evict", "pool_park", "room_note",
    "room_pools", "room_take", "room_pass", "room_settle", "line_end", "several_acquire", "several_release",
]  # fmt: skip
RENEWED = ["pool_renew", "room_renew"]
TIMEOUT = 0.3
SOON = 20.0


class Day:
    """One pool's day, through a proxy that breaks one connection once."""

    def __init__(self, name: str, proxy: TcpProxy, server: RedisServer, call: Call) -> None:
        self.proxy, self.call = proxy, call
        self.name = self.lane = name
        self.store = RedisStore(proxy.redis_url, timeout=TIMEOUT, retries=8)
        self.direct = RedisStore(server.url)
        self.pool = Pool(name, 1, slot_exp=None, store=self.store, on_lost=lambda slot: None)
        self.seen = Pool(name, 1, slot_exp=None, store=self.direct)
        self.room = Room(self.store, [self.lane])
        self.history = PoolHistory(self.direct.client(), f"history:{name}")
        self.messages: list[bytes] = []
        self.size = 1

    async def park(self, pool: Pool, message: bytes) -> Slot | Parked:
        self.messages.append(message)
        return await self.call(self.room, "park", pool, message, lane=self.lane)

    async def take(self) -> Taken:
        found: list[Taken] = []

        async def look() -> bool:
            found.extend(filter(None, [await self.call(self.room, "take")]))
            return bool(found)

        await await_until("a message can be taken", look, SOON)
        return found[0]

    async def run(self, taken: Taken) -> bytes:
        """Do with a message what a worker does."""
        with self.inside(taken.slot, taken.message):
            assert taken.lost is False
        await self.call(taken.pool, "release", taken.slot)
        await self.call(taken, "settle")
        return taken.message

    async def pass_on(self, taken: Taken) -> Taken | None:
        """Do with a message what a worker does that has a place for another."""
        with self.inside(taken.slot, taken.message):
            assert taken.lost is False
        following = await self.call(self.room, "pass_on", taken.pool, taken.slot)
        await self.call(taken, "settle")
        return following

    def inside(self, slot: Slot, message: bytes = b"") -> ExitStack:
        assert slot.lost is False
        self.history.enter(slot.fence, message=message)
        leaving = ExitStack()
        leaving.callback(self.history.leave, slot.fence, message=message)
        return leaving

    async def waiting(self, count: int) -> None:
        async def look() -> bool:
            return (await self.call(self.pool, "info")).waiting == count

        await await_until(f"{count} wait", look, SOON)

    async def live(self) -> None:
        assert await self.call(self.room, "take") is None  # it listens
        first = await self.park(self.pool, b"first")
        assert isinstance(first, Slot)
        with self.inside(first, b"first"):
            for message in (b"second", b"third"):
                assert isinstance(await self.park(self.pool, message), Parked)
            caller = asyncio.create_task(self.wait_and_leave())
            await self.waiting(3)
            assert await self.call(self.pool, "evict") == first.token
            await await_until("the holder is told to end", lambda: first.evicted, SOON)
            assert await self.call(self.pool, "pause") in {True, False}
        await self.call(self.pool, "release", first)
        info = await self.call(self.pool, "info")
        assert (info.paused, info.used, info.waiting) == (True, 0, 3)
        assert await self.call(self.pool, "resume") in {True, False}
        second = await self.take()
        third = await self.pass_on(second)
        assert (second.message, third and third.message) == (b"second", b"third")
        assert await self.pass_on(third) is None, "the caller's turn has come"
        await caller
        assert await self.call(self.pool, "resize", 2) in {1, 2}
        for slot in [await self.call(self.pool, "acquire") for _ in range(2)]:
            await self.call(self.pool, "release", slot)
        await self.take_several()
        await self.line_for_a_value()

    async def take_several(self) -> None:
        other = Pool(f"{self.name}-too", 1, slot_exp=None, store=self.store)
        both = Limits(self.pool, other)
        held = await self.call(other, "acquire")
        waiting = asyncio.create_task(self.call(both, "acquire", timeout=2 * SOON))

        async def waits() -> bool:
            info = await self.call(other, "info")
            return info.waiting + (await self.call(self.pool, "info")).waiting > 0

        await await_until("it waits for both", waits, SOON)
        await self.call(other, "release", held)
        holding = await waiting
        with self.inside(holding.slot_of(self.name)):
            assert (holding.lost, holding.slot_of(other.key).fence > held.fence) == (False, True)
        await self.call(both, "release", holding)
        assert await self.call(other, "size") == 0

    async def wait_and_leave(self) -> None:
        slot = await self.call(self.pool, "acquire", timeout=2 * SOON)
        with self.inside(slot):
            pass
        await self.call(self.pool, "release", slot)

    async def line_for_a_value(self) -> None:
        line = FleetingPool(LINE + self.name, 1, slot_exp=None, store=self.store)
        slot = await self.call(line, "acquire")
        assert isinstance(await self.park(line, b"follower"), Parked)
        await self.call(line, "release", slot)
        assert await self.run(await self.take()) == b"follower"
        assert self.direct.client().exists(*pool_keys(self.store, line.key)[:3]) == 0

    async def hold(self) -> None:
        """Have a slot and a message until both have been renewed after the fault."""
        first = await self.park(self.pool, b"first")
        assert isinstance(first, Slot)
        assert isinstance(await self.park(self.pool, b"second"), Parked)
        self.size = 2
        assert await self.call(self.pool, "resize", self.size) == 1
        taken = await self.take()
        claims = pool_keys(self.store, self.name)[3]

        def ends() -> list[float]:
            client = self.direct.client()
            slots = [client.zscore(pool_keys(self.store, self.name)[0], one.token) for one in (first, taken.slot)]
            return [*slots, *(score for _, score in client.zrange(claims, 0, -1, withscores=True))]

        begun = ends()
        assert len(begun) == 3
        with self.inside(first, b"first"), self.inside(taken.slot, taken.message):
            await await_until(
                "all is renewed", lambda: all(now > then for now, then in zip(ends(), begun, strict=True)), SOON
            )
            assert (first.lost, taken.slot.lost, taken.lost) == (False, False, False)
        await self.call(self.pool, "release", first)
        await self.call(self.pool, "release", taken.slot)
        await self.call(taken, "settle")

    async def end(self) -> None:
        """Check that nothing is left, and what has happened."""

        async def empty() -> bool:
            info = await self.seen.info()
            return (info.used, info.waiting) == (0, 0)

        await await_until("nobody holds or waits", empty, SOON)
        state = self.direct.client().hkeys(pool_keys(self.direct, self.name)[2])
        assert [field for field in state if field[:2] in {b"m:", b"o:", b"x:", b"w:", b"h:"}] == []
        assert self.history.runs() == dict.fromkeys(self.messages, 1)
        assert self.history.most_inside() <= self.size
        self.room.close()
        for store in (self.store, self.direct):
            await store.close()


@pytest.fixture
def live_through(redis_server, redis_client) -> Iterator[Callable[..., Awaitable[None]]]:
    """Live a day for each way to break a connection, with each face, all at once."""
    for script in [*CALLED, *RENEWED]:
        redis_client.script_load(load(script).text)
    with ExitStack() as stack:

        async def through(words: bytes, live: str, face: str, before: bool, silently: bool) -> None:
            name = f"{face}-{'before' if before else 'after'}-{'silently' if silently else 'by-reset'}"
            try:
                proxy = stack.enter_context(TcpProxy(redis_server.port))
                day = Day(name, proxy, redis_server, Call(face))
                broken = proxy.break_at(words, before=before, silently=silently)
                await getattr(day, live)()
                assert broken.happened.is_set()
                await day.end()
            except BaseException as error:
                error.add_note(f"the day of {name}")
                raise

        async def all_at_once(words: bytes, live: str, faces: Sequence[str] = ("async", "sync")) -> None:
            ways = itertools.product(faces, [True, False], [True, False])
            await asyncio.gather(*(through(words, live, *way) for way in ways))

        yield all_at_once


@pytest.mark.parametrize("script", [*CALLED, "SUBSCRIBE"])
async def test_a_connection_that_breaks_at_a_call_changes_nothing(live_through, script):
    configure(heartbeat_lease=60.0)  # nothing may have to wait for a lease to end
    await live_through(script.encode() if script.isupper() else load(script).sha, "live")


@pytest.mark.parametrize("script", RENEWED)
async def test_a_connection_that_breaks_at_a_renewal_loses_nothing(live_through, script):
    configure(heartbeat_lease=4.5)
    await live_through(load(script).sha, "hold", ["async"])  # the heartbeat is the same thread for both
