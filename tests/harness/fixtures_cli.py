"""Fixtures that run the operator's commands on a test's ``store``."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(store: Any, capsys: pytest.CaptureFixture[str]) -> Run:
    """A function that runs a command; it returns its exit status, what it wrote for people, what it complained of."""
    from slotline.cli import main

    def run(*argv: str) -> tuple[int, str, str]:
        status = main(argv, store=store)
        written = capsys.readouterr()
        return status, written.out, written.err

    return run


@pytest.fixture
def facts(run: Run) -> Callable[..., Any]:
    """A function that runs a command and returns what it says in JSON."""

    def facts(*argv: str) -> Any:
        status, out, err = run("--json", *argv)
        assert (status, err) == (0, "")
        return json.loads(out)

    return facts


def park(store: Any, pool: Any, *owners: str, lane: str = "lane", **options: Any) -> None:
    """Park a message for each of the owners."""
    from slotline.pools import Room

    room = Room(store, [lane])
    for owner in owners:
        room.sync.park(pool, f"message of {owner}".encode(), lane=lane, owner=owner, **options)
