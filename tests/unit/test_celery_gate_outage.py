"""What the gate does while its store is away."""

from __future__ import annotations

from typing import Any

import pytest
from celery import Celery

from celery_ext.parcel import TakenMessage
from slotline.errors import (
    StoreUnavailableError,
)
from slotline.stores import MemoryStore
from tests.harness.waiting import wait_until
from tests.unit.test_celery_gate import Request, Worker, app, make_worker, store  # noqa: F401 - fixtures

pytestmark = pytest.mark.lowest


class Broken(MemoryStore):
    """A store that can be away."""

    away = False

    def __init__(self) -> None:
        super().__init__()
        execute = self.sync.execute

        def maybe(command: Any) -> Any:
            if self.away:
                raise StoreUnavailableError("broken", "the test says so")
            return 0 if command.script == "PING" else execute(command)

        self.sync.execute = maybe  # type: ignore[method-assign] # a store that fails on demand


@pytest.mark.parametrize("policy", ["wait", "open", "fail"])
@pytest.mark.parametrize("on_full", ["wait", "fail"])
def test_without_its_store_a_request_goes_by_the_policy(app: Celery, policy: str, on_full: str) -> None:
    store = Broken()
    app.conf.slotline_store = store
    app.conf.slotline_on_store_error = policy
    worker = Worker(app, 10)
    store.away = True
    try:
        request = worker.receive(Request(app.tasks["unit.keyed"], "a", options={"pool_on_full": on_full}))
        if policy == "open":
            assert worker.ran == [request]
        elif policy == "fail":
            assert type(request.error) is StoreUnavailableError
        else:
            assert worker.gate.counts()["held"] == {}
            assert worker.consumer.qos.held == 1
            assert not request.acknowledged
            store.away = False
            worker.gate._mailbox._home = -1  # the store's return is noticed in another thread
            wait_until("the store is found again", lambda: worker.gate._mailbox._errands or worker.ran, 10)
            worker.gate._mailbox.drain()
            assert worker.ran == [request]
            assert worker.consumer.qos.held == 0
    finally:
        store.away = False
        worker.gate.close()


def test_a_slot_that_ends_while_the_store_is_away_is_given_back_later(app: Celery) -> None:
    store = Broken()
    app.conf.slotline_store = store
    worker = Worker(app, 10)
    first = worker.receive(Request(app.tasks["unit.keyed"], "a"))
    held = worker.receive(Request(app.tasks["unit.keyed"], "a"))
    store.away = True
    worker.finish(first)
    assert worker.ran == [first]
    store.away = False
    wait_until("the slot has passed on", lambda: worker.gate._mailbox._errands or len(worker.ran) == 2, 10)
    worker.gate._mailbox.drain()
    assert worker.ran == [first, held]
    worker.gate.close()


def test_a_request_of_whose_name_no_store_can_be_told_fails_and_costs_no_process(app: Celery) -> None:
    class Strict(MemoryStore):
        def __init__(self) -> None:
            super().__init__()
            execute = self.sync.execute

            def encoding(command: Any) -> Any:
                for argument in command.args:
                    str(argument).encode()
                return execute(command)

            self.sync.execute = encoding  # type: ignore[method-assign] # as Redis does

    app.conf.slotline_store = Strict()
    worker, request = Worker(app, 1), Request(app.tasks["unit.keyed"], "a")
    request.id = "\ud800"
    worker.receive(request)
    assert isinstance(request.error, UnicodeEncodeError)
    assert request.acknowledged
    after = worker.receive(Request(app.tasks["unit.keyed"], "a"))
    assert worker.ran == [after]
    worker.gate.close()


def test_what_came_out_of_the_room_and_waits_to_be_asked_for_anew_goes_back_with_the_connection(app: Celery) -> None:
    store = Broken()
    app.conf.slotline_store = store
    worker = Worker(app, 1)
    store.away = True
    held, requeued = worker.receive(Request(app.tasks["unit.keyed"], "a")), list[str]()
    busy = worker.receive(Request(app.tasks["unit.free"]))
    held.message = object.__new__(TakenMessage)
    held.message.requeue = lambda: requeued.append(held.id)
    store.away = False
    wait_until("the store is back", lambda: worker.gate._mailbox._errands or worker.semaphore._waiting, 10)
    worker.gate._mailbox.drain()
    worker.semaphore.clear()  # as Celery does when its connection breaks
    worker.gate.let_go()
    assert (worker.ran, requeued) == ([busy], [held.id])
    worker.gate.close()
