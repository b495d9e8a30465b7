"""The gathering of an event loop's calls, without a server."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from slotline.stores._coalesce import LARGEST_BATCH, Coalescer, Landed
from slotline.stores.base import Command


class Sky:
    """Notes what travels together, and lets it land when told."""

    def __init__(self) -> None:
        self.flights: list[tuple[list[str], Landed]] = []
        self.unwanted: list[str] = []
        self.coalescer = Coalescer(self.fly, lambda command: self.unwanted.append(command.script))

    def fly(self, commands: Sequence[Command], landed: Landed) -> None:
        self.flights.append(([command.script for command in commands], landed))

    def ask(self, name: str) -> asyncio.Future[str]:
        return self.coalescer.submit(Command(name, ()))

    @property
    def sent(self) -> list[list[str]]:
        return [names for names, _ in self.flights]

    def land(self, at: int) -> None:
        names, landed = self.flights[at]
        landed(names)


async def rounds(count: int = 3) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_the_first_call_leaves_at_once_and_those_after_it_travel_together_on_at_most_two_connections():
    sky = Sky()
    replies = [sky.ask(f"ask{at}") for at in range(5)]
    assert sky.sent == [["ask0"]]
    await rounds()
    replies.append(sky.ask("late"))
    await rounds()
    assert sky.sent == [["ask0"], ["ask1", "ask2", "ask3", "ask4"]]
    sky.land(0)
    await rounds()
    assert sky.sent[2:] == [["late"]]
    sky.land(1)
    sky.land(2)
    assert await asyncio.gather(*replies) == ["ask0", "ask1", "ask2", "ask3", "ask4", "late"]


async def test_those_who_travelled_together_travel_together_again():
    sky = Sky()

    async def twice(name: str) -> None:
        await sky.ask(name)
        await sky.ask(name)

    callers = [asyncio.create_task(twice(name)) for name in "abc"]
    await rounds()
    assert sky.sent == [["a"], ["b", "c"]]
    sky.land(1)
    await rounds()
    assert sky.sent[2:] == [["b", "c"]]
    sky.land(0)
    await rounds()
    assert sky.sent[3:] == [["a"]]
    sky.land(2)
    sky.land(3)
    await asyncio.gather(*callers)


async def test_commands_that_are_sent_together_are_one_flight():
    sky = Sky()
    replies = sky.coalescer.submit_all([Command(name, ()) for name in "abc"])
    assert sky.sent == [["a", "b", "c"]]
    sky.land(0)
    assert await asyncio.gather(*replies) == ["a", "b", "c"]


async def test_no_flight_takes_more_than_a_thousand():
    sky = Sky()
    replies = sky.coalescer.submit_all([Command(f"{at}", ()) for at in range(2 * LARGEST_BATCH + 1)])
    await rounds()
    assert [len(names) for names in sky.sent] == [LARGEST_BATCH, LARGEST_BATCH]
    sky.land(0)
    await rounds()
    assert [len(names) for names in sky.sent[2:]] == [1]
    sky.land(1)
    sky.land(2)
    assert [reply.result() for reply in replies] == [f"{at}" for at in range(2 * LARGEST_BATCH + 1)]


async def test_who_is_cancelled_before_the_flight_is_not_sent_and_who_is_cancelled_during_it_is_unwanted():
    sky = Sky()
    first, before, during, last = (sky.ask(name) for name in ("first", "before", "during", "last"))
    before.cancel()
    await rounds()
    assert sky.sent == [["first"], ["during", "last"]]
    during.cancel()
    assert sky.unwanted == []
    sky.land(1)
    sky.land(0)
    assert sky.unwanted == ["during"]
    assert await asyncio.gather(first, last) == ["first", "last"]


async def test_each_has_its_own_error():
    sky = Sky()
    replies = sky.coalescer.submit_all([Command(name, ()) for name in "abc"])
    sky.flights[0][1](["a", ValueError("b"), "c"])
    with pytest.raises(ValueError, match="b"):
        await replies[1]
    assert [replies[0].result(), replies[2].result()] == ["a", "c"]


async def test_callers_have_the_error_of_a_flight_that_cannot_leave_and_others_go_on():
    def fly(commands: Sequence[Command], landed: Landed) -> None:
        if commands[0].script == "unknown":
            raise FileNotFoundError("unknown")
        landed([command.script for command in commands])

    coalescer = Coalescer(fly)
    with pytest.raises(FileNotFoundError):
        await coalescer.submit(Command("unknown", ()))
    assert await coalescer.submit(Command("known", ())) == "known"
    await asyncio.wait_for(coalescer.land(), 5)


async def test_who_travels_in_a_flight_that_is_cancelled_is_cancelled():
    sky = Sky()
    replies = sky.coalescer.submit_all([Command(name, ()) for name in "abc"])
    replies[1].cancel()
    sky.flights[0][1](None)
    assert [reply.cancelled() for reply in replies] == [True, True, True]
    assert sky.unwanted == ["b"]  # it may have acted
    after = sky.ask("after")
    await rounds()
    sky.land(1)
    assert await after == "after"


async def test_landing_waits_for_what_flies_and_for_what_waits():
    sky = Sky()
    replies = [sky.ask(name) for name in "ab"]
    landing = asyncio.create_task(sky.coalescer.land())
    for at in range(2):
        await rounds()
        assert not landing.done()
        sky.land(at)
    await asyncio.wait_for(landing, 5)
    assert [reply.result() for reply in replies] == ["a", "b"]


async def test_landing_does_not_wait_for_those_who_have_gone():
    sky = Sky()
    sky.coalescer.submit_all([Command(name, ()) for name in "ab"])
    sky.land(0)
    sky.ask("gone").cancel()
    async with asyncio.timeout(5):
        await sky.coalescer.land()
    assert sky.sent == [["a", "b"]]
