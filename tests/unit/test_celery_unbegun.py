"""A request whose slot is lost before it has begun does not begin."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any
from weakref import ref

import pytest
from billiard.exceptions import Terminated
from celery import Celery
from celery.concurrency.asynpool import SCHED_STRATEGY_FAIR, SCHED_STRATEGY_FCFS
from celery.concurrency.base import BasePool
from celery.worker import state

from celery_ext.losses import Losses
from celery_ext.mailbox import AnywhereMailbox
from celery_ext.parcel import TakenMessage
from celery_ext.tenure import NotBegunError
from celery_ext.unreported import Unreported
from slotline import SlotLostError
from slotline.pools import Slot, Taken
from tests.unit.test_celery_gate import Request, Worker, app, make_worker, store  # noqa: F401 - fixtures
from tests.unit.test_celery_tenure import Told

pytestmark = pytest.mark.lowest


@pytest.fixture(autouse=True)
def _children_live(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("celery_ext.unreported.process_lives", lambda _: True)


class Job:
    """What a prefork pool keeps of a request; ``child`` is the pid of the child that it was sent to."""

    def __init__(self, child: int | None = None) -> None:
        self._write_to = None if child is None else SimpleNamespace(pid=child)
        self.terminated_by: int | None = None
        self.discarded = False

    def terminate(self, signum: int) -> None:
        self.terminated_by = signum

    def discard(self) -> None:
        self.discarded = True


class Unbegun(Told):
    """A request that a pool was given, and of which no child has said anything."""

    def __init__(self, job: Job, strategy: Any = SCHED_STRATEGY_FAIR) -> None:
        super().__init__(time_start=None)
        self.job = job
        self.request._apply_result = ref(job)
        self.buffer = deque([] if job._write_to else [job])
        pool = SimpleNamespace(outbound_buffer=self.buffer, sched_strategy=strategy)
        self.unreported = Unreported(SimpleNamespace(_pool=pool))

    def lose(self) -> None:
        self.tenure.end(self.error, self.killed.append, self.unreported)
        self.tenure.report_when_gone()


def test_what_no_child_was_sent_is_taken_back_from_the_pool_and_is_as_it_was() -> None:
    unbegun = Unbegun(Job())
    unbegun.lose()
    assert not unbegun.buffer
    assert unbegun.job.discarded
    assert unbegun.tenure.withdrawn
    assert (unbegun.killed, unbegun.reports, unbegun.freed) == ([], [], ["slot", "tenure"])
    unbegun.request.on_success("of another run")
    assert unbegun.reports == ["of another run"]


def test_what_no_child_was_sent_ends_where_it_was_evicted() -> None:
    unbegun = Unbegun(Job())
    unbegun.tenure.slot._evicted = True
    unbegun.lose()
    assert (unbegun.killed, unbegun.reports) == ([], [unbegun.error, "acknowledged"])
    assert unbegun.freed == ["slot", "tenure"]


def test_a_child_that_was_sent_it_is_killed_whether_it_has_begun_or_not_and_no_other_gets_it() -> None:
    unbegun = Unbegun(Job(child=8))
    unbegun.lose()
    assert (unbegun.killed, unbegun.job.terminated_by) == ([8], 9)
    unbegun.request.on_accepted(8)  # said before it was killed, and heard only now
    assert unbegun.killed == [8]
    unbegun.gone[0]()
    assert (unbegun.reports, unbegun.freed) == ([unbegun.error], ["slot", "tenure"])


def test_a_pool_that_answers_for_a_dead_child_itself_is_not_killed_for_that() -> None:
    unbegun = Unbegun(Job(child=8), SCHED_STRATEGY_FCFS)
    unbegun.lose()
    assert unbegun.killed == [], "the child may run another task first"
    unbegun.request.on_accepted(os.getpid())
    unbegun.request.on_failure(SimpleNamespace(exception=Terminated(9)))
    assert (unbegun.killed, unbegun.reports) == ([], [unbegun.error])


def test_what_is_sent_to_a_child_at_this_moment_is_stopped_a_moment_later() -> None:
    unbegun = Unbegun(Job(child=8))
    child, unbegun.job._write_to = unbegun.job._write_to, None  # out of the buffer, and not yet written
    unbegun.tenure.end(unbegun.error, unbegun.killed.append, unbegun.unreported)
    assert unbegun.killed == []
    unbegun.job._write_to = child
    unbegun.tenure.report_when_gone()
    assert unbegun.killed == [8]


def test_what_waits_for_a_thread_does_not_begin() -> None:
    told = Told(time_start=None)
    losses = Losses(BasePool(limit=1), AnywhereMailbox(), has_children=False)
    losses.add(told.tenure, "cancel")
    told.tenure.slot._ended = True
    losses.forfeit(told.tenure.slot)
    assert losses.counts == {"ended": 1}
    with pytest.raises(NotBegunError):
        told.request.on_accepted(8)
    assert type(told.reports[0]) is SlotLostError
    assert (told.reports[1:], told.freed) == (["acknowledged"], ["slot", "tenure"])


@pytest.mark.parametrize("what", ["a message", "out of the room", "evicted"])
def test_a_request_that_is_taken_back_asks_anew_with_the_process_that_it_has(
    app: Celery, make_worker: Callable[..., Worker], what: str
) -> None:
    worker = make_worker(10)
    request = Request(app.tasks["unit.two"])
    request._apply_result, request.time_start = ref(job := Job()), None
    worker.consumer.pool._pool = SimpleNamespace(outbound_buffer=deque([job]), sched_strategy=SCHED_STRATEGY_FAIR)
    worker.receive(request)
    (tenure,) = worker.gate._running._tenures
    requeued: list[str] = []
    if what == "out of the room":
        request.message = object.__new__(TakenMessage)
        request.message.requeue = lambda: requeued.append("requeued")
    tenure.slot._ended, tenure.slot._evicted = True, what == "evicted"
    worker.gate._losses.forfeit(tenure.slot)
    worker.gate._mailbox.drain()
    again = what == "a message"
    assert worker.ran == [request] * (1 + again)
    assert (worker.gate.counts()["running"], worker.semaphore.value) == ({"two": 1} if again else {}, 10 - again)
    assert requeued == (["requeued"] if what == "out of the room" else [])
    assert type(request.error) is (SlotLostError if what == "evicted" else type(None))
    assert not again or request.delivery_info["slotline"]["token"] != tenure.slot.token


def test_a_slot_that_is_lost_while_its_request_waits_for_a_process_is_asked_for_anew(
    app: Celery,
    make_worker: Callable[..., Worker],
) -> None:
    worker = make_worker(2)
    first = worker.receive(Request(app.tasks["unit.keyed"], "a"))
    held = worker.receive(Request(app.tasks["unit.keyed"], "a"))
    busy = worker.receive(Request(app.tasks["unit.free"]))
    first.on_success((0, None, 0.0))
    (slot,) = worker.gate._waiting._called.values()
    slot._ended = True
    worker.finish(busy)
    assert worker.ran == [first, busy, held]
    assert held.delivery_info["slotline"]["token"] != slot.token


@pytest.mark.parametrize("why", ["its claim is lost", "its slot is lost", "it was given back"])
def test_a_message_out_of_the_room_that_is_no_longer_this_workers_goes_back(
    app: Celery, make_worker: Callable[..., Worker], why: str
) -> None:
    worker = make_worker(2)
    slot = Slot("two", "token", "owner", 1, since=0.0, life=0.0 if why == "its slot is lost" else None, cap=None)
    nothing: Any = SimpleNamespace()
    taken = Taken(nothing, nothing, slot, "lane", "digest", b"message", "place", nothing)
    taken._lost = why == "its claim is lost"
    request = Request(app.tasks["unit.two"])
    state.task_reserved(request)
    worker.semaphore.acquire(lambda: None)
    became: list[str] = []
    message = SimpleNamespace(
        taken=taken, acknowledged=why == "it was given back", requeue=lambda: became.append("requeued")
    )
    request.message = message
    worker.gate._admit_taken(request, message)
    assert (became, worker.ran, worker.semaphore.value) == (["requeued"], [], 2)
    assert request not in state.reserved_requests
