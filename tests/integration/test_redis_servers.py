"""The Redis store where several servers share the work or take over: URLs, routes, redirections, doorbells."""

from __future__ import annotations

import asyncio

import pytest
import redis
import redis.asyncio
from redis.crc import key_slot

from slotline import InvalidOptionError, Pool, RedisStore, Settings, Slot, StoreError, StoreUnavailableError, configure
from slotline.pools import Room
from slotline.pools._wire import pool_keys
from slotline.stores import Command
from slotline.stores.url import read_url
from tests.harness.ports import free_port
from tests.harness.waiting import await_until, wait_until


@pytest.fixture
async def store(redis_cluster):
    store = RedisStore(redis_cluster.url)
    yield store
    await store.close()


def pools_by_server(store, cluster, count=60) -> dict[int, list[Pool]]:
    found: dict[int, list[Pool]] = {server.port: [] for server in cluster.masters}
    for number in range(count):
        pool = Pool(f"p{number}", 1, store=store)
        found[cluster.owner(pool_keys(store, pool.key)[0]).port].append(pool)
    assert all(found.values())
    return found


async def test_calls_made_together_travel_to_each_server_as_one_pipeline(store, redis_cluster):
    pools = [pool for found in pools_by_server(store, redis_cluster).values() for pool in found]
    slots = await asyncio.gather(*(pool.acquire() for pool in pools))
    await asyncio.gather(*(pool.release(slot) for pool, slot in zip(pools, slots, strict=True)))
    for server in redis_cluster.masters:
        with server.client() as client:
            assert client.info("clients")["connected_clients"] <= 8


@pytest.mark.parametrize("face", ["async", "sync"])
async def test_scripts_are_loaded_on_every_server_and_again_after_one_has_lost_them(store, redis_cluster, face):
    slots = []
    for pools in pools_by_server(store, redis_cluster).values():
        for pool in pools[:2]:
            slots.append(await (pool.acquire() if face == "async" else asyncio.to_thread(pool.sync.acquire)))
    for server in redis_cluster.masters:
        with server.client() as client:
            client.script_flush()
    sizes = [Pool(slot.key, 1, store=store) for slot in slots]
    assert [await (p.size() if face == "async" else asyncio.to_thread(p.sync.size)) for p in sizes] == [1] * len(slots)


async def test_keys_of_several_hash_slots_in_one_command_are_refused_with_the_reason(store):
    with pytest.raises(StoreError, match=r"CROSSSLOT.*several hash slots"):
        await store.execute(Command("cache_claim", ("a", "b", "c"), ("token", 1000, "", 0)))
    with pytest.raises(StoreError, match="CROSSSLOT"):
        await asyncio.to_thread(store.sync.execute, Command("UNLINK", ("a", "b")))


@pytest.mark.parametrize("face", ["async", "sync"])
async def test_calls_go_on_while_their_hash_slot_moves_and_afterwards(redis_cluster, face):
    store = RedisStore(redis_cluster.url, retries=30)

    async def run(command: Command) -> object:
        return await (store.execute(command) if face == "async" else asyncio.to_thread(store.sync.execute, command))

    async def take() -> Slot:
        return await (pool.acquire() if face == "async" else asyncio.to_thread(pool.sync.acquire))

    pool = Pool("moving", 3, store=store)
    key = pool_keys(store, pool.key)[0].replace(b":slots", b":tag")
    source = redis_cluster.owner(key)
    target = next(server for server in redis_cluster.masters if server is not source)
    first = await take()
    slot = redis_cluster.begin_move(key, target)
    assert await run(Command("cache_tag", (key,), ("entry", 60_000))) == 1  # the source sends it on: ASK
    with target.client() as client:
        assert client.execute_command("CLUSTER", "COUNTKEYSINSLOT", slot) == 1
    waiting = asyncio.create_task(take())  # some of its keys are here and some there: TRYAGAIN
    done, _ = await asyncio.wait([waiting], timeout=0.2)
    assert not done
    redis_cluster.end_move(slot, source, target)
    second = await waiting  # the source says that the slot has moved for good: MOVED
    assert second.fence > first.fence
    assert await pool.size() == 2
    assert redis_cluster.owner(key) is target
    assert await pool.release(first) is True
    assert await pool.release(second) is True
    await store.close()


async def test_waiters_are_called_by_the_server_that_their_pool_has_moved_to(store, redis_cluster):
    pool = Pool("moving too", 1, store=store)
    held = await pool.acquire()
    waiter = asyncio.create_task(pool.acquire(timeout=60))

    async def stands() -> bool:
        return (await pool.info()).waiting == 1

    await await_until("it waits", stands)
    key = pool_keys(store, pool.key)[0]
    source = redis_cluster.owner(key)
    target = next(server for server in redis_cluster.masters if server is not source)
    redis_cluster.end_move(redis_cluster.begin_move(key, target), source, target)
    await pool.release(held)
    assert (await asyncio.wait_for(waiter, 5)).fence > held.fence  # it looks again only after 7 s


async def test_a_lane_is_called_whichever_server_its_pools_are_on(store, redis_cluster):
    called = asyncio.Event()
    loop = asyncio.get_running_loop()
    room = Room(store, ["q"], on_call=lambda: loop.call_soon_threadsafe(called.set))
    try:
        for pools in pools_by_server(store, redis_cluster).values():
            pool = pools[0]
            slot = await pool.acquire()
            assert await room.take() is None
            await room.park(pool, pool.key.encode(), lane="q")
            called.clear()
            await pool.release(slot)
            await asyncio.wait_for(called.wait(), 5)
            taken = await room.take()
            while taken is None:
                taken = await room.take()
            assert taken.message == pool.key.encode()
            await taken.settle()
            await taken.pool.release(taken.slot)
    finally:
        room.close()


def test_a_store_on_one_of_its_servers_knows_all_and_leaves_nothing_when_it_is_closed(redis_cluster):
    store = RedisStore(redis_cluster.url.partition(",")[0])
    pools = [Pool(f"p{number}", 1, store=store) for number in range(20)]
    for pool in pools:
        with pool.slot(timeout=5):
            pass
    store.sync.close()
    names = {key_slot(pool_keys(store, pool.key)[0]) * 3 // 16384 for pool in pools}
    assert names == {0, 1, 2}


async def test_servers_that_cannot_be_asked_are_named_without_passwords():
    url = f"redis+cluster://me:secret@127.0.0.1:{free_port()}"
    store = RedisStore(url, retries=1)
    with pytest.raises(StoreUnavailableError, match="says where writes go") as caught:
        await Pool("p", 1, store=store).acquire()
    assert "secret" not in str(caught.value)
    with pytest.raises(StoreUnavailableError):
        await asyncio.to_thread(Pool("p", 1, store=store).sync.acquire, timeout=5)
    await store.close()


async def test_sentinels_lead_to_the_master_with_both_faces(own_sentinels):
    store = RedisStore(own_sentinels.url)
    pool = Pool("p", 1, store=store)
    async with pool:
        assert await asyncio.to_thread(pool.sync.size) == 1
    with own_sentinels.first.client() as client:
        assert client.exists(pool_keys(store, "p")[2])
    with own_sentinels.second.client() as client:
        wait_until("the replica has it", lambda: client.exists(pool_keys(store, "p")[2]))
    await store.close()
    nobody = RedisStore(own_sentinels.url.replace("the-master", "another"), retries=0)
    with pytest.raises(StoreUnavailableError, match="says where writes go"):
        await asyncio.to_thread(nobody.sync.execute, Command("PING", ()))
    nobody.sync.close()


def test_urls_are_taken_apart():
    servers = read_url(
        "url", "rediss+sentinel://me:p%40ss@a,[::1]:26380/my%20service/3?sentinel_password=s/x&ssl_cert_reqs=none"
    )
    assert (servers.kind, servers.nodes, servers.service) == ("sentinel", ("a:26379", "[::1]:26380"), "my service")
    assert servers.url("b:6379") == "rediss://me:p%40ss@b:6379/3?ssl_cert_reqs=none"
    assert servers.sentinel_url("a:26379") == "rediss://:s%2Fx@a:26379/?ssl_cert_reqs=none"
    servers = read_url("url", "redis+cluster://a:1,b")
    assert (servers.kind, servers.nodes, servers.url("c:2")) == ("cluster", ("a:1", "b:6379"), "redis://c:2/")


@pytest.mark.parametrize(
    "url",
    [
        "redis+sentinel://a:26379",
        "redis+sentinel://a:26379/service/x",
        "redis+sentinel:///service",
        "redis+sentinel://a:0/service",
        "redis+sentinel://a:26379,/service",
        "redis+sentinel://a:99999/service",
        "redis+cluster://",
        "redis+cluster://a:6379/3",
        "redis+cluster://a:6379,b:x",
        "redis+ring://a:6379",
        "unix+cluster://a:6379",
        "redis://a:6379,b:6379",
    ],
)
def test_a_malformed_url_of_several_servers_is_refused_with_what_is_allowed(url, monkeypatch):
    hidden = url.replace("://", "://me:secret@", 1)
    for build in (lambda: RedisStore(hidden), lambda: configure(redis_url=hidden)):
        with pytest.raises(InvalidOptionError, match=r"redis(\+|://)") as caught:
            build()
        assert "secret" not in str(caught.value)
    monkeypatch.setenv("SLOTLINE_REDIS_URL", hidden)
    with pytest.raises(InvalidOptionError, match="redis_url"):
        configure()


@pytest.mark.parametrize("url", ["redis+sentinel://a/service", "redis+cluster://a,b,c", "rediss+cluster://me:p@a"])
def test_settings_take_urls_of_several_servers(url, monkeypatch):
    monkeypatch.setenv("SLOTLINE_REDIS_URL", url)
    assert configure() == Settings(redis_url=url)


def test_a_client_that_a_sentinel_manages_or_of_a_cluster_is_refused_for_the_url(redis_cluster, own_sentinels):
    managed = redis.sentinel.Sentinel([("127.0.0.1", own_sentinels.sentinels[0].port)]).master_for("the-master")
    first = redis_cluster.masters[0]
    clustered = redis.RedisCluster(host=first.host, port=first.port)
    for client in (managed, clustered):
        with pytest.raises(InvalidOptionError, match=r"redis\+sentinel://"):
            RedisStore(client)
        client.close()
