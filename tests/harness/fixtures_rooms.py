"""Fixtures that give a test workers' parts of the waiting room in its ``store``, whichever that is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest


@pytest.fixture
def make_room(store: Any) -> Iterator[Callable[..., Any]]:
    """A function that makes a worker's part of the room: ``make_room("q", on_call=...)``; ``of`` is another store."""
    from slotline.pools import Room

    made: list[Any] = []

    def make(*lanes: str, of: Any = store, **options: Any) -> Any:
        made.append(Room(of, lanes, **options))
        return made[-1]

    yield make
    for room in made:
        room.close()


@pytest.fixture
def room(make_room: Callable[..., Any]) -> Any:
    """A worker's part of the room, which serves the lane ``q``."""
    return make_room("q")
