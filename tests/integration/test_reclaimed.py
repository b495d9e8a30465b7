"""What nobody has renewed is counted by the one whose command has the store take it back, whichever command that is."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

import pytest

from slotline import Limits, Pool, Slot
from slotline.pools import Parked, Room, Taken
from slotline.pools.limit import Limit
from slotline.pools.place import Place
from slotline.stores import Command
from tests.harness.fixtures_faces import Call
from tests.harness.redis_server import RedisServer
from tests.harness.waiting import wait_until


class Scene(NamedTuple):
    """A pool of two slots: one that is held, and one that lapses."""

    pool: Pool
    held: Slot
    room: Room
    call: Call


def lapsed(figures: Any) -> int:
    return figures.counts["lease_reclaimed", "lapsed"]


def grant_to_the_dead(limit: Limit[Any]) -> None:
    """Have the store grant what nobody renews."""
    assert limit.store.sync.execute(limit.acquire_command(Place(limit), 0, ""))[0] == 1


def lapse(pool: Pool, *, all_but: str = "") -> None:
    """Let all leases of a pool's slots, and the claims on its messages, end now."""
    execute = pool.store.sync.execute
    for key in (pool.keys[0], pool.keys[3]):
        for one in execute(Command("ZRANGE", (key,), (0, -1))):
            if one.decode() != all_but:
                execute(Command("ZADD", (key,), ("XX", 1, one)))


async def _stand_in_line(scene: Scene) -> None:
    assert await Place(scene.pool, on_grant=lambda _: None).enter() is None


async def _park(scene: Scene) -> None:
    assert isinstance(await scene.room.park(scene.pool, b"parked", lane="q"), Parked)


async def _pause(scene: Scene) -> None:
    assert await scene.pool.pause()


async def _nothing(_: Scene) -> None:
    return


async def _acquire_of_several(scene: Scene) -> Any:
    return await scene.call(Limits(scene.pool, Pool("another", 1, store=scene.pool.store)), "acquire")


COMMANDS: dict[str, tuple[Callable[[Scene], Awaitable[None]], Callable[[Scene], Awaitable[Any]], Any]] = {
    "acquire": (_nothing, lambda scene: scene.call(scene.pool, "acquire"), Slot),
    "acquire, ready to wait": (_nothing, lambda scene: scene.call(scene.pool, "acquire", timeout=9), Slot),
    "acquire, of several pools": (_nothing, _acquire_of_several, Slot),
    "park": (_nothing, lambda scene: scene.call(scene.room, "park", scene.pool, b"message", lane="q"), Slot),
    "release": (_stand_in_line, lambda scene: scene.call(scene.pool, "release", scene.held), True),
    "pass on": (_park, lambda scene: scene.call(scene.room, "pass_on", scene.pool, scene.held), Taken),
    "take": (_park, lambda scene: scene.call(scene.room, "take"), Taken),
    "resize": (_nothing, lambda scene: scene.call(scene.pool, "resize", 3), 2),
    "resume": (_pause, lambda scene: scene.call(scene.pool, "resume"), True),
    "evict": (_nothing, lambda scene: scene.call(scene.pool, "evict", "nobody"), None),
}


@pytest.mark.parametrize("name", COMMANDS)
async def test_the_command_that_takes_a_slot_back_counts_it_once_and_has_its_own_answer(
    figures, store, room, call, name
):
    prepare, command, answer = COMMANDS[name]
    pool = Pool("p", 2, store=store)
    scene = Scene(pool, await pool.acquire(), room, call)
    grant_to_the_dead(pool)
    await prepare(scene)
    lapse(pool, all_but=scene.held.token)
    answered = await command(scene)
    assert isinstance(answered, answer) if isinstance(answer, type) else answered == answer
    assert lapsed(figures) == 1
    await pool.resize(9)
    assert lapsed(figures) == 1


async def test_of_several_pools_each_slot_counts(figures, store, call):
    limits = Limits(*(Pool(key, 1, store=store, group="g") for key in "abc"))
    grant_to_the_dead(limits)
    for pool in limits.pools:
        lapse(pool)
    assert isinstance(await call(limits, "acquire"), Slot)
    assert lapsed(figures) == 3


async def test_a_message_of_a_dead_worker_counts_with_its_slot(figures, store, room, call):
    pool = Pool("p", 1, store=store)
    slot = await pool.acquire()
    assert isinstance(await room.park(pool, b"message", lane="q"), Parked)
    await pool.release(slot)
    taken = await store.execute(Command("room_take", pool.keys, ("dead", 30_000, *room.lanes)))
    assert taken[0] == 1
    lapse(pool)
    room.call(pool.name)
    again = await call(room, "take")
    assert again.message == b"message"
    assert lapsed(figures) == 2
    await again.settle()
    await pool.release(again.slot)
    assert lapsed(figures) == 2


async def test_a_release_in_the_background_counts_as_well(figures, store):
    pool = Pool("p", 2, store=store)
    held = await pool.acquire()
    grant_to_the_dead(pool)
    assert await Place(pool, on_grant=lambda _: None).enter() is None
    lapse(pool, all_but=held.token)
    store.settle(pool.release_command(held.token), 9)
    wait_until("it is counted", lambda: lapsed(figures))
    assert lapsed(figures) == 1


async def test_what_has_come_to_the_end_that_slot_exp_set_has_not_lapsed(figures, store):
    pool = Pool("p", 1, slot_exp=0.1, store=store)
    grant_to_the_dead(pool)
    wait_until("it has ended", lambda: pool.sync.size() == 0)
    await pool.acquire()
    assert lapsed(figures) == 0


async def test_what_was_only_kept_for_one_who_wants_other_pools_too_has_not_lapsed(figures, store):
    one, other = Pool("a", 1, store=store), Pool("b", 1, store=store)
    slots, told = [await one.acquire(), await other.acquire()], []
    place = Place(Limits(one, other), on_grant=told.append, on_nudge=lambda: told.append("ask"))
    assert await place.enter() is None
    await one.release(slots[0])
    wait_until("it is told to ask for both", lambda: told == ["ask"])
    lapse(one)
    await one.acquire()
    assert lapsed(figures) == 0


async def test_it_costs_no_command(figures, store, redis_server: RedisServer):
    pool = Pool("p", 1, store=store)
    await pool.release(await pool.acquire())
    for _ in range(2):  # and the server knows the script
        grant_to_the_dead(pool)
        lapse(pool)
        with redis_server.counting() as counted:
            slot = await pool.acquire()
        await pool.release(slot)
    assert counted["evalsha"] + counted["eval"] == 1
    assert lapsed(figures) == 2
