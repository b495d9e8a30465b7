"""The gathering of an event loop's calls, without a server."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from slotline.stores._coalesce import Coalescer
from slotline.stores.base import Command
from tests.harness.waiting import await_until


async def test_what_is_asked_for_while_the_loop_ends_is_sent_although_the_flight_before_was_cancelled_unstarted():
    async def send(commands: Sequence[Command]) -> list[str]:
        return [command.script for command in commands]

    async def close() -> None:
        pass

    coalescer = Coalescer(send, close)

    async def release_at_the_end() -> str:
        try:
            await asyncio.sleep(100)
        except asyncio.CancelledError:
            return await asyncio.wait_for(coalescer.submit(Command("release", ())), 5)
        raise AssertionError("it was not cancelled")

    held = asyncio.create_task(release_at_the_end())
    await asyncio.sleep(0)
    asked = coalescer.submit(Command("ask", ()))
    for task in asyncio.all_tasks() - {asyncio.current_task()}:  # as asyncio.run() does at its end
        task.cancel()
    assert await held == "release"
    assert await asked == "ask"
    await coalescer.close()


class Line:
    """A way to send that notes what travels together, in whose task, and lets it land when told."""

    def __init__(self) -> None:
        self.sent: list[tuple[list[str], asyncio.Task[None] | None]] = []
        self.landing = asyncio.Event()

    async def send(self, commands: Sequence[Command]) -> list[str]:
        names = [command.script for command in commands]
        self.sent.append((names, asyncio.current_task()))
        await self.landing.wait()
        return names

    async def close(self) -> None:
        assert self.landing.is_set(), "closed over what is under way"


async def test_a_read_without_company_travels_in_its_callers_task_and_others_travel_together():
    line = Line()
    coalescer = Coalescer(line.send, line.close)
    jobs = [asyncio.create_task(coalescer.read(Command(f"READ{at}", ()))) for at in range(5)]
    await await_until("2 have left", lambda: len(line.sent) == 2)
    late = asyncio.create_task(coalescer.read(Command("LATE", ())))  # as many flights as there may be are under way
    await asyncio.sleep(0)
    assert [names for names, _ in line.sent] == [["READ0"], ["READ1", "READ2", "READ3", "READ4"]]
    assert [task in jobs for _, task in line.sent] == [True, False]
    line.landing.set()
    assert await asyncio.gather(*jobs, late) == [*(f"READ{at}" for at in range(5)), "LATE"]
    await coalescer.submit(Command("SUBMITTED", ()))
    assert await coalescer.read(Command("AFTER", ())) == "AFTER"
    assert line.sent[-1][1] is asyncio.current_task()
    await coalescer.close()


async def test_what_was_asked_for_beside_a_lone_read_goes_on_when_its_caller_is_cancelled():
    line = Line()
    coalescer = Coalescer(line.send, line.close)
    lone = asyncio.create_task(coalescer.read(Command("LONE", ())))
    await asyncio.sleep(0)
    beside = coalescer.submit(Command("beside", ()))
    await await_until("2 have left", lambda: len(line.sent) == 2)
    waiting = coalescer.submit(Command("waiting", ()))
    lone.cancel()
    await await_until("3 have left", lambda: len(line.sent) == 3)
    line.landing.set()
    assert await asyncio.gather(beside, waiting) == ["beside", "waiting"]
    assert lone.cancelled()
    await coalescer.close()


async def test_closing_waits_for_a_lone_read():
    line = Line()
    coalescer = Coalescer(line.send, line.close)
    lone = asyncio.create_task(coalescer.read(Command("LONE", ())))
    await asyncio.sleep(0)
    closing = asyncio.create_task(coalescer.close())
    await asyncio.sleep(0)
    assert not closing.done()
    line.landing.set()
    assert await lone == "LONE"
    await closing
