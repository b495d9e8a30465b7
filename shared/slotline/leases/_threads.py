"""Blocking calls on behalf of coroutines, in a thread of their own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import TypeVar

from slotline.leases._mailbox import mailbox_of

T = TypeVar("T")


async def in_thread(call: Callable[[], T]) -> T:
    """Run ``call`` in a thread made for it; the loop's default executor may be full of work that waits for this."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()
    mailbox = mailbox_of(loop)

    def run() -> None:
        value, error = None, None
        try:
            value = call()
        except BaseException as caught:  # noqa: BLE001 - it belongs to the caller
            error = caught
        mailbox.post(future, value, error)

    thread = threading.Thread(target=run, name="slotline-call", daemon=True)
    thread.start()
    result = await future
    thread.join()
    return result
