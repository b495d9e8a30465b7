"""The index by which a worker finds the pools that have messages in its lanes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import redis

from slotline import Pool, RedisStore
from slotline.pools import Room, Slot, room


def indexes(client: redis.Redis) -> dict[bytes, dict[bytes, float]]:
    keys = client.keys("*lane*:pools")
    return {key: dict(client.zrange(key, 0, -1, withscores=True)) for key in keys}


async def test_a_pool_that_nobody_has_parked_in_for_an_hour_is_forgotten_and_noted_anew(
    store: RedisStore, make_room: Callable[..., Room], redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    parking, idle, busy = make_room("q"), Pool("idle", 1, store=store), Pool("busy", 1, store=store)
    for pool in (idle, busy):
        slot = await parking.park(pool, b"first", lane="q")
        assert isinstance(slot, Slot)
        if pool is idle:
            await pool.release(slot)
        else:
            await parking.park(pool, b"second", lane="q")
    ((key, noted),) = indexes(redis_client).items()
    redis_client.zadd(key, {name: at - 2 * 3600_000 for name, at in noted.items()})
    late = make_room("q")
    assert await late.take() is None
    assert set(indexes(redis_client)[key]) == {b"busy"}
    monkeypatch.setattr(room, "_NOTE_AGAIN", 0.0)
    slot = await parking.park(idle, b"third", lane="q")
    assert isinstance(slot, Slot)
    assert set(indexes(redis_client)[key]) == {b"idle", b"busy"}


async def test_the_index_comes_back_after_a_server_lost_its_data(
    store: RedisStore, make_room: Callable[..., Room], redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "_NOTE_AGAIN", 0.0)
    parking, pool = make_room("q"), Pool("p", 1, store=store)
    await parking.park(pool, b"first", lane="q")
    redis_client.flushall()
    slot = await parking.park(pool, b"first", lane="q")
    await parking.park(pool, b"second", lane="q")
    assert isinstance(slot, Slot)
    await pool.release(slot)
    worker = make_room("q")
    taken = await worker.take()
    assert taken is not None
    assert taken.message == b"second"
    await pool.release(taken.slot)
    await taken.settle()


async def test_who_looks_through_a_lane_looks_into_no_pool_that_has_nothing(
    store: RedisStore, make_room: Callable[..., Room], redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is one for each tenant that had anything to wait for in the last hour."""
    monkeypatch.setattr(room, "_AT_ONCE", 7)
    parking, pools = make_room("q"), [Pool(f"tenant:{number}", 1, store=store) for number in range(40)]
    for pool in pools:
        slot = await parking.park(pool, b"first", lane="q")
        assert isinstance(slot, Slot)
        if pool in pools[19:21]:
            await parking.park(pool, b"second", lane="q")
        await pool.release(slot)
        if pool is pools[19]:
            done = await parking.take()
            assert done is not None
            await pool.release(done.slot)
            await done.settle()

    def scripts() -> int:
        return int(redis_client.info("commandstats")["cmdstat_evalsha"]["calls"])

    worker, before = make_room("q"), scripts()
    taken = await worker.take()
    assert taken is not None
    assert taken.message == b"second"
    assert await worker.take() is None
    assert scripts() - before <= 2, "the list of pools, and the one that has something"
    await pools[20].release(taken.slot)
    await taken.settle()
