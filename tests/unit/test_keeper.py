"""The heartbeat without a server: nothing that is kept or handed over at a bad moment is forgotten."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator, Sequence

import pytest

from slotline.errors import StoreUnavailableError
from slotline.stores import keeper as keepers
from slotline.stores.base import Command
from slotline.stores.keeper import Keeper, Kept
from tests.harness.waiting import wait_until


@pytest.fixture
def often_switching() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def keeper_that_hears(reply: int) -> tuple[Keeper, list[Command]]:
    """Return a keeper whose store answers ``reply`` to each command, and what it has sent there."""
    sent: list[Command] = []

    def execute_many(commands: Sequence[Command]) -> list[int]:
        sent.extend(commands)
        return [reply] * len(commands)

    return Keeper(execute_many), sent


@pytest.mark.usefixtures("often_switching")
def test_releases_from_many_threads_at_once_are_all_sent():
    sent: set[Command] = set()

    def execute_many(commands: Sequence[Command]) -> list[int]:
        sent.update(commands)
        return [1] * len(commands)

    keeper = Keeper(execute_many)
    releases = [Command("pool_release", ("key",), (number,)) for number in range(4000)]

    def hand_over(share: list[Command]) -> None:
        for release in share:
            keeper.later(release, 30)

    threads = [threading.Thread(target=hand_over, args=(releases[at::4],)) for at in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    wait_until("all are sent", lambda: len(sent) == len(releases))
    keeper.close()


def test_a_release_that_is_handed_over_again_while_it_travels_is_sent_again():
    sent: list[Command] = []
    travelling, arrive = threading.Event(), threading.Event()

    def execute_many(commands: Sequence[Command]) -> list[int]:
        sent.extend(commands)
        travelling.set()
        assert arrive.wait(30)
        return [0] * len(commands)

    keeper, release = Keeper(execute_many), Command("pool_release", ("key",), ("token",))
    keeper.later(release, 30)
    assert travelling.wait(30)
    keeper.later(release, 30)  # what it undoes has come only now: the first was too early
    arrive.set()
    wait_until("it is sent again", lambda: sent == [release] * 2)
    keeper.close()
    assert sent == [release] * 2


def test_what_is_kept_while_the_thread_is_about_to_end_is_renewed(monkeypatch):
    monkeypatch.setattr(keepers, "_LINGER", 0.1)
    keeper, renewed = keeper_that_hears(600)
    late = threading.Thread(
        target=lambda: keeper.keep("late", Command("late", ("key",)), 0.6, time.monotonic(), lambda: None)
    )

    class Kept(dict):
        """Lets ``late`` be kept just after the thread, lingering, has seen that nothing is."""

        seen_empty = 0

        def __len__(self) -> int:
            found = super().__len__()
            if not found and threading.current_thread() is keeper._thread:
                self.seen_empty += 1
                if self.seen_empty == 2:
                    late.start()
                    late.join(timeout=0.2)
            return found

    keeper._kept = Kept()
    keeper.keep("short", Command("short", ("key",)), 30, time.monotonic(), lambda: None)
    keeper.drop("short")
    keeper._look_again()
    wait_until("the late one is renewed", lambda: Command("late", ("key",)) in renewed)
    late.join()
    keeper.close()


def test_work_is_told_a_sixth_of_the_lease_early_and_at_its_end_where_that_is_shortened():
    def execute_many(commands: Sequence[Command]) -> list[int]:
        raise StoreUnavailableError("test", "it is away")

    keeper = Keeper(execute_many)
    since, lost = time.monotonic(), threading.Event()
    kept = [
        keeper.keep(f"{number}", Command("renew", ("key",)), lease, since, lost.set, work=work)
        for number, (lease, work) in enumerate([(60, None), (60, 60), (50, 60), (0.6, 0.6)])
    ]
    assert [round(it.deadline - since, 3) for it in kept] == [60, 50, 50, 0.5]
    assert [it.shortened for it in kept] == [False, False, True, False], "slot_exp ends the third"
    kept[2].lasts(since, 60)
    assert lost.wait(timeout=20)
    assert time.monotonic() >= since + 0.5
    assert [keeper.drop(it.token) for it in kept] == [True, True, True, False]
    keeper.close()


def test_a_holder_that_is_to_end_is_told_once_and_renewed_on():
    keeper, renewed = keeper_that_hears(-300)
    told: list[str] = []
    kept = keeper.keep(
        *("it", Command("renew", ("key",)), 0.3, time.monotonic(), lambda: told.append("lost")),
        work=0.3,
        on_evict=lambda: told.append("evicted"),
    )
    wait_until("it is renewed several times", lambda: len(renewed) > 3)
    assert (told, kept.gone) == (["evicted"], False)
    assert keeper.drop("it")
    keeper.close()


def test_what_is_to_be_renewed_otherwise_is_so_even_if_a_renewal_is_on_its_way():
    renewed: list[Command] = []
    travels, arrives = threading.Event(), threading.Event()

    def execute_many(commands: Sequence[Command]) -> list[int]:
        renewed.extend(commands)
        travels.set()
        arrives.wait(timeout=10)
        return [60_000] * len(commands)

    keeper = Keeper(execute_many)
    keeper.keep("it", Command("renew", ("key",)), 60, time.monotonic() - 30, lambda: None)
    assert travels.wait(timeout=10)
    other = Command("renew", ("key",), ("another owner",))
    keeper.hasten({"it": other, "unknown": other})
    arrives.set()
    wait_until("it is renewed by the new command", lambda: renewed == [Command("renew", ("key",)), other])
    keeper.close()


def test_what_ends_before_its_lease_does_is_renewed_no_more_often_for_that():
    renewed: list[Command] = []

    def execute_many(commands: Sequence[Command]) -> list[int]:
        renewed.extend(commands)
        return [max(0, round(1000 * (until - time.monotonic())))] * len(commands)

    lost, keeper, now = threading.Event(), Keeper(execute_many), time.monotonic()
    until = now + 0.3
    kept = keeper.keep("token", Command("pool_renew", ("key",), ("token",)), 0.3, now, lost.set, work=3.0)
    assert lost.wait(30)
    keeper.close()
    assert (renewed, kept.shortened, kept.gone) == ([], True, False)


@pytest.mark.parametrize(("left", "gone"), [(0.0005, False), (30.0, True)])
def test_what_the_store_knows_no_more_is_gone_unless_its_own_end_has_come(left, gone):
    renew = Command("pool_renew", ("key",), ("token",))
    kept = Kept("token", renew, 0.0, 0.0, 0.0, lambda: None, 60.0, None)
    now = time.monotonic()
    kept.lasts(now - 1, 1 + left)
    keepers._note(kept, renew, 0, now)
    assert kept.gone is gone


@pytest.fixture
def denied(monkeypatch) -> list[str]:
    """The names of threads that the system does not let begin, each once: there are as many as there may be."""
    names, start = list[str](), threading.Thread.start

    def limited(thread: threading.Thread) -> None:
        if thread.name in names:
            names.remove(thread.name)
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", limited)
    return names


def test_what_cannot_be_renewed_for_lack_of_a_thread_is_not_kept_and_the_next_is_renewed(denied):
    keeper, renewed = keeper_that_hears(30_000)
    first, second = (Command("pool_renew", ("key",), (name,)) for name in ("first", "second"))
    denied.append("slotline-keeper")
    with pytest.raises(RuntimeError, match="thread"):
        keeper.keep("first", first, 30.0, time.monotonic() - 11, lambda: None)
    denied.append("slotline-renewals")
    keeper.keep("second", second, 30.0, time.monotonic() - 11, lambda: None)
    wait_until("the second is renewed", lambda: renewed == [second])
    assert denied == []
    keeper.close()


def test_a_release_that_is_handed_over_while_no_thread_can_begin_is_sent_later(denied):
    keeper, sent = keeper_that_hears(1)
    first, second = (Command("pool_release", ("key",), (name,)) for name in ("first", "second"))
    denied.append("slotline-keeper")
    keeper.later(first, 30)
    keeper.later(second, 30)
    wait_until("both are sent", lambda: set(sent) == {first, second})
    keeper.close()
