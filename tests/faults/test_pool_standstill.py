"""A process stands still for longer than its lease: what it was given meanwhile has passed on, and is not used."""

from __future__ import annotations

import asyncio
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any, Self

import pytest

from slotline import Pool, RedisStore, Slot, configure
from slotline.pools import Parked, Room, Taken
from slotline.stores._scripts import load
from tests.harness.proxy import TcpProxy
from tests.harness.waiting import await_until

LEASE = 1.0
ACTOR = Path(__file__).with_name("pool_actor.py")

WAITER = """
import asyncio, sys
import slotline
slotline.configure(heartbeat_lease={lease})
pool = slotline.Pool("p", 1, slot_exp={slot_exp}, store=slotline.RedisStore({url!r}))
print("waiting", flush=True)
if {face!r} == "sync":
    slot = pool.sync.acquire(timeout=None)
    print(slot.fence, slot.lost, flush=True)
    sys.stdin.read()
else:
    async def main():
        async with pool.slot() as slot:
            print(slot.fence, slot.lost, flush=True)
            await asyncio.to_thread(sys.stdin.read)
    asyncio.run(main())
"""


@pytest.fixture
async def store(redis_url):
    configure(heartbeat_lease=LEASE)
    store = RedisStore(redis_url, timeout=10)
    yield store
    await store.close()


class Actor:
    """A process that does what it is told."""

    def __init__(self, url: str) -> None:
        command = [sys.executable, ACTOR, url, str(LEASE)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def do(self, what: str) -> Any:
        self.process.stdin.write(f"{what}\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def stop(self) -> None:
        os.kill(self.process.pid, signal.SIGSTOP)

    def go_on(self) -> None:
        os.kill(self.process.pid, signal.SIGCONT)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()


async def test_a_holder_that_stood_still_knows_at_once_that_it_holds_nothing(store, redis_url):
    configure(heartbeat_lease=30.0)
    pool = Pool("p", 1, slot_exp=None, store=store)
    with Actor(redis_url) as actor:
        fence = actor.do("acquire")
        actor.stop()
        mine = await pool.acquire(timeout=30)
        actor.go_on()
        assert actor.do("lost") is True
        assert actor.do("release") is False
    assert mine.fence > fence
    assert await pool.release(mine) is True


async def test_a_worker_that_stood_still_neither_keeps_nor_removes_what_another_runs_by_then(store, redis_url):
    configure(heartbeat_lease=30.0)
    pool, room = Pool("p", 1, slot_exp=None, store=store), Room(store, ["q"])
    held = await pool.acquire()
    assert await room.park(pool, b"message", lane="q") == Parked(0)
    await pool.release(held)
    found: list[Taken | None] = []

    async def look() -> bool:
        room.call("p")
        found.append(await room.take())
        return found[-1] is not None

    with Actor(redis_url) as actor:
        fence = actor.do("take")
        actor.stop()
        await await_until("its message can be taken", look, timeout=30)
        actor.go_on()
        assert actor.do("lost") is True
        assert actor.do("settle") is None
    taken = found[-1]
    assert (taken.message, taken.lost, taken.slot.lost) == (b"message", False, False)
    assert taken.slot.fence > fence
    assert isinstance(await room.park(pool, b"message", lane="q"), Parked), "it is in the room still"
    await taken.give_back()
    await look()
    assert found[-1].message == b"message"
    await found[-1].settle()
    await pool.release(found[-1].slot)
    room.close()


def says_something(process: subprocess.Popen[str], seconds: float) -> bool:
    return bool(select.select([process.stdout], [], [], seconds)[0])


@pytest.mark.parametrize(
    ("face", "slot_exp"), [("sync", None), ("async", LEASE / 2)], ids=["by its lease", "by slot_exp"]
)
async def test_a_slot_that_ended_before_its_waiter_heard_of_it_is_not_used(store, redis_url, face, slot_exp):
    configure(heartbeat_lease=30.0)  # here: only the waiter is to lose what it has
    pool = Pool("p", 1, slot_exp=None, store=store)
    held = await pool.acquire()
    source = WAITER.format(lease=LEASE, url=redis_url, face=face, slot_exp=slot_exp)
    process = subprocess.Popen([sys.executable, "-c", source], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:

        async def stands_in_line() -> bool:
            return (await pool.info()).waiting == 1

        await await_until("it waits", stands_in_line)
        os.kill(process.pid, signal.SIGSTOP)
        await pool.release(held)
        mine = await pool.acquire(timeout=30)  # the stopped one was given the slot, and has lost it
        assert process.stdout.readline() == "waiting\n"
        os.kill(process.pid, signal.SIGCONT)
        assert not await asyncio.to_thread(says_something, process, 0.5), "it believes that it holds the slot"
        await pool.release(mine)
        fence, lost = (await asyncio.to_thread(process.stdout.readline)).split()
        assert int(fence) > mine.fence
        assert lost == "False"
    finally:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()


@pytest.fixture
def through(redis_proxy):
    """A store whose answers the proxy can withhold for longer than the lease: as if this process stood still."""
    configure(heartbeat_lease=LEASE)
    store = RedisStore(redis_proxy.redis_url, timeout=10)
    yield store
    store.sync.close()


async def answered_late(
    proxy: TcpProxy, script: str, work: Coroutine[Any, Any, Any], meanwhile: Callable[[], Awaitable[None]]
) -> Any:
    """Do ``work``, whose ``script`` is answered when ``meanwhile`` is done."""
    held_back = proxy.break_at(load(script).sha, before=False, silently=True)
    task = asyncio.create_task(work)
    await await_until(f"the server has acted on {script}", held_back.happened.is_set)
    await meanwhile()
    proxy.resume()
    return await task


@pytest.mark.parametrize("timeout", [0.0, 30.0], ids=["at once", "in line"])
async def test_a_slot_whose_answer_comes_when_it_has_ended_is_asked_for_anew(through, redis_proxy, store, timeout):
    pool, other = Pool("p", 1, slot_exp=None, store=through), Pool("p", 1, slot_exp=None, store=store)
    await pool.release(await pool.acquire())  # the server knows the script by now
    between: list[Slot] = []

    async def pass_through_another() -> None:
        between.append(await other.acquire(timeout=30))
        await other.release(between[0])

    slot = await answered_late(redis_proxy, "pool_acquire", pool.acquire(timeout=timeout), pass_through_another)
    assert slot.fence > between[0].fence
    assert slot.lost is False
    assert await pool.release(slot) is True


async def test_a_message_whose_slot_has_ended_as_its_answer_comes_is_parked_behind_the_others(
    through, redis_proxy, store
):
    pool, other = Pool("p", 1, slot_exp=None, store=through), Pool("p", 1, slot_exp=None, store=store)
    room = Room(through, ["q"])
    await pool.release(await room.park(pool, b"warm", lane="q"))
    between: list[Slot] = []

    async def another_takes_it() -> None:
        between.append(await other.acquire(timeout=30))

    parking = room.park(pool, b"message", lane="q")
    assert await answered_late(redis_proxy, "pool_park", parking, another_takes_it) == Parked(0)
    await other.release(between[0])
    taken = await room.take()
    assert taken.message == b"message"
    await taken.settle()
    await pool.release(taken.slot)
    room.close()


async def test_a_message_that_another_worker_has_by_the_time_of_the_answer_is_not_run_here(through, redis_proxy, store):
    pool = Pool("p", 1, slot_exp=None, store=store)
    room, other = Room(through, ["q"]), Room(store, ["q"])
    slot = await room.park(pool, b"warm", lane="q")
    room.call("p")
    assert await room.take() is None
    await room.park(pool, b"message", lane="q")
    await pool.release(slot)
    found: list[Taken] = []

    async def another_takes_it() -> None:
        async def look() -> bool:
            other.call("p")
            found.append(await other.take())
            return found[-1] is not None

        await await_until("the claim has lapsed", look)

    room.call("p")
    assert await answered_late(redis_proxy, "room_take", room.take(), another_takes_it) is None
    assert found[-1].message == b"message"
    assert (found[-1].lost, found[-1].slot.lost) == (False, False)
    await found[-1].settle()
    assert await pool.release(found[-1].slot) is True
    for closing in (room, other):
        closing.close()


async def test_a_worker_knows_by_the_clock_that_its_claim_has_lapsed_before_any_thread_tells_it(
    store, redis_url, monkeypatch
):
    mine = RedisStore(redis_url)
    monkeypatch.setattr(mine.keeper, "_look_again", lambda: None)  # its thread has not gone on yet
    pool, room = Pool("p", 1, slot_exp=None, store=store), Room(mine, ["q"])
    held = await pool.acquire()
    assert await room.park(pool, b"message", lane="q") == Parked(0)
    await pool.release(held)
    room.call("p")
    begun = time.monotonic()
    taken = await room.take()
    await await_until("the lease has run out", lambda: time.monotonic() - begun > 2 * LEASE)
    assert (taken.slot.lost, taken.lost) == (True, True)
    await taken.give_back()
    assert taken.lost is True
    room.close()
    await mine.close()
