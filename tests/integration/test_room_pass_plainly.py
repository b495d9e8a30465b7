"""A slot that passes on the short way passes on as by the libraries: the same answer, and the same left behind."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import Any

import pytest

from slotline import Limits, Pool, RedisStore, Slot
from slotline.pools import Place, Room
from slotline.pools._tokens import lane_id_of
from slotline.pools._wire import pool_keys
from slotline.stores._scripts import load
from tests.harness.waiting import wait_until

LIBRARIES = load("room_pass").text.replace("local plain = pass_plainly()", "local plain")
SHORT_WAY = load("lib_pass_plainly").text + "return pass_plainly() or 'more'"
LEASE_MS = 30_000
HOURS_MS = 3_600_000
TIME = re.compile(rb"\d{13,16}")


def full(store: RedisStore, size: int = 2, **options: Any) -> tuple[Pool, Room, list[Slot]]:
    """Return a pool whose slots are all held, a room with the lane "q", and the slots."""
    pool = Pool("p", size, store=store, **{"slot_exp": None, **options})
    return pool, Room(store, ["q"]), [pool.sync.acquire(owner="first") for _ in range(size)]


def park(room: Room, pool: Any, *messages: bytes, **share: Any) -> None:
    for message in messages:
        room.sync.park(pool, message, lane="q", owner="parks", **share)


def left_behind(client: Any) -> dict[bytes, Any]:
    """Return all that is in the server, but for the times."""
    found: dict[bytes, Any] = {}
    for key in client.scan_iter():
        if client.type(key) == b"hash":
            content: Any = {field: TIME.sub(b"time", value) for field, value in client.hgetall(key).items()}
        else:
            content = {
                member: "time" if score > 10**9 else score
                for member, score in client.zrange(key, 0, -1, withscores=True)
            }
        found[key] = content, round(client.pttl(key) / HOURS_MS)
    return found


def passed(store: RedisStore, text: str, freed: str) -> tuple[Any, dict[bytes, Any]]:
    """Pass a slot on by a script, and return its answer and what it leaves behind; then everything is as before."""
    client, keys = store.client(), pool_keys(store, "p")
    before = [(key, client.pttl(key), client.dump(key)) for key in client.scan_iter()]
    reply = client.eval(text, len(keys), *keys, "run", LEASE_MS, freed, lane_id_of("q"))
    behind = left_behind(client)
    client.flushdb()
    for key, ttl, dumped in before:
        client.restore(key, ttl, dumped)
    return reply, behind


def comparable(reply: Any) -> Any:
    """Return an answer without its times, which two calls do not agree on."""
    if not isinstance(reply, list) or reply[0] != 1:
        return reply
    _, fence, life, *message, look = reply
    return [TIME.sub(b"time", fence), round(life / 1000), *message, round(look / 1000)]


def goes_the_short_way(store: RedisStore, freed: str) -> tuple[Any, dict[bytes, Any]]:
    def look() -> tuple[Any, dict[bytes, Any]] | None:
        found = passed(store, SHORT_WAY, freed)
        return None if found[0] == b"more" else found  # now and then the libraries are asked all the same

    return wait_until("it goes the short way", look, 20)


@pytest.mark.parametrize("options", [{}, {"slot_exp": 20}, {"slot_exp": 90}], ids=["no cap", "a short cap", "a cap"])
def test_what_most_slots_do_is_the_same_either_way(store: RedisStore, options: dict[str, Any]) -> None:
    pool, room, (held, _) = full(store, **options)
    park(room, pool, b"a", b"b|b\xff", b"c")
    short = goes_the_short_way(store, held.token)
    whole = passed(store, LIBRARIES, held.token)
    assert comparable(short[0]) == comparable(whole[0])
    assert short[1] == whole[1]
    taken = room.sync.pass_on(pool, held)
    assert taken is not None
    assert (taken.message, taken.slot.owner) == (b"a", "parks")
    assert goes_the_short_way(store, taken.slot.token)[0][7] == b"b|b\xff"


def two_lanes(store: RedisStore) -> str:
    pool, room, (held, _) = full(store)
    room.sync.park(pool, b"other", lane="r")
    park(room, pool, b"a", b"b")
    return held.token


def a_caller(store: RedisStore) -> str:
    pool, room, (held, _) = full(store)
    Place(pool, owner="waits", on_grant=lambda slot: None, on_nudge=lambda: None).sync.enter()
    park(room, pool, b"a", b"b")
    return held.token


def of_pool(**options: Any) -> Callable[[RedisStore], str]:
    def made(store: RedisStore) -> str:
        pool, room, (held, *_) = full(store, **options)
        park(room, pool, b"a", b"b")
        return held.token

    return made


def of_message(**share: Any) -> Callable[[RedisStore], str]:
    def made(store: RedisStore) -> str:
        pool, room, (held, _) = full(store)
        park(room, pool, b"a", b"b", **share)
        return held.token

    return made


def the_last_one(store: RedisStore) -> str:
    pool, room, (held, _) = full(store)
    park(room, pool, b"a")
    return held.token


def several(store: RedisStore) -> str:
    pool, room, (held, _) = full(store)
    park(room, Limits(pool, Pool("o", 1, slot_exp=None, store=store)), b"a", b"b")
    return held.token


def paused(store: RedisStore) -> str:
    pool, room, (held, _) = full(store)
    park(room, pool, b"a", b"b")
    pool.sync.pause()
    return held.token


def more_slots(store: RedisStore) -> str:
    pool, room, (held, _) = full(store)
    park(room, pool, b"a", b"b")
    pool.sync.resize(3)
    return held.token


def fewer_slots(store: RedisStore) -> str:
    pool, room, (held, _) = full(store)
    park(room, pool, b"a", b"b")
    pool.sync.resize(1)
    return held.token


def a_lapsed_claim(store: RedisStore) -> str:
    pool, room, (held, other) = full(store)
    park(room, pool, b"a", b"b", b"c")
    taken = room.sync.pass_on(pool, other)
    assert taken is not None
    store.client().zadd(pool.keys[3], {taken._digest: 1}, xx=True)
    return held.token


def an_expired_slot(store: RedisStore) -> str:
    pool, room, (held, other) = full(store)
    park(room, pool, b"a", b"b")
    store.client().zadd(pool.keys[0], {other.token: 1})
    return held.token


def no_slot(store: RedisStore) -> str:
    pool, room, _ = full(store)
    park(room, pool, b"a", b"b")
    return "nobody's"


OTHERWISE = {
    "another lane": two_lanes,
    "a caller": a_caller,
    "a rate": of_pool(rate="1000/s", burst=10),
    "a share": of_pool(max_per_partition=1),
    "a partition": of_message(partition="tenant"),
    "a weight": of_message(weight=2),
    "the last message": the_last_one,
    "several pools": several,
    "a pool that stands still": paused,
    "more slots by now": more_slots,
    "fewer slots by now": fewer_slots,
    "a claim that has lapsed": a_lapsed_claim,
    "a slot that has expired": an_expired_slot,
    "a slot that was given back before": no_slot,
}


@pytest.mark.parametrize("made", OTHERWISE.values(), ids=OTHERWISE)
def test_whatever_has_more_to_decide_is_left_to_the_libraries(
    store: RedisStore, made: Callable[[RedisStore], str]
) -> None:
    freed = made(store)
    before = left_behind(store.client())
    until = time.monotonic() + 0.05
    while time.monotonic() < until:
        reply, behind = passed(store, SHORT_WAY, freed)
        assert (reply, behind) == (b"more", before)
