"""What children have reported is heard before the loop comes round to it."""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from celery.concurrency import asynpool
from kombu.asynchronous import Hub

from celery_ext.hearing import hear_now


@pytest.fixture
def hub() -> Iterator[Hub]:
    hub = Hub()
    yield hub
    hub.close()


@pytest.fixture
def readable() -> Iterator[list[int]]:
    """Three ends of pipes with something to read."""
    pipes = [os.pipe() for _ in range(3)]
    for _, writer in pipes:
        os.write(writer, b"!")
    yield [reader for reader, _ in pipes]
    for pipe in pipes:
        for end in pipe:
            os.close(end)


def consumer_of(hub: Any, **pool: Any) -> Any:
    return SimpleNamespace(hub=hub, pool=SimpleNamespace(_pool=SimpleNamespace(**pool)))


@pytest.mark.lowest
def test_reports_are_heard_and_nothing_else_that_there_is_to_do(hub: Hub, readable: list[int]) -> None:
    heard: list[int] = []
    report, half_a_report, message = readable
    hub.add_reader(report, heard.append, report)
    hub.add_reader(half_a_report, (None for _ in ()), half_a_report)
    hub.add_reader(message, lambda: heard.append(-1))
    hear = hub.readers[report][0]
    hear_now(consumer_of(hub, handle_result_event=hear))
    assert heard == [report]


def test_where_nothing_was_reported_nothing_is_waited_for(hub: Hub) -> None:
    hear_now(consumer_of(hub, handle_result_event=pytest.fail))


@pytest.mark.parametrize(
    "consumer",
    [
        SimpleNamespace(hub=None, pool=SimpleNamespace(_pool=SimpleNamespace(handle_result_event=pytest.fail))),
        SimpleNamespace(hub=SimpleNamespace(), pool=SimpleNamespace()),
    ],
    ids=["no loop", "another pool"],
)
def test_other_workers_are_left_alone(consumer: Any) -> None:
    hear_now(consumer)


@pytest.mark.lowest
def test_celerys_pool_reads_reports_by_the_name_that_is_looked_for() -> None:
    assert "self.handle_result_event = self._result_handler.handle_event" in inspect.getsource(asynpool)
