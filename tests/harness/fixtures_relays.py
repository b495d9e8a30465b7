"""A fixture that gives a test the relay of a worker, and what makes that worker a busy one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest


@pytest.fixture
def relay() -> Iterator[Any]:
    """A worker's relay, which gives back what it has at the end."""
    from slotline.pools import Relay

    relay = Relay()
    yield relay
    relay.close()


def hurry(relay: Any) -> None:
    """Begin runs of other pools, so many that the process is busy."""
    from slotline import Pool

    for _ in range(10):
        relay.take(Pool("other", 1), "run")
