"""A worker process and the ``taskiq worker`` command that it belongs to: it ends when that asks it to, or is gone."""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import os
import signal
import threading
from functools import partial
from typing import TYPE_CHECKING, Any

from slotline.leases._child import watch

if TYPE_CHECKING:
    from collections.abc import Callable

_ASKING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def follow_command() -> None:
    """Heed the command in a worker process; called in its event loop.

    Taskiq's handler of signals sets an event, which a loop without anything to do would not notice. And a command that
    is killed asks nobody: its workers would serve on, with all the processes that they have leased.
    """
    command = multiprocessing.parent_process()
    if command is None or command.pid is None or threading.current_thread() is not threading.main_thread():
        return
    loop = asyncio.get_running_loop()
    for number in _ASKING:
        handler = signal.getsignal(number)
        if callable(handler):
            signal.signal(number, partial(_handle, handler, loop))
    try:
        handle = os.pidfd_open(command.pid)  # the sentinel may be held open by the command's other workers
    except (AttributeError, OSError):
        handle = command.sentinel
    ask = partial(signal.pthread_kill, threading.get_ident(), signal.SIGTERM)
    threading.Thread(target=watch, args=(handle, ask), name="slotline-command", daemon=True).start()


def _handle(handler: Callable[..., Any], loop: asyncio.AbstractEventLoop, number: int, frame: Any) -> None:
    with contextlib.suppress(RuntimeError):  # the loop is closed
        loop.call_soon_threadsafe(lambda: None)
    handler(number, frame)
