"""The doorbells on a real server, when something goes wrong at a bad moment."""

from __future__ import annotations

import threading

import pytest
import redis

from slotline import MemoryStore, Pool, RedisStore, Slot, StoreUnavailableError
from slotline.pools.place import Place
from slotline.stores import _hearing
from tests.harness.ports import free_port
from tests.harness.waiting import wait_until


def test_who_cannot_tell_the_thread_of_a_new_channel_is_heard_at_its_next_check(store, monkeypatch):
    monkeypatch.setattr(_hearing, "CHECK", 0.2)
    hub, connect = store.wakeups, store.wakeups._connect
    hub.bell("token")
    hub.listen_blocking()

    def refused() -> redis.Redis:
        raise redis.ConnectionError("max number of clients reached")

    monkeypatch.setattr(hub, "_connect", refused)
    hub.join("shared", lambda message: None)
    monkeypatch.setattr(hub, "_connect", connect)
    listening = threading.Thread(target=hub.listen_blocking, daemon=True)
    listening.start()
    listening.join(timeout=10)
    assert not listening.is_alive()


def test_a_channel_joined_as_the_last_answer_comes_is_listened_to(store, redis_client, monkeypatch):
    hub, all_heard = store.wakeups, store.wakeups._all_heard
    joiners = [threading.Thread(target=hub.join, args=("shared", lambda message: None))]

    def join_first() -> bool:
        if joiners:
            joiner = joiners.pop()
            joiner.start()
            joiner.join()
        return all_heard()

    monkeypatch.setattr(hub, "_all_heard", join_first)
    hub.bell("token")
    hub.listen_blocking()
    wait_until("it listens", lambda: redis_client.pubsub_numsub("shared") == [(b"shared", 1)])


def test_closing_a_store_lets_nobody_wait_for_a_server_that_is_away():
    store = RedisStore(f"redis://127.0.0.1:{free_port()}/0", retries=0)
    hub, outcome = store.wakeups, []
    heard = hub.listening()
    heard.add_done_callback(lambda done: outcome.append(done.exception()))
    store.sync.close()
    wait_until("it is told", lambda: bool(outcome))
    assert isinstance(outcome[0], StoreUnavailableError)


def test_doorbells_that_are_used_again_as_they_are_closed_are_heard_by_one_thread(store, redis_client, monkeypatch):
    hub, bells = store.wakeups, []
    hub.listen_blocking()
    first, say = hub._thread, hub._say

    def somebody_comes(word: bytes) -> bool:
        bells.append(hub.bell("token"))
        return say(word)

    with monkeypatch.context() as patched:
        patched.setattr(hub, "_say", somebody_comes)
        store.sync.close()
    first.join(timeout=30)
    assert not first.is_alive()
    hub.listen_blocking()
    redis_client.publish(hub.channel, "token now")
    wait_until("it rings", lambda: bells[0].payload == b"now")
    hub.close()


def test_a_waiter_whose_store_was_closed_is_called_by_the_next_doorbells(store):
    pool = Pool("p", 1, store=store)
    slot = pool.sync.acquire()
    granted: list[Slot] = []
    place = Place(pool, on_grant=granted.append)
    assert place.sync.enter() is None
    store.sync.close()
    assert place.sync.enter() is None
    pool.sync.release(slot)
    wait_until("the slot has come", lambda: bool(granted), timeout=2)
    place.sync.leave()


@pytest.mark.parametrize("kind", ["memory", "redis"])
def test_an_error_in_one_waiters_callback_is_not_anothers(kind, redis_url, caplog):
    store = MemoryStore() if kind == "memory" else RedisStore(redis_url)
    pool = Pool("p", 2, store=store)
    held = [pool.sync.acquire(), pool.sync.acquire()]
    granted: list[Slot] = []

    def fail(slot: Slot) -> None:
        held.append(slot)
        raise ValueError("not mine")

    places = [Place(pool, on_grant=fail), Place(pool, on_grant=granted.append)]
    assert [place.sync.enter() for place in places] == [None, None]
    pool.sync.resize(4)
    wait_until("the second has its slot", lambda: bool(granted))
    assert "not mine" in caplog.text
    for slot in [*held, *granted]:
        pool.sync.release(slot)
    store.sync.close()


def test_a_connection_that_has_fallen_silent_is_made_anew_and_waiters_look_again(redis_proxy, monkeypatch):
    monkeypatch.setattr(_hearing, "CHECK", 0.3)
    store = RedisStore(redis_proxy.redis_url, timeout=0.5)
    pool = Pool("p", 1, store=store)
    slot = pool.sync.acquire()
    granted: list[Slot] = []
    nudged: list[None] = []
    place = Place(pool, on_grant=granted.append, on_nudge=lambda: nudged.append(None))
    assert place.sync.enter() is None
    silent = redis_proxy.break_at(b"PING", before=True, silently=True)
    wait_until("its waiters are told to look again", lambda: bool(nudged))
    assert silent.happened.is_set()
    pool.sync.release(slot)
    wait_until("the slot has come over a new connection", lambda: bool(granted))
    pool.sync.release(granted[0])
    store.sync.close()


def test_a_subscription_that_is_never_confirmed_is_made_anew(redis_proxy):
    store = RedisStore(redis_proxy.redis_url, timeout=0.5)
    silent = redis_proxy.break_at(b"SUBSCRIBE", before=False, silently=True)
    listening = threading.Thread(target=store.wakeups.listen_blocking, daemon=True)
    listening.start()
    listening.join(timeout=10)
    assert silent.happened.is_set()
    assert not listening.is_alive()
    store.sync.close()


def test_nobody_listens_when_nobody_has_waited_for_long(store, redis_client, monkeypatch):
    monkeypatch.setattr(_hearing, "CHECK", 0.1)
    monkeypatch.setattr(_hearing, "LINGER", 0.5)
    hub = store.wakeups
    with hub.bell("token"):
        hub.listen_blocking()
        assert redis_client.pubsub_channels() == [hub.channel.encode()]
    wait_until("its connection is closed", lambda: redis_client.pubsub_channels() == [])
