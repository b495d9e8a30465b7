"""What the soak run says of a limit that was broken."""

from __future__ import annotations

from pathlib import Path

from tests.faults.soak_evidence import Sign, crowds, last_pushed, outlived, report, slot_ends

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


def test_the_journal_says_when_a_slot_has_ended_and_who_lived_on(tmp_path: Path) -> None:
    journal, logs = tmp_path / "journal", tmp_path
    journal.mkdir()
    until = FIRST // 1000 + 3000
    (journal / "appendonly.aof").write_bytes(
        journalled(
            "MULTI",
            f"ZADD p:slots NX {until} token",
            f"HSET p:state fence {FIRST} h:token {FIRST}|0|0|1||owner",
            "HDEL p:state w:token",
            "EXEC",
            f"ZADD p:slots XX {until + 2000} token",
            "HDEL p:state h:token x:token e:token k:token",
            f"ZADD p:slots NX {until + 9000} token",
        )
        + b"*3\r\n$4\r\nZADD\r\n$100\r\nhalf"
    )
    (logs / "worker.log").write_text(f"what became of task-{FIRST}\nand of others")
    ends = slot_ends(journal)
    assert ends == {FIRST: (until + 2000) * 1000}
    signs = [sign(FIRST, 4_999_999), sign(FIRST, 5_000_000)]
    assert outlived(signs[:1], ends) is None
    assert outlived(signs, ends) == [FIRST]
    said = report(
        signs, [FIRST], ended_with=lambda _: "nothing", deeds=[(FIRST, "cut")], logs=logs, journal=journal
    ).splitlines()
    assert any("cut" in line for line in said)
    assert f"  worker.log: what became of task-{FIRST}" in said
    assert sum("ZADD p:slots" in line for line in said) == 3


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
