"""A request holds its slot until it has ended, or until the pool has thrown it away unseen."""

from __future__ import annotations

from types import SimpleNamespace
from weakref import ref

import pytest

from celery_ext.tenure import Tenure
from slotline import MemoryStore, Pool


class Job:
    """What the worker's pool keeps of a request, for as long as it means to run it."""


@pytest.fixture
def request_of():
    def make(job: Job | None, time_start: float | None = None) -> SimpleNamespace:
        callbacks = dict.fromkeys(("on_success", "on_failure", "on_timeout"), lambda *_: None)
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
