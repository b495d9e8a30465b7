"""The Redis store on a real server: connections, coalescing, cancellation, loops, forks and errors."""

from __future__ import annotations

import asyncio
import gc
import os
import threading

import pytest
import redis
import redis.asyncio

from slotline import InvalidOptionError, Pool, RedisStore, StoreError, StoreUnavailableError
from slotline.stores import Command
from slotline.stores._wires import Wires
from tests.harness.ports import free_port
from tests.harness.waiting import await_until, wait_until


async def test_a_slot_costs_one_command_to_take_and_one_to_give_back(store, redis_server):
    pool = Pool("p", 1, store=store)
    await pool.release(await pool.acquire())
    with redis_server.recording() as sent:
        for _ in range(10):
            await pool.release(await pool.acquire())
    assert [command.name for command in sent] == ["evalsha"] * 20


async def test_a_hold_after_a_wait_costs_two_commands_too(store, redis_server):
    pool = Pool("p", 4, store=store)

    async def use() -> None:
        async with pool.slot():
            await asyncio.sleep(0.005)

    await asyncio.gather(*(use() for _ in range(8)))
    with redis_server.recording() as sent:
        await asyncio.gather(*(use() for _ in range(64)))
    scripts = [command for command in sent if command.name == "evalsha"]
    assert 64 * 2 <= len(scripts) <= 64 * 2.1


async def test_a_thousand_concurrent_callers_share_few_connections(store, redis_client):
    before = redis_client.info("clients")["connected_clients"]
    pool = Pool("p", 1000, store=store)
    slots = await asyncio.gather(*(pool.acquire() for _ in range(1000)))
    assert await pool.size() == 1000
    assert redis_client.info("clients")["connected_clients"] - before <= 6
    await asyncio.gather(*map(pool.release, slots))
    assert await pool.size() == 0


async def test_a_thousand_waiters_are_all_served(store):
    pool = Pool("p", 50, store=store)

    async def use() -> int:
        async with pool.slot(timeout=60) as slot:
            return slot.fence

    fences = await asyncio.gather(*(use() for _ in range(1000)))
    assert len(set(fences)) == 1000
    assert await pool.size() == 0


async def test_threads_share_few_connections(store, redis_client):
    pool = Pool("p", 100, store=store)
    before = redis_client.info("clients")["connected_clients"]
    failures: list[BaseException] = []

    def use() -> None:
        try:
            with pool.slot(timeout=30):
                pass
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=use) for _ in range(200)]
    for thread in threads:
        thread.start()
    await asyncio.to_thread(lambda: [thread.join() for thread in threads])
    assert failures == []
    assert redis_client.info("clients")["connected_clients"] - before <= 55


async def test_cancelling_callers_disturbs_nobody_who_travels_with_them(store):
    ping = Command("ECHO", ("x",))

    async def ask() -> bytes:
        return await store.execute(ping)

    tasks = [asyncio.create_task(ask()) for _ in range(400)]
    await asyncio.sleep(0)
    for task in tasks[::2]:
        task.cancel()
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(outcome, asyncio.CancelledError) for outcome in outcomes[::2])
    assert outcomes[1::2] == [b"x"] * 200


async def test_a_lone_caller_that_is_cancelled_leaves_nobody_its_reply(store, redis_client):
    before = redis_client.info("clients")["connected_clients"]
    cancelled = 0
    for number in range(300):
        lone = asyncio.create_task(store.execute(Command("ECHO", (f"{number}",))))
        for _ in range(number % 12):  # at every step of the way
            await asyncio.sleep(0)
        lone.cancel()
        answers = await asyncio.gather(*(store.execute(Command("ECHO", (f"{number} {at}",))) for at in range(3)))
        assert answers == [f"{number} {at}".encode() for at in range(3)]
        (outcome,) = await asyncio.gather(lone, return_exceptions=True)
        cancelled += isinstance(outcome, asyncio.CancelledError)
        assert lone.cancelled() or outcome == f"{number}".encode()
    assert cancelled
    await await_until(
        "few connections are open", lambda: redis_client.info("clients")["connected_clients"] - before <= 3
    )


async def test_scripts_that_the_server_forgot_are_sent_again(store, redis_client):
    pool = Pool("p", 2, store=store)
    await pool.acquire()
    redis_client.script_flush()
    await asyncio.to_thread(pool.sync.acquire)
    redis_client.script_flush()
    assert await pool.size() == 2


def test_each_event_loop_has_connections_of_its_own_and_closes_them_with_the_loop(redis_url, redis_client):
    store = RedisStore(redis_url)
    pool = Pool("p", 5, store=store)

    async def use() -> None:
        async with pool:
            pass

    before = redis_client.info("clients")["connected_clients"]
    for _ in range(3):
        asyncio.run(use())
    assert redis_client.info("clients")["connected_clients"] == before
    store.sync.close()


def test_a_forked_child_makes_connections_of_its_own(redis_url):
    store = RedisStore(redis_url)
    pool = Pool("p", 3, store=store)
    held = pool.sync.acquire()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            with pool.slot(timeout=5) as slot:
                status = 0 if slot.token.split("-")[0] != held.token.split("-")[0] and pool.sync.size() == 2 else 2
            asyncio.run(pool.size())
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert pool.sync.size() == 1
    assert pool.sync.release(held) is True
    store.sync.close()


@pytest.mark.parametrize("kind", [redis.Redis, redis.asyncio.Redis])
async def test_a_client_of_the_users_own_lends_its_options(kind, redis_url):
    client = kind.from_url(redis_url, decode_responses=True)
    store = RedisStore(client)
    async with Pool("p", 1, store=store) as slot:
        assert slot.fence > 0
    with Pool("p", 1, store=store):
        pass
    await store.close()


@pytest.mark.parametrize(
    "url",
    [
        "",
        "localhost",
        "http://localhost",
        "redis://",
        "redis://host:port",
        "redis://host:99999",
        "redis://h/x",
        5,
        None,
        "unix://",
    ],
)
def test_a_malformed_url_is_refused_at_construction(url):
    with pytest.raises(InvalidOptionError, match="url"):
        RedisStore(url)


def logged(caplog) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "slotline.stores"]


@pytest.mark.parametrize("option", ["health_check_interval=1", "socket_timeout=0.000001", "max_connections=1"])
async def test_what_the_store_decides_itself_is_left_out_of_a_url_with_a_warning(redis_url, caplog, option):
    store = RedisStore(f"{redis_url}?{option}&client_name=crm")
    (said,) = logged(caplog)
    assert said.startswith(f"redis-py's {option.partition('=')[0]} is left out for redis://")
    slots = [Pool(f"p{number}", 1, store=store).sync.acquire() for number in range(2)]
    assert slots[0].fence != slots[1].fence
    assert store.sync.execute(Command("CLIENT", ("GETNAME",))) == b"crm"
    await Pool("q", 1, store=store).acquire()
    await store.close()


@pytest.mark.parametrize(
    "url", ["unix:///s?socket_timeout=1", "redis+cluster://h?protocol=3", "redis+sentinel://h/m?timeout=1"]
)
def test_a_url_of_any_kind_may_say_what_is_left_out(url, caplog):
    RedisStore(url)
    assert len(logged(caplog)) == 1


async def test_what_a_clients_pool_tells_its_own_connections_is_left_out(redis_url):
    theirs = redis.Redis.from_url(redis_url)
    # As redis-py 7 and 8.0 do for RESP3, by names that change from one to the next.
    theirs.connection_pool.connection_kwargs.update(maint_notifications_of_tomorrow=None, orig_of_tomorrow=None)
    store = RedisStore(theirs)
    async with Pool("p", 1, store=store):
        assert store.sync.execute(Command("ECHO", ("still here",))) == b"still here"
    await store.close()
    theirs.connection_pool.connection_kwargs = {}
    theirs.close()


async def test_a_client_that_looks_at_its_connections_in_its_own_way_is_taken_with_a_warning(redis_url, caplog):
    store = RedisStore(redis.Redis.from_url(redis_url, health_check_interval=30))
    assert logged(caplog)[0].startswith("redis-py's health_check_interval is left out for redis://")
    assert await Pool("p", 1, store=store).acquire()
    RedisStore(redis.Redis.from_url(redis_url))
    assert len(logged(caplog)) == 1
    await store.close()


@pytest.mark.parametrize("url", ["redis://h?nonsense=1", "redis://h?db=x", "redis+cluster://h?nonsense=1"])
def test_a_url_with_a_parameter_that_nobody_knows_is_refused_at_construction(url):
    with pytest.raises(InvalidOptionError, match="url"):
        RedisStore(url)


def test_credentials_are_never_shown():
    store = RedisStore("redis://ann:secret@127.0.0.1:1/0?client_name=x", retries=0, timeout=0.5)
    with pytest.raises(StoreUnavailableError) as caught:
        store.sync.execute(Command("PING", ()))
    assert "redis://127.0.0.1:1/0" in str(caught.value)
    assert "secret" not in str(caught.value) + repr(store)
    with pytest.raises(InvalidOptionError) as refused:
        RedisStore("redis://ann:secret@host:port")
    assert "secret" not in str(refused.value)


async def test_an_unreachable_server_is_unavailable_and_never_full():
    store = RedisStore(f"redis://127.0.0.1:{free_port()}", retries=1, timeout=0.5)
    pool = Pool("p", 1, store=store)
    for attempt in (pool.acquire(), pool.acquire(timeout=2), pool.size()):
        with pytest.raises(StoreUnavailableError, match="unavailable"):
            await attempt
    with pytest.raises(StoreUnavailableError):
        await asyncio.to_thread(pool.sync.acquire)
    await store.close()


async def test_a_refused_command_is_an_error_of_its_own(store, redis_client):
    redis_client.set("text", "x", ex=60)
    for error in (
        (await store.execute_many([Command("LPUSH", ("text",), ("y",)), Command("GET", ("text",))])),
        await asyncio.to_thread(
            store.sync.execute_many, [Command("LPUSH", ("text",), ("y",)), Command("GET", ("text",))]
        ),
    ):
        assert isinstance(error[0], StoreError)
        assert not isinstance(error[0], StoreUnavailableError)
        assert error[1] == b"x"


async def test_a_full_server_is_unavailable_and_not_a_wrong_answer(own_redis):
    store = RedisStore(own_redis.url, retries=0)
    with own_redis.client() as client:
        client.config_set("maxmemory", 1)
        with pytest.raises(StoreUnavailableError):
            await Pool("p", 1, store=store).acquire()
        client.config_set("maxmemory", 0)
    await store.close()


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("timeout", 0),
        ("timeout", float("nan")),
        ("timeout", True),
        ("retries", -1),
        ("retries", 1.5),
        ("max_connections", 0),
        ("prefix", ""),
        ("prefix", "a{b"),
        ("prefix", "a|b"),
    ],
)
def test_impossible_options_are_refused_by_name(option, value):
    with pytest.raises(InvalidOptionError, match=f"^{option}="):
        RedisStore("redis://localhost", **{option: value})


def test_an_event_loop_that_has_ended_leaves_nothing_in_the_store(redis_url):
    store = RedisStore(redis_url)

    async def use() -> None:
        await store.execute(Command("PING", ()))

    for _ in range(3):
        asyncio.run(use())
    assert not store._loops
    store.sync.close()


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # Python's own, about what such a loop leaves behind
def test_event_loops_that_are_closed_without_their_generators_do_not_pile_up(redis_url, redis_client):
    store = RedisStore(redis_url)
    before = len(redis_client.client_list())

    async def listen() -> None:
        await store.loop_wakeups.listen()

    def use_a_loop() -> None:
        loop = asyncio.new_event_loop()
        loop.run_until_complete(store.execute(Command("PING", ())))
        loop.run_until_complete(listen())
        loop.close()

    for _ in range(5):
        use_a_loop()
    gc.collect()
    assert len(store._loops) == 1
    wait_until("the connections of the others are closed", lambda: len(redis_client.client_list()) <= before + 2)
    asyncio.run(store.execute(Command("PING", ())))
    gc.collect()
    assert not store._loops
    store.sync.close()


async def test_one_callers_text_that_cannot_be_sent_is_nobody_elses_error(store):
    pool = Pool("p", 5, store=store)
    owners = ["ann", "\ud800", "bob"]
    first, unsendable, last = await asyncio.gather(
        *(pool.acquire(owner=owner) for owner in owners), return_exceptions=True
    )
    assert isinstance(unsendable, UnicodeError)
    assert {holder.owner for holder in (await pool.info()).holders} == {"ann", "bob"}
    await pool.release(first)
    await pool.release(last)


async def test_a_slot_is_given_back_although_its_caller_was_cancelled_before_the_question_was_sent(store, monkeypatch):
    asking, may_go = asyncio.Event(), asyncio.Event()
    exchange = Wires.exchange

    async def slow(*args):
        asking.set()
        await may_go.wait()
        return await exchange(*args)

    monkeypatch.setattr(Wires, "exchange", slow)
    pool = Pool("p", 1, store=store)
    caller = asyncio.create_task(pool.acquire())
    await asking.wait()
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    await await_until("the release is sent", lambda: not store.keeper._later and not store.keeper._senders)
    may_go.set()
    await await_until("the question is answered", lambda: not store._links()._coalescers[""]._flights)
    await await_until("nobody holds the slot", lambda: pool.sync.size() == 0)
