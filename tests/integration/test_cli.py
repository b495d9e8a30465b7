"""The operator's commands on a real Redis: what they show, what they change, and what they refuse."""

from __future__ import annotations

import io
import json

import pytest

from slotline import Pool, RedisStore, configure
from slotline.caches import RedisCacheAdapter
from slotline.cli import main
from slotline.pools import Limits, Place, _finding
from slotline.stores import Command
from tests.harness.fixtures_cli import park

URL_VARIABLE = "SLOTLINE_REDIS_URL"


@pytest.fixture
def store(redis_url):
    made = RedisStore(redis_url)
    yield made
    made.sync.close()


class Terminal(io.StringIO):
    """Somebody who can be asked."""

    def isatty(self) -> bool:
        return True


def test_pools_lists_limits_use_and_waiters_of_all_pools_of_this_prefix(store, run, facts, redis_url):
    Pool("api:acme", 3, rate="100/m", store=store).sync.acquire()
    busy = Pool("db {1}", 1, group="g", max_per_partition=1, store=store)
    busy.sync.acquire()
    park(store, busy, "one", "two")
    other = RedisStore(redis_url, prefix="other")
    Pool("foreign", 1, store=other).sync.acquire()
    other.sync.close()
    rows = {row.pop("pool"): row for row in facts("pools")}
    assert rows["api:acme"] == {
        "group": None,
        "limit": 3,
        "max_per_partition": None,
        "rate": "100/m",
        "used": 1,
        "waiting": 0,
        "oldest_wait": None,
        "paused": False,
    }
    oldest = rows["db {1}"].pop("oldest_wait")
    assert 0 <= oldest < 60
    assert rows.pop("db {1}") == {
        "group": "g",
        "limit": 1,
        "max_per_partition": 1,
        "rate": None,
        "used": 1,
        "waiting": 2,
        "paused": False,
    }
    assert list(rows) == ["api:acme"]
    status, out, _ = run("pools", "--match", "db*")
    assert status == 0
    assert [line.split()[:2] for line in out.splitlines()] == [["POOL", "GROUP"], ["db", "{1}"]]


def test_pools_asks_for_many_pools_in_one_round_trip_and_once_more_where_anybody_waits(store, facts, monkeypatch):
    monkeypatch.setattr(_finding, "_ASKED_AT_ONCE", 4)
    for number in range(8):
        Pool(f"p{number}", 1, store=store).sync.acquire()
    park(store, Pool("p1", 1, store=store), "one")
    park(store, Pool("p3", 1, store=store), "two", "three")
    sent = []
    execute_many = store.sync.execute_many
    monkeypatch.setattr(store.sync, "execute_many", lambda commands: sent.append(commands) or execute_many(commands))
    rows = facts("pools")
    assert [(row["pool"], row["waiting"], row["oldest_wait"] is None) for row in rows] == [
        *((f"p{number}", {1: 1, 3: 2}.get(number, 0), number not in (1, 3)) for number in range(8))
    ]
    assert [len(commands) for commands in sent] == [4, 2, 4]


def test_pools_hides_the_lines_for_cached_values_unless_asked(store, run, facts):
    cache_line = Pool("cache-line:weather", 1, store=store)
    cache_line.sync.acquire()
    assert run("pools")[:2] == (0, f"There are no pools in {store.name}.\n")
    assert [row["pool"] for row in facts("pools", "--all")] == ["cache-line:weather"]


def test_holders_lists_who_holds_slots_the_longest_first(store, run, facts):
    pool = Pool("p", 5, store=store)
    first = pool.sync.acquire(owner="ann", weight=2, partition="t1")
    pool.sync.acquire(owner="bob")
    rows = facts("holders", "p")
    assert [(row["owner"], row["weight"], row["partition"]) for row in rows] == [("ann", 2, "t1"), ("bob", 1, None)]
    assert (rows[0]["token"], rows[0]["fence"]) == (first.token, first.fence)
    assert 0 <= rows[0]["held"] < 30
    assert 0 < rows[0]["expires"] <= 30
    assert len(facts("holders", "p", "--most", "1")) == 1
    pool.sync.release(first)
    status, out, _ = run("holders", "p")
    assert status == 0
    assert "ann" not in out
    assert "bob" in out


def test_waiting_lists_callers_and_parked_messages_in_the_order_in_which_they_came(store, run, facts):
    pool, other = Pool("p", 1, store=store), Pool("q", 1, store=store)
    pool.sync.acquire()
    park(store, pool, "message 1")
    caller = Place(pool, owner="caller")
    caller.sync.enter()
    park(store, Limits(pool, other), "message 2")
    rows = facts("waiting", "p")
    assert [(row["owner"], row["kind"]) for row in rows] == [
        *(("message 1", "message"), ("caller", "caller"), ("message 2", "message for several pools"))
    ]
    assert all(0 <= row["waited"] < 60 for row in rows)
    assert [row["owner"] for row in facts("waiting", "p", "--most", "1")] == ["message 1"]
    caller.sync.leave()
    assert run("waiting", "q")[:2] == (0, "Nobody waits for pool 'q'.\n")


def test_resize_acts_at_once_and_lasts(store, facts, run):
    pool = Pool("p", 1, store=store)
    pool.sync.acquire()
    assert facts("resize", "p", "3") == {"pool": "p", "before": 1, "limit": 3}
    assert pool.sync.info().max_size == 3
    pool.sync.acquire()
    assert pool.sync.size() == 2
    assert run("resize", "p", "1")[1] == "Pool 'p': 3 -> 1 slots.\n"


def test_pause_and_resume_say_whether_they_changed_anything(store, run, facts):
    pool = Pool("p", 1, store=store)
    pool.sync.release(pool.sync.acquire())
    assert facts("pause", "p")["changed"] is True
    assert facts("pause", "p")["changed"] is False
    assert run("pools")[1].splitlines()[1].endswith("paused")
    assert pool.sync.info().paused is True
    assert "lets callers in again" in run("resume", "p")[1]
    assert "was not paused" in run("resume", "p")[1]
    assert pool.sync.info().paused is False


def test_evict_and_release_mean_the_run_that_holders_has_shown_and_none_after_it(store, run):
    pool = Pool("p", 1, store=store)
    slot = pool.sync.acquire()
    shown = run("holders", "p")[1].splitlines()[1].split()[0]
    assert shown == f"{slot.token}@{slot.fence}"
    passed_on = Command("pool_renew", pool.keys, (slot.token, 30_000, slot.fence + 1, "the next run"))
    assert store.sync.execute(passed_on)
    assert [holder.owner for holder in pool.sync.info().holders] == ["the next run"]
    for command in ("evict", "release"):
        status, _, err = run(command, "p", shown)
        assert status == 1
        assert f"nobody holds a slot of pool 'p' by the token {shown!r}" in err
    assert (slot.evicted, pool.sync.size()) == (False, 1)
    shown = run("holders", "p")[1].splitlines()[1].split()[0]
    assert run("evict", "p", shown)[0] == 0
    assert run("release", "p", shown)[0] == 0
    assert pool.sync.size() == 0


def test_release_means_that_run_also_where_the_slot_passes_on_while_it_is_asked(store, run, monkeypatch):
    pool = Pool("p", 1, store=store)
    slot = pool.sync.acquire()
    execute = store.sync.execute

    def after_the_slot_has_passed_on(command):
        if command.script == "pool_release":
            execute(Command("pool_renew", pool.keys, (slot.token, 30_000, slot.fence + 1, "the next run")))
        return execute(command)

    monkeypatch.setattr(store.sync, "execute", after_the_slot_has_passed_on)
    assert run("release", "p", f"{slot.token}@{slot.fence}")[0] == 1
    assert [holder.owner for holder in pool.sync.info().holders] == ["the next run"]


def test_purge_removes_what_is_parked_once_that_is_confirmed(store, run, facts, monkeypatch):
    pool = Pool("p", 1, store=store)
    pool.sync.acquire()
    park(store, pool, "one", "two")
    for argv in (["purge", "p"], ["--json", "purge", "p"]):
        status, out, err = run(*argv)
        assert (status, out) == (1, "")
        assert "nothing was removed from pool 'p': say --yes" in err
    monkeypatch.setattr("sys.stdin", Terminal("n"))
    status, out, _ = run("purge", "p")
    assert status == 1
    assert "2 wait for pool 'p'. Remove its messages?" in out
    assert pool.sync.info().waiting == 2
    monkeypatch.setattr("sys.stdin", Terminal("y"))
    status, out, _ = run("purge", "p")
    assert status == 0
    assert "2 messages that were parked for pool 'p' are removed." in out
    park(store, pool, "three")
    assert facts("purge", "p", "--yes") == {"pool": "p", "removed": 1, "stay": 0}
    assert facts("purge", "p", "--yes") == {"pool": "p", "removed": 0, "stay": 0}


def test_purge_says_what_stays_and_why(store, capsys):
    pool = Pool("p", 1, store=store)
    pool.sync.acquire()
    park(store, pool, "one", "two")
    assert main(["purge", "p", "--yes"], store=store, answer=lambda purged: purged.owner == "one") == 0
    assert "1 messages that were parked for pool 'p' are removed. 1 stay:" in capsys.readouterr().out

    def away(purged):
        raise ConnectionError("refused")

    assert main(["purge", "p", "--yes"], store=store, answer=away) == 1
    assert "cannot be written; what was not removed by then is parked as before: refused" in capsys.readouterr().err
    assert [waiter.owner for waiter in pool.sync.waiting()] == ["two"]


def test_release_frees_a_slot_and_evict_only_tells_its_holder(store, run, facts):
    pool = Pool("p", 1, store=store)
    slot = pool.sync.acquire()
    assert run("evict", "p", slot.token, "--fence", str(slot.fence - 1))[0] == 1
    assert facts("evict", "p", slot.token, "--fence", str(slot.fence))["told"] is True
    assert facts("evict", "p", slot.token)["told"] is True
    assert pool.sync.size() == 1
    assert facts("release", "p", slot.token)["released"] is True
    assert pool.sync.size() == 0
    for command in ("evict", "release"):
        status, _, err = run(command, "p", slot.token)
        assert status == 1
        assert f"nobody holds a slot of pool 'p' by the token {slot.token!r}" in err


@pytest.mark.parametrize("command", ["holders", "waiting", "pause", "resume", "purge"])
def test_a_pool_that_is_not_there_is_an_error_and_is_not_made(store, run, command):
    status, out, err = run(command, "misspelt")
    assert (status, out) == (1, "")
    assert "there is no pool 'misspelt'" in err
    assert run("pools")[1].startswith("There are no pools")


def test_a_pool_of_a_group_is_named_with_its_group(store, run, facts):
    Pool("p", 1, group="g", store=store).sync.acquire(owner="ann")
    assert run("holders", "p")[0] == 1
    assert [row["owner"] for row in facts("holders", "p", "--group", "g")] == ["ann"]


def test_cache_commands_count_and_remove_the_entries_of_one_namespace(store, run, facts):
    cache = RedisCacheAdapter(store=store)
    other = RedisCacheAdapter(store=store, namespace="other")
    for number in range(3):
        cache.sync.set(f"k{number}", number, tags=["even"] if number % 2 == 0 else [])
    other.sync.set("k0", "kept")
    assert facts("cache", "stats") == {"namespace": "cache", "entries": 3, "tags": 1, "claims": 0}
    assert facts("cache", "invalidate", "k1") == {"key": "k1", "removed": 1}
    status, _, err = run("cache", "invalidate", "k1")
    assert status == 1
    assert "there is no entry 'k1'" in err
    assert facts("cache", "invalidate", "--tag", "even")["removed"] == 2
    cache.sync.set("last", 1)
    assert run("cache", "clear")[0] == 0
    assert facts("cache", "stats")["entries"] == 0
    assert facts("cache", "stats", "--namespace", "other")["entries"] == 1


def test_top_shows_the_busiest_pools_first_as_often_as_asked(store, run):
    Pool("a", 1, store=store).sync.acquire()
    busy = Pool("b", 1, store=store)
    busy.sync.acquire()
    park(store, busy, "one")
    status, out, _ = run("top", "--count", "2", "--interval", "0.01")
    assert status == 0
    lines = out.splitlines()
    assert len(lines) == 8
    assert [line.split()[0] for line in lines[2:4]] == ["b", "a"]
    assert "\x1b" not in out, "no terminal"


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        (["resize", "p", "0"], "'0' must be a whole number of at least 1"),
        (["resize", "p", "many"], "'many' must be a whole number"),
        (["top", "--interval", "0"], "must be a number of seconds greater than zero"),
        (["cache", "invalidate"], "one of the arguments KEY --tag is required"),
        ([], "required: COMMAND"),
    ],
)
def test_arguments_that_cannot_be_used_are_refused_before_anything_is_asked(run, capsys, argv, named):
    with pytest.raises(SystemExit) as ended:
        run(*argv)
    assert ended.value.code == 2
    assert named in capsys.readouterr().err


def test_the_server_is_named_by_option_or_variable_and_without_one_there_is_nothing_to_look_at(
    redis_url, monkeypatch, capsys
):
    monkeypatch.delenv(URL_VARIABLE, raising=False)
    configure()
    assert main(["pools"]) == 1
    assert "name a server: --redis-url, or SLOTLINE_REDIS_URL" in capsys.readouterr().err
    assert main(["pools", "--redis-url", redis_url, "--prefix", "mine"]) == 0
    assert "There are no pools" in capsys.readouterr().out
    assert main(["--redis-url", "http://nowhere", "pools"]) == 2
    assert "redis_url=" in capsys.readouterr().err
    configure()


def test_a_server_that_does_not_answer_is_one_sentence(capsys, monkeypatch):
    store = RedisStore("redis://127.0.0.1:1/0", retries=0)
    assert main(["pools"], store=store) == 1
    err = capsys.readouterr().err
    assert err.startswith("slotline: ")
    assert len(err.splitlines()) == 1
    store.sync.close()


async def test_pools_of_all_servers_of_a_cluster_are_listed(redis_cluster, capsys):
    store = RedisStore(redis_cluster.url)
    for number in range(12):
        await Pool(f"p{number}", 1, store=store).acquire()
    assert main(["pools", "--json"], store=store) == 0
    assert {row["pool"] for row in json.loads(capsys.readouterr().out)} == {f"p{number}" for number in range(12)}
    await store.close()
    store.sync.close()
