"""What the soak run says of a limit that was broken."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.soak_evidence import Sign, crowds, outlived, report, too_many
from tests.faults.soak_journal import last_pushed
from tests.faults.soak_ledger import Ledger, ledgers

SLOTS, STATE = (f"slotline:{{pool:p}}:{part}" for part in ("slots", "state"))
FIRST, SECOND = 1_700_000_000_000_000, 1_700_000_001_000_000


def sign(fence: int, after_us: int, what: str = "lives") -> Sign:
    return Sign(fence + after_us, fence, f"task-{fence}", 7, what)


def journalled(*commands: str) -> bytes:
    words = [command.encode().split() for command in commands]
    return b"".join(
        b"*%d\r\n" % len(line) + b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in line) for line in words
    )


def test_who_has_given_its_last_sign_before_another_gets_its_slot_is_no_crowd() -> None:
    signs = [sign(FIRST, 5), sign(FIRST, 999_999, "ends"), sign(SECOND, 1)]
    assert crowds(signs) == [[FIRST], [SECOND]]


def test_who_lives_on_when_another_gets_its_slot_is_one_though_the_other_comes_later() -> None:
    signs = [sign(FIRST, 5), sign(FIRST, 1_000_001), sign(SECOND, 500_000)]
    assert crowds(signs) == [[FIRST], [FIRST, SECOND]]


def read(directory: Path, *commands: str) -> Ledger:
    (directory / "appendonly.aof").write_bytes(journalled(*commands) + b"*3\r\n$4\r\nZADD\r\n$100\r\nhalf")
    return ledgers(directory)["p"]


def given(token: str, fence: int, *, weight: int = 1, partition: str = "", life_ms: int = 3000) -> list[str]:
    """What a server writes down when it gives a slot."""
    until, record = fence // 1000 + life_ms, f"{fence}|{fence // 1000}|0|{weight}|{partition}|owner"
    return [f"ZADD {SLOTS} NX {until} {token}", f"HSET {STATE} fence {fence} h:{token} {record}"]


def back(token: str) -> list[str]:
    return [f"HDEL {STATE} h:{token} x:{token} e:{token} k:{token}", f"ZREM {SLOTS} {token}"]


def limit(spec: str = "max 2") -> str:
    return f"HSET {STATE} {spec}"


def test_the_journal_says_when_a_slot_has_ended_and_who_lived_on(tmp_path: Path) -> None:
    journal, logs = tmp_path / "journal", tmp_path
    journal.mkdir()
    until = FIRST // 1000 + 3000
    ledger = read(
        journal,
        "MULTI",
        limit(),
        *given("token", FIRST),
        f"HDEL {STATE} w:token",
        "EXEC",
        f"ZADD {SLOTS} XX {until + 2000} token",
        *back("token"),
        f"ZADD {SLOTS} NX {until + 9000} token",
    )
    (logs / "worker.log").write_text(f"what became of task-{FIRST}\nand of others")
    assert ledger.ends() == {FIRST: (until + 2000) * 1000}
    signs = [sign(FIRST, 4_999_999), sign(FIRST, 5_000_000)]
    assert outlived(signs[:1], ledger.ends()) is None
    assert outlived(signs, ledger.ends()) == [FIRST]
    said = report(
        signs, [FIRST], ended_with=lambda _: "nothing", deeds=[(FIRST, "cut")], logs=logs, journal=journal
    ).splitlines()
    assert any("cut" in line for line in said)
    assert f"  worker.log: what became of task-{FIRST}" in said
    assert sum(f"ZADD {SLOTS}" in line for line in said) == 3


@pytest.mark.parametrize(
    "told",
    [
        pytest.param([*given("a", FIRST), *given("b", FIRST + 1)], id="as many as the limit"),
        pytest.param([*given("a", FIRST), *given("b", SECOND), *given("c", SECOND + 2_000_000)], id="one has expired"),
        pytest.param(
            [*given("a", FIRST, weight=2), *back("a"), *given("b", SECOND, weight=2)], id="one after the other"
        ),
        pytest.param(
            [*given("a", FIRST), *given("b", SECOND), limit("max 1")], id="a limit made smaller takes nothing"
        ),
        pytest.param([f"HSETNX {STATE} paused 1", f"HDEL {STATE} paused", *given("a", FIRST)], id="after a pause"),
        pytest.param(
            [limit("max 9 rate 500000/2"), *given("a", FIRST), *given("b", FIRST + 1), *given("c", FIRST + 500_000)],
            id="a burst, and then the rate",
        ),
        pytest.param(
            [limit("rate 500000/1"), *given("a", FIRST), f"HSET {STATE} k:a 1", *back("a"), *given("a", FIRST + 1)],
            id="what was kept for one was no start",
        ),
        pytest.param(
            [limit("share 1"), *given("a", FIRST, partition="x"), *given("b", SECOND, partition="y")], id="two tenants"
        ),
        pytest.param(
            [*given("a", FIRST), *given("b", SECOND), f"HSET {STATE} h:a {SECOND + 1}|1|0|1||other"],
            id="a slot that passes on",
        ),
    ],
)
def test_the_journal_of_a_pool_that_keeps_its_limits_has_nothing_against_it(tmp_path: Path, told: list[str]) -> None:
    assert read(tmp_path, limit(), *told).broken == []


@pytest.mark.parametrize(
    ("told", "says"),
    [
        pytest.param([*given("a", FIRST), *given("b", SECOND), *given("c", SECOND + 1)], "makes 3", id="too many"),
        pytest.param([*given("a", FIRST, weight=2), *given("b", SECOND)], "makes 3", id="too heavy"),
        pytest.param([*given("a", FIRST), limit("max 1"), *given("b", SECOND)], "makes 2", id="above a smaller limit"),
        pytest.param([f"HSETNX {STATE} paused 1", *given("a", FIRST)], "paused", id="while it was paused"),
        pytest.param([*given("a", SECOND), *back("a"), *given("b", FIRST)], "no higher fence", id="an older fence"),
        pytest.param(
            [limit("max 9 rate 500000/2"), *given("a", FIRST), *given("b", FIRST + 1), *given("c", FIRST + 490_000)],
            "10000 us early",
            id="before the rate allows it",
        ),
        pytest.param(
            [limit("share 1"), *given("a", FIRST, partition="x"), *given("b", SECOND, partition="x")],
            "makes 2 of its partition",
            id="beyond a tenant's share",
        ),
    ],
)
def test_the_journal_tells_which_slot_was_given_against_a_limit(tmp_path: Path, told: list[str], says: str) -> None:
    (broken,) = read(tmp_path, limit(), *told).broken
    assert says in broken


def test_those_who_live_together_weigh_what_their_slots_do_and_are_held_against_the_limit_of_that_time(
    tmp_path: Path,
) -> None:
    told = [*given("a", FIRST, weight=2), *back("a"), limit("max 1"), *given("b", SECOND)]
    ledger = read(tmp_path, limit("max 3"), *told)
    assert ledger.broken == []
    ended, late = [sign(FIRST, 999_999), sign(SECOND, 5)], [sign(FIRST, 1_000_001), sign(SECOND, 5)]
    assert too_many(ended, ledger) is None
    assert too_many(late, ledger) == [FIRST, SECOND]


def test_a_run_has_a_slot_that_was_given_or_one_that_was_given_a_moment_ago_to_a_run_before(tmp_path: Path) -> None:
    ledger = read(tmp_path, limit(), *given("a", FIRST), *given("b", SECOND), f"HSET {STATE} k:b 1")
    fences = [FIRST - 1, FIRST, FIRST + 250_000, FIRST + 250_001, SECOND]
    assert ledger.strays(fences, 0.25) == [FIRST - 1, FIRST + 250_001, SECOND]
    assert ledger.strays(fences, 0) == [FIRST - 1, FIRST + 250_000, FIRST + 250_001, SECOND]


def test_of_what_was_given_only_to_be_kept_the_journal_says_so(tmp_path: Path) -> None:
    kept = [*given("a", FIRST), f"HSET {STATE} k:a 1"]
    ledger = read(tmp_path, limit(), *kept, *back("a"), *given("a", SECOND))
    assert [grant.kept for grant in ledger.grants.values()] == [True, False]


def test_a_message_is_lost_on_its_way_if_the_journal_says_nothing_of_it_but_that_it_was_queued(tmp_path: Path) -> None:
    (tmp_path / "appendonly.aof").write_bytes(
        journalled(
            'LPUSH celery {"id":"one"}',
            'HSET unacked tag-1 [{"id":"one"}]',
            'RPUSH celery {"id":"one"}',
            'LPUSH celery {"id":"other"}',
            'HSET unacked tag-2 [{"id":"other"}]',
        )
    )
    assert last_pushed(tmp_path, ["one", "other", "never"]) == {"one"}
