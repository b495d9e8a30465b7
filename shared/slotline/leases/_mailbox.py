"""Results on their way from worker threads into event loops.

Waking a loop from another thread costs a system call and a pass of the loop. Everything that arrives before the loop
gets round to looking therefore shares one wake-up.
"""

from __future__ import annotations

import asyncio
import weakref
from collections import deque
from collections.abc import Callable
from concurrent.futures import CancelledError
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Inbox(Generic[T]):
    """Things that other threads leave for one loop to handle.

    Args:
        loop: The loop.
        handle: Called with each thing, in the loop's thread, in the order in which they came.
    """

    __slots__ = ("_handle", "_items", "_loop", "_scheduled")

    def __init__(self, loop: asyncio.AbstractEventLoop, handle: Callable[[T], None]) -> None:
        self._loop = weakref.ref(loop)  # the table of mailboxes must not keep a loop alive
        self._handle = handle
        self._items: deque[T] = deque()
        self._scheduled = False

    def put(self, item: T) -> bool:
        """Leave a thing, from any thread; ``False`` if the loop is gone."""
        self._items.append(item)
        if self._scheduled:  # reset before the loop empties the box, so an item seen here is never left behind
            return True
        self._scheduled = True
        loop = self._loop()
        try:
            if loop is not None:
                loop.call_soon_threadsafe(self.empty)
                return True
        except RuntimeError:  # the loop is closed
            pass
        self._scheduled = False
        self._items.clear()
        return False

    def belongs_to(self, loop: asyncio.AbstractEventLoop) -> bool:
        """Whether ``loop`` is the one that handles what is put here."""
        return self._loop() is loop

    def abandoned(self) -> bool:
        """Whether the loop has been collected."""
        return self._loop() is None

    def empty(self) -> None:
        """Handle what is there, in the loop's thread."""
        self._scheduled = False
        items = self._items
        for _ in range(len(items)):
            try:
                item = items.popleft()
            except IndexError:  # the loop was closed meanwhile and somebody emptied the box
                return
            self._handle(item)


class Mailbox(Inbox[tuple["asyncio.Future[Any]", Any, BaseException | None]]):
    """The outcomes that wait to be set on one loop's futures."""

    __slots__ = ()

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop, _settle)

    def post(self, future: asyncio.Future[Any], value: Any, error: BaseException | None) -> bool:
        """Have an outcome set on ``future``, from any thread; ``False`` if its loop is gone."""
        return self.put((future, value, error))


def _settle(outcome: tuple[asyncio.Future[Any], Any, BaseException | None]) -> None:
    settle(*outcome)


def settle(future: asyncio.Future[Any], value: Any, error: BaseException | None) -> None:
    """Set an outcome on a future of the running loop, unless its caller has gone."""
    if future.done():
        return
    if error is None:
        future.set_result(value)
    elif isinstance(error, CancelledError):
        future.cancel()
    elif isinstance(error, StopIteration):  # asyncio refuses it: it would end the awaiting coroutine in silence
        refused = RuntimeError("The work raised StopIteration.")
        refused.__cause__ = error
        future.set_exception(refused)
    else:
        future.set_exception(error)


_mailboxes: dict[int, Mailbox] = {}


def mailbox_of(loop: asyncio.AbstractEventLoop) -> Mailbox:
    """Return the one mailbox of a loop; called in that loop's thread."""
    box = _mailboxes.get(id(loop))
    if box is None or not box.belongs_to(loop):  # the loop that had this id before is gone
        for number, stale in list(_mailboxes.items()):
            if stale.abandoned():
                _mailboxes.pop(number, None)
        box = _mailboxes[id(loop)] = Mailbox(loop)
    return box
