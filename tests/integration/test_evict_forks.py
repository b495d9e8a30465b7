"""A child that is forked while its parent holds slots has none of them."""

from __future__ import annotations

import os

import pytest

from slotline import Limits, Pool, RedisStore, Slot
from tests.harness.waiting import wait_until


def test_a_holder_that_is_told_to_end_is_told_in_its_own_process_alone(redis_url, redis_client):
    store = RedisStore(redis_url)
    told, tell = os.pipe()
    end, until = os.pipe()

    def on_lost(slot: Slot) -> None:
        os.write(tell, f"{os.getpid()} {slot.token}\n".encode())

    pool = Pool("p", 2, store=store, on_lost=on_lost)
    slot = pool.sync.acquire(owner="parent")
    pid = os.fork()
    if pid == 0:
        store.wakeups.listen_blocking()
        pool.sync.acquire(owner="child")
        os.read(end, 1)
        os._exit(0)

    def holders() -> dict[str, str]:
        return {holder.owner: holder.token for holder in pool.sync.info().holders}

    def heard() -> set[str]:
        lines.extend(os.read(told, 1000).decode().splitlines())
        return {line.split()[1] for line in lines}

    lines: list[str] = []
    wait_until("the child has one, too", lambda: len(holders()) == 2)
    wait_until("it hears what all are told", lambda: redis_client.pubsub_numsub("slotline:evict")[0][1])
    child = holders()["child"]
    pool.sync.evict(slot.token)
    pool.sync.evict(child)  # what the child hears of this, it hears after what it has heard of the other
    wait_until("both are told", lambda: heard() == {slot.token, child})
    os.write(until, b".")
    os.waitpid(pid, 0)
    assert sorted(lines) == sorted([f"{os.getpid()} {slot.token}", f"{pid} {child}"])
    pool.sync.release(slot)
    for descriptor in (told, tell, end, until):
        os.close(descriptor)
    store.sync.close()


@pytest.mark.parametrize("block", ["pool", "slot", "holding", "limits"])
def test_a_child_that_leaves_a_block_of_its_parents_gives_nothing_back(redis_url, block):
    store = RedisStore(redis_url)
    pool = Pool("p", 1, store=store)
    manager = {
        "pool": lambda: pool,
        "slot": lambda: pool.slot(timeout=5),
        "holding": lambda: pool.holding(pool.sync.acquire()),
        "limits": lambda: Limits(pool, Pool("q", 1, store=store)),
    }[block]()
    with manager:
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                manager.__exit__(None, None, None)
                with Pool("r", 1, store=store) as own:
                    status = 0 if own.fence else 2
                status = status or Pool("r", 1, store=store).sync.size()
            finally:
                os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert pool.sync.size() == 1
    assert pool.sync.size() == 0
    store.sync.close()
