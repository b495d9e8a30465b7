"""A signal's exception, such as ``KeyboardInterrupt``, at any moment of a block that holds a slot."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import pytest

from slotline import Pool
from tests.harness.interrupts import Interrupts
from tests.harness.waiting import wait_until

# From the end of the body to the beginning of the release nothing is called that takes time.
BEFORE_THE_RELEASE = {"__exit__", "leave", "_held", "run_blocking", "closing", "releasing"}


def counts(path: tuple[str, ...], name: str) -> bool:
    if path == ("pools", "_tending.py"):
        return True
    return path[0] in ("pools", "slotline") and name not in BEFORE_THE_RELEASE


def at_once(pool: Pool) -> AbstractContextManager[Any]:
    return pool


def in_line(pool: Pool) -> AbstractContextManager[Any]:
    return pool.slot(timeout=10)


@pytest.mark.parametrize("block", [at_once, in_line])
def test_an_interrupt_at_any_moment_leaves_no_slot_behind(store, block):
    number, interrupted = 0, True
    while interrupted:
        number += 1
        pool = Pool(f"p{number}", 1, store=store)
        interrupts = Interrupts(number, counts)

        def run(pool: Pool = pool) -> None:
            with block(pool):
                pass

        interrupted = interrupts.during(run)
        wait_until(f"nothing is held after interrupt {number}", lambda pool=pool: pool.sync.size() == 0)
    assert number > 30
