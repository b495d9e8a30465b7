"""How those who wait for a bell are woken."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable

import pytest

from slotline import MemoryStore
from slotline.stores.wakeups import Wait, Wakeups, together


@pytest.fixture
def hub() -> Wakeups:
    return MemoryStore().wakeups


@pytest.fixture
async def woken(monkeypatch) -> list[Callable[..., None]]:
    """What other threads have had the running loop do."""
    loop, calls = asyncio.get_running_loop(), list[Callable[..., None]]()
    call_soon = loop.call_soon_threadsafe

    def noted(callback, *args, **options):
        calls.append(callback)
        return call_soon(callback, *args, **options)

    monkeypatch.setattr(loop, "call_soon_threadsafe", noted)
    return calls


async def waiting(hub: Wakeups, *tokens: str) -> list[asyncio.Task[bytes | None]]:
    tasks = [asyncio.create_task(Wait(hub.bell(token), 60).awaiting()) for token in tokens]
    await asyncio.sleep(0)
    return tasks


async def test_a_loop_is_woken_once_for_all_bells_that_another_thread_rings_together(hub, woken):
    tasks = await waiting(hub, *"abcde")

    def ring() -> None:
        with together:
            for token in "abcde":
                hub.ring(token, token.encode())

    thread = threading.Thread(target=ring)
    thread.start()
    assert await asyncio.gather(*tasks) == [b"a", b"b", b"c", b"d", b"e"]
    assert len(woken) == 1
    thread.join()


async def test_each_ring_alone_wakes_at_once(hub, woken):
    tasks = await waiting(hub, *"ab")
    thread = threading.Thread(target=lambda: [hub.ring(token, b"now") for token in "ab"])
    thread.start()
    assert await asyncio.gather(*tasks) == [b"now", b"now"]
    assert len(woken) == 2
    thread.join()


async def test_a_waiter_who_is_just_about_to_wait_hears_that_messages_may_be_lost(hub):
    bell = hub.bell("a")
    hub.nudge_all()
    assert await asyncio.wait_for(Wait(bell, 600).awaiting(), 60) is None


async def test_a_ring_in_the_waiters_own_loop_needs_no_waking(hub, woken):
    tasks = await waiting(hub, *"ab")
    for token in "ab":
        hub.ring(token, b"now")
    assert await asyncio.gather(*tasks) == [b"now", b"now"]
    assert not woken


async def test_a_loop_that_is_closed_keeps_no_other_from_being_woken():
    closed, living, rung = asyncio.new_event_loop(), asyncio.get_running_loop(), asyncio.Event()
    closed.close()

    def ring() -> None:
        with together:
            together.call(closed, rung.set)
            together.call(living, rung.set)

    thread = threading.Thread(target=ring)
    thread.start()
    await asyncio.wait_for(rung.wait(), 60)
    thread.join()


async def test_bells_that_were_rung_before_an_error_wake_their_waiters_all_the_same(hub):
    [task] = await waiting(hub, "a")

    def ring() -> None:
        with contextlib.suppress(ValueError), together:
            hub.ring("a", b"now")
            raise ValueError("no message")

    thread = threading.Thread(target=ring)
    thread.start()
    assert await task == b"now"
    thread.join()
