"""How requests have ended is told in turn, and waited for only as long as it goes well."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from celery_ext import reporting as module
from celery_ext.mailbox import AnywhereMailbox
from celery_ext.reporting import Reporting
from tests.harness.waiting import wait_until

pytestmark = pytest.mark.lowest


class Request:
    """Something that ends."""


class Mailbox(AnywhereMailbox):
    woken = 0

    def wake(self) -> None:
        self.woken += 1


@pytest.fixture
def mailbox() -> Mailbox:
    return Mailbox()


@pytest.fixture
def reporting(mailbox: Mailbox) -> Iterator[Reporting]:
    reporting = Reporting(mailbox)
    yield reporting
    reporting.close()


def test_what_is_told_in_time_has_been_told_when_the_worker_goes_on(reporting: Reporting, mailbox: Mailbox) -> None:
    told: list[object] = []
    one, other = Request(), Request()
    reporting.tell(lambda request, error: told.append((request, error)), one, "error")
    assert told == [(one, "error")]
    reporting.tell(told.append, other)
    assert (told[1:], mailbox.woken) == ([other], 0)


def test_what_takes_long_and_what_comes_behind_it_is_told_later(
    reporting: Reporting, mailbox: Mailbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PATIENCE", 0.01)
    goes_on, told = threading.Event(), list[object]()
    first, second, third = Request(), Request(), Request()

    def wait(request: object) -> None:
        goes_on.wait()
        told.append(request)

    reporting.tell(wait, first)
    monkeypatch.setattr(module, "PATIENCE", 60.0)
    reporting.tell(told.append, second)
    assert told == []
    goes_on.set()
    wait_until("both are told", lambda: mailbox.woken == 2, 10)
    reporting.tell(told.append, third)
    assert told == [first, second, third]


def test_a_report_that_fails_keeps_none_from_being_told(reporting: Reporting, caplog: pytest.LogCaptureFixture) -> None:
    told: list[object] = []

    def fail(_: object) -> None:
        raise SystemExit("of a handler")

    reporting.tell(fail, Request())
    reporting.tell(told.append, other := Request())
    assert told == [other]
    assert "of a handler" in caplog.text
