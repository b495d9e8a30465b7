"""What a prefork pool has been given is written to free children at once."""

from __future__ import annotations

import inspect
from types import SimpleNamespace
from typing import Any

import pytest
from celery.concurrency import asynpool
from kombu.asynchronous import Hub

from celery_ext.writing import write_now
from slotline.errors import SlotLostError
from tests.unit.test_celery_gate import Request, app, make_worker, store  # noqa: F401 - fixtures


def consumer_with(**pool: Any) -> tuple[Any, list[list[int]]]:
    """Return a consumer whose pool has children 1 to 4, and what is written to."""
    written: list[list[int]] = []
    sets = {"_all_inqueues": {1, 2, 3, 4}, "_busy_workers": {1}, "_active_writes": {2}, "outbound_buffer": ["job"]}
    hub = SimpleNamespace(consolidate_callback=written.append)
    return SimpleNamespace(hub=hub, pool=SimpleNamespace(_pool=SimpleNamespace(**{**sets, **pool}))), written


def test_children_that_are_neither_busy_nor_being_written_to_are_offered() -> None:
    consumer, written = consumer_with()
    write_now(consumer)
    assert [sorted(children) for children in written] == [[3, 4]]


@pytest.mark.parametrize("pool", [{"outbound_buffer": []}, {"_busy_workers": {1, 2, 3, 4}}])
def test_where_there_is_nothing_to_write_or_nobody_is_free_the_loop_goes_on(pool: dict[str, Any]) -> None:
    consumer, written = consumer_with(**pool)
    write_now(consumer)
    assert written == []


@pytest.mark.parametrize(
    "consumer",
    [
        SimpleNamespace(hub=None, pool=SimpleNamespace()),
        SimpleNamespace(hub=Hub, pool=SimpleNamespace(_pool=SimpleNamespace(outbound_buffer=["job"]))),
        SimpleNamespace(
            hub=SimpleNamespace(consolidate_callback=print),
            pool=SimpleNamespace(_pool=SimpleNamespace(outbound_buffer=["job"])),
        ),
    ],
    ids=["no loop", "another loop's pool", "another Celery"],
)
def test_other_pools_are_left_alone(consumer: Any) -> None:
    write_now(consumer)


def test_a_child_that_dies_as_it_is_written_to_is_the_pools_to_find() -> None:
    consumer, _ = consumer_with()

    def broken(children: list[int]) -> None:
        raise BrokenPipeError

    consumer.hub.consolidate_callback = broken
    write_now(consumer)


@pytest.mark.lowest
def test_celerys_pool_has_what_it_needs() -> None:
    source = inspect.getsource(asynpool)
    for name in ("_all_inqueues", "_busy_workers", "_active_writes", "outbound_buffer"):
        assert f"self.{name} = " in source
    assert "hub.consolidate_callback = " in source


@pytest.mark.lowest
def test_what_has_its_slot_is_written_to_a_free_child_at_once(app, make_worker):
    worker, written = make_worker(), []
    worker.consumer.hub.consolidate_callback = lambda children: written.append((children, len(worker.ran)))
    worker.consumer.pool._pool = SimpleNamespace(
        outbound_buffer=["job"], _all_inqueues={3}, _busy_workers=set(), _active_writes=set()
    )
    worker.receive(Request(app.tasks["unit.two"]))
    assert written == [([3], 1)]


@pytest.mark.lowest
def test_what_loses_its_slot_while_the_pool_is_given_it_is_not_written(app, make_worker):
    worker, written = make_worker(), []
    worker.consumer.hub.consolidate_callback = written.append
    worker.consumer.pool._pool = SimpleNamespace(
        outbound_buffer=["job"], _all_inqueues={3}, _busy_workers=set(), _active_writes=set()
    )
    hand_over = worker.gate._running._run

    def losing(request: Request) -> None:
        hand_over(request)
        next(iter(worker.gate._running._tenures)).end(SlotLostError("two", "token"), written.append)

    worker.gate._running._run = losing
    worker.receive(Request(app.tasks["unit.two"]))
    assert (len(worker.ran), written) == (1, [])
