"""Waiting for a described condition."""

from __future__ import annotations

import asyncio

import pytest

from tests.harness.waiting import await_until, wait_until


def test_wait_until_returns_the_first_true_answer():
    answers = iter([0, None, "there", "later"])
    assert wait_until("it is there", lambda: next(answers), interval=0) == "there"


def test_wait_until_says_what_was_awaited_and_what_was_seen_last():
    with pytest.raises(AssertionError, match=r"^not within 0\.05 s: the slot is free \(last value \[\]\)$"):
        wait_until("the slot is free", list, timeout=0.05, interval=0.02)


def test_wait_until_looks_once_more_at_the_deadline():
    looks = []
    with pytest.raises(AssertionError):
        wait_until("never", lambda: looks.append(1), timeout=0, interval=5)
    assert len(looks) == 1


def test_wait_until_lets_the_predicates_error_through():
    with pytest.raises(ZeroDivisionError):
        wait_until("it divides", lambda: 1 / 0)


async def test_await_until_takes_plain_and_coroutine_predicates():
    event = asyncio.Event()
    asyncio.get_running_loop().call_later(0.02, event.set)

    async def is_set() -> bool:
        return event.is_set()

    assert await await_until("the event is set", is_set) is True
    assert await await_until("the event is set", event.is_set) is True


async def test_await_until_says_what_was_awaited_and_what_was_seen_last():
    async def nothing() -> str:
        return ""

    with pytest.raises(AssertionError, match=r"^not within 0\.02 s: a word comes \(last value ''\)$"):
        await await_until("a word comes", nothing, timeout=0.02)
