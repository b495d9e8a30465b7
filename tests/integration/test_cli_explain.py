"""What ``slotline explain`` says of a task, and what it asks the store for that."""

from __future__ import annotations

import pytest

from slotline import Pool
from slotline.pools import Room, _finding
from slotline.pools._share import SINGLE, Caller
from slotline.steps import run_blocking
from tests.harness.fixtures_cli import park


def test_explain_finds_a_parked_task_in_a_long_line_and_says_what_it_waits_for(store, run, facts, monkeypatch):
    monkeypatch.setattr(_finding, "_LOOKED_AT", 3)  # the line is read in parts
    pool = Pool("p", 1, store=store)
    pool.sync.acquire(owner="holder-0")
    park(store, pool, *(f"shop.sync[id-{number}]" for number in range(10)))
    park(store, pool, "shop.sync[id-other]", lane="another lane", partition="tenant")
    (answer,) = facts("explain", "id-7")
    assert (answer["state"], answer["ahead"], answer["waiting"]) == ("waiting", 7, 11)
    assert (answer["holders"], answer["partition"]) == (["holder-0"], None)
    assert answer["expected_wait"] > 0
    (answer,) = facts("explain", "id-other")
    assert (answer["ahead"], answer["partition"]) == (0, "tenant")
    status, out, _ = run("explain", "id-7")
    assert status == 0
    assert "is parked for a slot of pool 'p'" in out
    assert "Before it in its line: 7. In all 11 wait." in out
    assert "Held by holder-0" in out
    assert "Expected wait: about" in out


def test_explain_says_that_a_task_runs_or_that_its_pool_is_paused_or_that_nothing_knows_of_it(store, run):
    pool = Pool("p", 1, store=store)
    pool.sync.acquire(owner="running-1")
    park(store, pool, "parked-1")
    assert "running-1 has held a slot of pool 'p' (1 of 1 slots used)" in run("explain", "running-1")[1]
    pool.sync.pause()
    assert "The pool is paused: slotline resume p" in run("explain", "parked-1")[1]
    status, out, err = run("explain", "nobody")
    assert (status, out) == (1, "")
    assert "no pool in" in err
    assert "'nobody'" in err


def test_explain_reads_few_messages_at_a_time_where_they_are_large(store, facts):
    pool = Pool("p", 1, store=store)
    pool.sync.acquire()
    room = Room(store, ["lane"])
    for number in range(4):
        room.sync.park(pool, bytes([number]) * 3_000_000, lane="lane", owner=f"large-{number}")
    (answer,) = facts("explain", "large-3")
    assert answer["ahead"] == 3


@pytest.fixture
def crowd(store):
    """A pool with 3,000 holders, a third of them on account of ``ann``."""
    pool = Pool("p", 3000, max_per_partition=1000, store=store)
    shares = [pool.shares_of(1, "ann"), SINGLE, SINGLE]
    callers = [Caller(f"t{number}", f"run-{number}.", shares[number % 3]) for number in range(3000)]
    store.sync.execute_many([pool.acquire_command(caller, 0, "") for caller in callers])
    return pool


def test_explain_finds_one_of_very_many_holders(crowd, run, facts):
    (answer,) = facts("explain", "run-2999.")
    assert (answer["state"], answer["owner"], answer["token"]) == ("holding", "run-2999.", "t2999")
    assert "run-1234. has held a slot of pool 'p' (3000 of 3000 slots used" in run("explain", "run-1234.")[1]


def test_explain_says_who_has_held_slots_longest_of_very_many_and_is_told_of_few(
    crowd, store, run, facts, redis_client
):
    park(store, crowd, "parked", partition="ann")
    sent_before = redis_client.info("stats")["total_net_output_bytes"]
    (answer,) = facts("explain", "parked")
    sent = redis_client.info("stats")["total_net_output_bytes"] - sent_before
    assert answer["holders"] == [f"run-{number}." for number in range(_finding.LONGEST)]
    assert sent < 3000 * len("t2999 run-2999.")
    (known,) = run_blocking(_finding.looking_for(store, [crowd], "parked"))
    assert {name: ages.holders for name, ages in known.ages.items()} == {None: 3000, "ann": 1000}
    assert 0 < known.ages["ann"].ms < known.ages[None].ms
    out = run("explain", "parked")[1]
    assert "Held by run-4. for" in out
    assert "... and 2995 more: slotline holders p" in out


def test_explain_asks_for_many_pools_in_the_same_round_trips(store, run, monkeypatch):
    monkeypatch.setattr(_finding, "_ASKED_AT_ONCE", 4)
    for number in range(8):
        Pool(f"p{number}", 1, store=store).sync.acquire(owner=f"run-{number}")
    park(store, Pool("p1", 1, store=store), "one")
    sent = []
    execute_many = store.sync.execute_many
    monkeypatch.setattr(store.sync, "execute_many", lambda commands: sent.append(commands) or execute_many(commands))
    assert run("explain", "run-7")[0] == 0
    asked = [[command.script for command in commands] for commands in sent]
    first, later = ["pool_info"] * 4, ["pool_find_held"] * 4
    assert asked == [first, ["pool_find_held", "pool_find", *later[2:]], ["pool_find_held"], first, later]
