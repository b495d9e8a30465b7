"""Messages that need slots of several pools wait in the room, and are taken with all of them."""

from __future__ import annotations

import threading
import time
from contextlib import suppress

import pytest

from slotline import Holding, Limits, Pool, PoolFullError, Slot, configure
from slotline.pools import Parked, Room, Taken
from slotline.stores.base import undoing
from tests.harness.waiting import wait_until


@pytest.fixture
def pools(store):
    return Pool("a", 2, store=store, group="g"), Pool("b", 1, store=store, group="g")


@pytest.fixture
def limits(pools):
    return Limits(*pools)


def take(room: Room) -> Taken:
    return wait_until("something can be taken", room.sync.take)


def end(taken: Taken) -> None:
    taken.pool.sync.release(taken.slot)
    taken.sync.settle()


def states(*pools: Pool) -> list[tuple[int, int]]:
    return [(info.used, info.waiting) for info in (pool.sync.info() for pool in pools)]


def test_a_message_takes_a_slot_of_each_pool_or_is_parked_and_taken_byte_for_byte(pools, limits, room):
    holding = room.sync.park(limits, b"first", lane="q")
    assert isinstance(holding, Holding)
    messages = [b"1|\x00\xff", b"", b"2|" + b"x" * 10_000]
    for number, message in enumerate(messages):
        assert room.sync.park(limits, message, lane="q", owner=f"task|{number}") == Parked(number)
    assert room.sync.take() is None
    assert states(*pools) == [(1, 3), (1, 0)]
    limits.sync.release(holding)
    for number, message in enumerate(messages):
        taken = take(room)
        assert (taken.message, taken.lane, taken.pool.key, taken.slot.owner) == (
            *(message, "q", limits.key),
            f"task|{number}",
        )
        assert {slot.key for slot in taken.slot.slots} == {"a", "b"}
        assert [used for used, _ in states(*pools)] == [1, 1]
        end(taken)
    assert states(*pools) == [(0, 0), (0, 0)]


def test_a_message_is_not_parked_twice_neither_in_line_nor_while_it_runs(pools, limits, room):
    holding = limits.sync.acquire()
    for _ in range(2):
        assert room.sync.park(limits, b"message", lane="q") == Parked(0)
    limits.sync.release(holding)
    taken = take(room)
    assert room.sync.park(limits, b"message", lane="q") == Parked(0)
    end(taken)
    assert isinstance(room.sync.park(limits, b"message", lane="q"), Slot)  # sent anew


def test_a_full_pool_keeps_no_message_from_the_others(pools, limits, room):
    a, b = pools
    held = [b.sync.acquire(), a.sync.acquire(), a.sync.acquire()]
    for number in range(5):
        room.sync.park(limits, b"both %d" % number, lane="q")
    room.sync.park(a, b"alone", lane="q")
    a.sync.release(held[1])
    assert take(room).message == b"alone"
    a.sync.release(held[2])
    wait_until(
        "what is free of a is kept for nobody who waits for b", lambda: not room.sync.take() and a.sync.size() == 1
    )
    b.sync.release(held[0])
    assert take(room).message == b"both 0"


def test_what_is_given_back_stands_at_its_old_place_and_its_slots_are_free(pools, limits, room):
    holding = limits.sync.acquire()
    for number in range(3):
        room.sync.park(limits, b"%d" % number, lane="q")
    limits.sync.release(holding)
    taken = take(room)
    taken.sync.give_back()
    taken.sync.give_back()
    assert taken.slot.lost is False
    for number in range(3):
        taken = take(room)
        assert taken.message == b"%d" % number
        end(taken)
    assert states(*pools) == [(0, 0), (0, 0)]


def test_what_a_dead_worker_has_taken_is_taken_by_another_within_the_lease(store, pools, limits, room, make_room):
    configure(heartbeat_lease=1.0)
    holding = limits.sync.acquire()
    for number in range(3):
        room.sync.park(limits, b"%d" % number, lane="q")
    limits.sync.release(holding)
    taken = take(room)
    taken.abandon()  # as a worker that has died: nobody renews
    for slot in taken.slot.slots:
        assert store.keeper.drop(slot.token)
    other = make_room("q")
    for number in range(3):
        again = wait_until("it is taken again", other.sync.take, timeout=20)
        assert again.message == b"%d" % number
        end(again)
    taken.sync.settle()
    assert states(*pools) == [(0, 0), (0, 0)]


def test_a_lane_that_nobody_serves_blocks_no_other_and_a_later_worker_finds_it(pools, limits, room, make_room):
    a, b = pools
    held = b.sync.acquire()
    room.sync.park(limits, b"unserved", lane="other")
    room.sync.park(limits, b"served", lane="q")
    b.sync.release(held)
    taken = take(room)
    assert taken.message == b"served"
    end(taken)
    with b, a:
        pass
    later = make_room("other")
    taken = take(later)
    assert (taken.message, taken.lane) == (b"unserved", "other")
    end(taken)
    assert states(a, b) == [(0, 0), (0, 0)]


def test_messages_of_pools_that_are_never_free_together_are_taken_all_the_same(store, room):
    a, b = (Pool(key, 1, store=store, group="g") for key in "ab")
    stop = threading.Event()

    def keep_busy(pool: Pool) -> None:
        while not stop.is_set():
            with pool.slot(timeout=30):
                time.sleep(0.02)

    threads = [threading.Thread(target=keep_busy, args=(pool,)) for pool in (a, b) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        wait_until("both are full", lambda: states(a, b) == [(1, 2), (1, 2)])
        for number in range(3):
            outcome = room.sync.park(Limits(a, b), b"%d" % number, lane="q")
            if isinstance(outcome, Slot):
                Limits(a, b).sync.release(outcome)
                continue
            taken = wait_until("it is taken", room.sync.take, timeout=60)
            assert taken.message == b"%d" % number
            end(taken)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert states(a, b) == [(0, 0), (0, 0)]


def test_many_workers_and_callers_run_everything_once_and_exceed_no_limit(store, make_room):
    sizes = {"a": 3, "b": 2, "c": 1}
    pools = {key: Pool(key, size, store=store, group="g") for key, size in sizes.items()}
    kinds = ["ab", "bc", "abc", "a", "b", "c", "ca"]
    lock, inside, peak, ran = threading.Lock(), dict.fromkeys(sizes, 0), dict.fromkeys(sizes, 0), []

    def limit_of(keys: str) -> Pool | Limits:
        return pools[keys] if len(keys) == 1 else Limits(*(pools[key] for key in keys))

    def run(keys: str, message: bytes) -> None:
        with lock:
            ran.append(message)
            for key in keys:
                inside[key] += 1
                peak[key] = max(peak[key], inside[key])
        time.sleep(0.002)
        with lock:
            for key in keys:
                inside[key] -= 1

    def send(lane: str) -> None:
        room = make_room(lane)
        for number in range(28):
            keys = kinds[number % len(kinds)]
            message = f"{lane}:{number}:{keys}".encode()
            outcome = room.sync.park(limit_of(keys), message, lane=lane)
            if isinstance(outcome, Slot):
                run(keys, message)
                limit_of(keys).sync.release(outcome)

    def work(lane: str) -> None:
        room = make_room(lane)
        while len(ran) < 56 + 20:
            taken = room.sync.take()
            if taken is None:
                time.sleep(0.005)
                continue
            run(taken.message.decode().rpartition(":")[2], taken.message)
            end(taken)

    def call() -> None:
        for keys in kinds[:5] * 2:
            with limit_of(keys).slot(timeout=60):
                run(keys, b"caller")

    threads = [
        *(threading.Thread(target=send, args=(lane,)) for lane in "qr"),
        *(threading.Thread(target=work, args=(lane,), daemon=True) for lane in "qqrr"),
        *(threading.Thread(target=call) for _ in range(2)),
    ]
    for thread in threads:
        thread.start()
    wait_until("everything has run", lambda: len(ran) == 76, timeout=60)
    for thread in threads:
        thread.join(10)
    messages = [message for message in ran if message != b"caller"]
    assert len(set(messages)) == len(messages) == 56
    assert all(0 < peak[key] <= size for key, size in sizes.items())
    assert states(*pools.values()) == [(0, 0)] * 3


def test_a_rate_is_kept_by_those_who_need_another_pool_too(store, room):
    slow, b = Pool("slow", None, rate="10/s", store=store, group="g"), Pool("b", 5, store=store, group="g")
    limits = Limits(b, slow)
    began = time.monotonic()
    outcomes = [room.sync.park(limits, b"%d" % number, lane="q") for number in range(5)]
    limits.sync.release(outcomes[0])
    for number in range(1, 5):
        taken = take(room)
        assert taken.message == b"%d" % number
        end(taken)
    assert time.monotonic() - began >= 0.4
    assert states(slow, b) == [(0, 0), (0, 0)]


def test_a_message_that_has_a_start_kept_begins_no_sooner_after_another_than_the_rate_allows(store, room):
    interval = 0.2
    a = Pool("a", 2, rate="5/s", store=store, group="g")
    b, c = (Pool(key, 1, store=store, group="g") for key in "bc")
    in_b, in_c = b.sync.acquire(), c.sync.acquire()
    room.sync.park(Limits(a, b, c), b"message", lane="q")
    asked = 0.0

    def acquires(pool: Pool) -> Slot | None:
        assert room.sync.take() is None
        with suppress(PoolFullError):
            return pool.sync.acquire()
        return None

    def other_begins() -> bool:
        nonlocal asked
        asked = time.monotonic()
        with suppress(PoolFullError):
            return a.sync.release(a.sync.acquire())
        return False

    b.sync.release(in_b)
    in_b = wait_until("the message has moved to c", lambda: acquires(b))
    time.sleep(3 * interval)  # from its next move on it keeps what it can have, for as long as that
    c.sync.release(in_c)
    wait_until("it waits for b again, and keeps a start of a", lambda: not room.sync.take() and a.sync.size() == 1)
    wait_until("another has had the next start", other_begins)
    b.sync.release(in_b)
    taken = take(room)
    assert time.monotonic() - asked >= interval
    end(taken)
    assert states(a, b, c) == [(0, 0)] * 3


def test_calls_are_safe_to_repeat_and_to_undo(store, pools, limits, room):
    lane, channels = next(iter(room.lanes)), "slotline:lane:"
    held = limits.sync.acquire()
    parking = limits.park_command("asks-1", "owner", lane, "digest", b"message", channels, held.shares)
    assert [store.sync.execute(parking)[0] for _ in range(2)] == [0, 0]
    store.sync.execute(undoing(parking))
    assert states(*pools) == [(1, 1), (1, 0)]
    limits.sync.release(held)
    for pool in pools:
        room.call(pool.name)
    taken = take(room)
    assert store.sync.execute(parking)[0] == 0
    end(taken)
    assert store.sync.execute(parking)[0] == 0
    assert states(*pools) == [(0, 0), (0, 0)]
    again = limits.park_command("asks-2", "owner", lane, "digest", b"message", channels, held.shares)
    assert [store.sync.execute(again)[0] for _ in range(2)] == [1, 1]
    store.sync.execute(undoing(again))
    assert states(*pools) == [(0, 0), (0, 0)]


def test_a_take_that_is_repeated_has_the_same_message_and_one_that_is_undone_gives_it_back(store, pools, limits, room):
    held = limits.sync.acquire()
    for number in range(2):
        room.sync.park(limits, b"%d" % number, lane="q")
    limits.sync.release(held)
    taken = take(room)
    taken.sync.give_back()
    command = taken._back._replace(script="several_take", args=("run", *taken._back.args[1:-1]))
    first, again = store.sync.execute(command), store.sync.execute(command)
    assert first[0] == again[0] == 1
    assert first[5] == again[5] == b"0"
    for _ in range(2):
        store.sync.execute(undoing(command))
    assert states(*pools) == [(0, 2), (0, 0)]
    for number in range(2):
        taken = take(room)
        assert taken.message == b"%d" % number
        end(taken)


@pytest.mark.parametrize("lost", ["line", "ring", "slots"])
def test_messages_go_on_when_the_server_has_evicted_a_key(store, pools, limits, room, redis_client, lost):
    held = limits.sync.acquire()
    room.sync.park(limits, b"message", lane="q")
    redis_client.delete(*(f"slotline:{{group:g}}:{key}:{lost}" for key in "ab"))
    limits.sync.release(held)
    with limits.slot(timeout=5):
        room.sync.park(limits, b"another", lane="q")
    taken = take(room)
    end(taken)
    while (more := room.sync.take()) is not None:
        end(more)
    assert [used for used, _ in states(*pools)] == [0, 0]


def test_a_parked_message_costs_its_payload_and_a_little_and_its_run_one_command_more_than_with_one_pool(
    limits, room, redis_client, redis_server
):
    payload, count = 200, 1500
    held = limits.sync.acquire()
    for number in range(count):
        room.sync.park(limits, b"%0*d" % (payload, number), lane="q", owner="task-id")
    used = sum(redis_client.memory_usage(key, samples=0) for key in redis_client.scan_iter("*group:g*"))
    assert used / count <= payload + 300, used / count
    limits.sync.release(held)
    end(take(room))
    with redis_server.counting() as counted:
        for _ in range(50):
            taken = room.sync.take()
            assert taken is not None
            end(taken)
    assert counted["evalsha"] <= 4 * 50


@pytest.mark.parametrize("key", ["with {braces} and }", "ün|ï\x00c", "\x00", "x" * 1000])
def test_any_text_names_a_pool_and_a_worker_asks_for_what_was_asked(store, room, key):
    odd, plain = Pool(key, 5, 60, store=store), Pool("plain", 3, None, store=store, max_per_partition=2)
    limits = Limits(odd, plain)
    held = limits.sync.acquire(weight={"plain": 3})
    room.sync.park(limits, b"message", lane="q", weight={key: 4, "plain": 2}, partition="a tenant | with\nodd text")
    limits.sync.release(held)
    taken = take(room)
    assert taken.pool.key == limits.key
    assert {slot.key for slot in taken.slot.slots} == {key, "plain"}
    assert (odd.sync.size(), plain.sync.size()) == (4, 2)
    assert [pool.slot_exp for pool in taken.pool.pools if pool.key == key] == [60]
    end(taken)
    assert states(odd, plain) == [(0, 0), (0, 0)]
