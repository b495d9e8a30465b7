"""How a request has ended that the worker itself ends is told by a thread, which the worker does not wait for long.

Its result is written in the worker's main process, by Celery's own means. They wait two minutes, and again, for a
result backend that is connected and does not answer, such as the very Redis that is away.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from celery.utils.log import get_logger
from celery.worker import state

if TYPE_CHECKING:
    from celery_ext.mailbox import Mailbox

logger = get_logger(__name__)

PATIENCE = 1.0
"""Seconds that the worker waits for a result to be written, before it goes on without."""


class Reporting:
    """Tells how requests have ended, one after the other; their messages are acknowledged when that is told.

    Args:
        mailbox: What is woken for an acknowledgement that comes late.
    """

    def __init__(self, mailbox: Mailbox) -> None:
        self._mailbox = mailbox
        self._reports: SimpleQueue[tuple[Callable[..., None], tuple[Any, ...], threading.Event] | None] = SimpleQueue()
        self._starting = threading.Lock()
        self._thread: threading.Thread | None = None
        self._late = False

    def tell(self, report: Callable[..., None], request: Any, *args: Any) -> None:
        """Call ``report(request, *args)``, and wait until that is done, unless it takes long or must wait itself."""
        state.reserved_requests.discard(request)  # it takes no place, however long it is
        done = threading.Event()
        self._reports.put((report, (request, *args), done))
        with self._starting:
            if self._thread is None:
                thread = threading.Thread(target=self._run, name="slotline-reports", daemon=True)
                thread.start()
                self._thread = thread
        if not self._late and not done.wait(PATIENCE):
            self._late = True
            logger.warning("how %s has ended is told later: it takes long, as where a result backend is away", request)

    def close(self) -> None:
        """End the thread, if it comes to that soon: what it has not told is not acknowledged."""
        self._reports.put(None)
        if self._thread is not None:
            self._thread.join(PATIENCE)

    def _run(self) -> None:
        while (told := self._reports.get()) is not None:
            report, args, done = told
            try:
                report(*args)
            except BaseException:  # a handler of the user's may raise anything, and others are still to be told
                logger.exception("Slotline: how a request has ended could not be told")
            done.set()
            if self._late:
                self._late = not self._reports.empty()
                self._mailbox.wake()
            del told, report, args, done  # a request must not wait here for the next one
