"""A request holds its slot until it has ended, or until the pool has thrown it away unseen."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any
from weakref import ref

import pytest
from billiard.exceptions import Terminated, WorkerLostError
from celery.concurrency.base import BasePool

from celery_ext.losses import Losses
from celery_ext.mailbox import AnywhereMailbox
from celery_ext.tenure import Tenure
from slotline import MemoryStore, Pool, SlotLostError


class Job:
    """What the worker's pool keeps of a request, for as long as it means to run it."""


@pytest.fixture
def request_of():
    def make(job: Job | None, time_start: float | None = None) -> SimpleNamespace:
        callbacks = dict.fromkeys(("on_success", "on_failure", "on_timeout", "on_accepted"), lambda *_: None)
        kept = None if job is None else ref(job)
        return SimpleNamespace(delivery_info={}, time_start=time_start, _apply_result=kept, **callbacks)

    return make


def tenure_of(request: SimpleNamespace, freed: list[str]) -> Tenure:
    slot = Pool("p", 1, store=MemoryStore()).sync.acquire()
    return Tenure(
        request,
        slot,
        release=lambda: freed.append("slot"),
        has_child=True,
        when_gone=lambda pid, then: then(),
        on_free=lambda tenure: freed.append("tenure"),
        report=lambda report, request: report(request),
    )


def test_a_request_that_the_pool_still_has_is_not_discarded(request_of):
    job = Job()
    assert tenure_of(request_of(job), []).discarded is False


def test_a_request_that_no_process_had_accepted_when_the_pool_forgot_it_is_discarded(request_of):
    job = Job()
    tenure = tenure_of(request_of(job), [])
    del job
    assert tenure.discarded is True


def test_a_request_that_runs_or_was_never_handed_over_is_not_discarded(request_of):
    job = Job()
    running, waiting = tenure_of(request_of(job, time_start=1.0), []), tenure_of(request_of(None), [])
    del job
    assert running.discarded is False
    assert waiting.discarded is False


def test_freeing_twice_gives_the_slot_back_once(request_of):
    freed: list[str] = []
    tenure = tenure_of(request_of(Job()), freed)
    tenure.free()
    tenure.free()
    assert freed == ["slot", "tenure"]


class Told:
    """A request that notes what its pool reports, and a tenure of it whose child can be killed."""

    def __init__(self, *, time_start: float | None = 1.0) -> None:
        self.reports: list[Any] = []
        self.killed: list[int] = []
        self.freed: list[str] = []
        self.request = SimpleNamespace(
            delivery_info={},
            message=None,
            time_start=time_start,
            worker_pid=None if time_start is None else 7,
            _apply_result=None,
            on_success=self.reports.append,
            on_failure=lambda info: self.reports.append(getattr(info.exception, "exc", info.exception)),
            on_timeout=lambda soft, timeout: None,
            on_accepted=self.accept,
            acknowledge=lambda: self.reports.append("acknowledged"),
        )
        self.gone: list[Callable[[], None]] = []
        self.tenure = tenure_of(self.request, self.freed)
        self.tenure._when_gone = lambda pid, then: self.gone.append(then)
        self.error = SlotLostError("p", "token")

    def accept(self, pid: int) -> None:
        self.request.worker_pid, self.request.time_start = pid, 1.0

    def lose(self) -> None:
        self.tenure.end(self.error, self.killed.append)
        self.tenure.report_when_gone()


def test_the_slot_of_what_has_succeeded_passes_on_before_its_success_is_told():
    told = Told()
    told.tenure._release = lambda: told.reports.append("free")
    told.request.on_success((0, "value", 0.1))
    told.request.on_success((0, "again", 0.1))
    assert told.reports == ["free", (0, "value", 0.1), (0, "again", 0.1)]


def test_the_slot_of_what_has_failed_passes_on_before_its_failure_is_told():
    told = Told()
    told.tenure._release = lambda: told.reports.append("free")
    error = ValueError("no")
    told.request.on_failure(SimpleNamespace(exception=error))
    assert told.reports == ["free", error]


def test_a_success_is_told_and_its_request_is_forgotten_though_its_slot_cannot_be_given_back():
    told = Told()

    def release() -> None:
        raise RuntimeError("can't start new thread")

    told.tenure._release = release
    told.request.on_success((0, "value", 0.1))
    assert (told.reports, told.freed) == ([(0, "value", 0.1)], ["tenure"])


def test_a_killed_request_fails_with_the_loss_once_its_process_is_gone_and_whatever_its_pool_says_then():
    told = Told()
    told.lose()
    assert (told.killed, told.reports, told.freed) == ([7], [], [])
    told.gone[0]()
    assert (told.reports, told.freed) == ([told.error], ["slot", "tenure"])
    told.request.on_failure(SimpleNamespace(exception=Terminated(9)))
    told.request.on_success((False, "late", 0.1))
    assert told.reports == [told.error]


def test_the_pools_word_that_the_process_is_dead_is_as_good():
    told = Told()
    told.lose()
    told.request.on_failure(SimpleNamespace(exception=WorkerLostError("it was killed")))
    told.gone[0]()
    assert (told.reports, told.freed) == ([told.error], ["slot", "tenure"])


def test_a_request_that_had_ended_before_it_was_killed_keeps_its_outcome():
    told = Told()
    told.lose()
    told.request.on_success((False, "value", 0.1))
    told.gone[0]()
    assert (told.reports, told.freed) == ([(False, "value", 0.1)], ["slot", "tenure"])
    late = Told()
    late.request.on_success((False, "value", 0.1))
    late.lose()
    assert (late.killed, late.reports) == ([], [(False, "value", 0.1)]), "its process runs another task by now"


def test_a_request_that_has_not_begun_is_killed_when_it_does():
    told = Told(time_start=None)
    told.lose()
    assert (told.killed, told.gone) == ([], [])
    told.request.on_accepted(8)
    assert told.killed == [8]
    told.gone[0]()
    assert told.reports == [told.error]


def test_a_killed_greenlet_that_its_pool_calls_a_success_has_failed():
    told = Told()
    told.lose()
    told.request.on_success((False, None, None))
    assert (told.reports, told.freed) == ([told.error], ["slot", "tenure"])


class OldGreenPool(BasePool):  # type: ignore[misc] # Celery ships no types
    """One that cannot kill its greenlets."""

    is_green = True


class GreenPool(OldGreenPool):
    """One that can."""

    def terminate_job(self, pid: int, signal: Any = None) -> None:
        """Kill a greenlet."""


@pytest.mark.parametrize(("pool", "outcome"), [(GreenPool, "ended"), (OldGreenPool, "running")])
def test_what_its_pool_cannot_kill_goes_on_and_is_counted(pool, outcome):
    told = Told()
    losses = Losses(pool(limit=1), AnywhereMailbox(), has_children=False)
    losses.add(told.tenure, "cancel")
    told.tenure.slot._evicted = True
    losses.forfeit(told.tenure.slot)
    losses.forfeit(told.tenure.slot)
    assert losses.counts == {outcome: 1}
