"""The gathering of an event loop's calls, without a server."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from slotline.stores._coalesce import Coalescer
from slotline.stores.base import Command


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
