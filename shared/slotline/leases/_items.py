"""One item of a grinder: what to call, for whom, and where the outcome goes."""

from __future__ import annotations

import asyncio
import contextvars
from abc import abstractmethod
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from typing import Any

from slotline.leases._jobs import Sink
from slotline.leases._mailbox import Mailbox


class Item(Sink):
    """A call that waits for its batch.

    Args:
        fn: What to call.
        args: With what.
        kwargs: With what.
        owner: The label of whoever wants it.
        arrival: When it came, on the loop's clock.
        over: Called once when its outcome is out or nobody wants it any more, in any thread.
    """

    __slots__ = ("args", "arrival", "context", "fn", "kwargs", "over", "owner")

    def __init__(
        self,
        fn: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        owner: str | None,
        arrival: float,
        over: Callable[[], None],
    ) -> None:
        self.fn, self.args, self.kwargs, self.owner, self.arrival, self.over = fn, args, kwargs, owner, arrival, over
        self.context = contextvars.copy_context()

    @property
    def label(self) -> str | None:
        """See :class:`Sink`."""
        return self.owner

    @abstractmethod
    def cancel(self) -> None:
        """Cancel whoever waits for it; in the grinder's loop."""


class LoopItem(Item):
    """An item of a coroutine of the grinder's loop."""

    __slots__ = ("future", "mailbox")

    future: asyncio.Future[Any]
    mailbox: Mailbox

    def starting(self) -> bool:
        """See :class:`Sink`."""
        if self.future.done():
            self.over()
            return False
        return True

    def resolve(self, value: Any, error: BaseException | None) -> None:
        """See :class:`Sink`."""
        self.mailbox.post(self.future, value, error)
        self.over()

    def cancel(self) -> None:
        """See :class:`Item`."""
        self.future.cancel()
        self.over()


class ThreadItem(Item):
    """An item of another thread."""

    __slots__ = ("future",)

    future: Future[Any]

    def starting(self) -> bool:
        """See :class:`Sink`."""
        wanted = self.future.set_running_or_notify_cancel()
        if not wanted:
            self.over()
        return wanted

    def resolve(self, value: Any, error: BaseException | None) -> None:
        """See :class:`Sink`."""
        if not self.future.running() and not self.future.set_running_or_notify_cancel():
            pass  # its owner cancelled it first
        elif isinstance(error, CancelledError):
            self.future.set_exception(CancelledError())
        elif error is not None:
            self.future.set_exception(error)
        else:
            self.future.set_result(value)
        self.over()

    def cancel(self) -> None:
        """See :class:`Item`."""
        self.future.cancel()
        self.future.set_running_or_notify_cancel()
        self.over()
