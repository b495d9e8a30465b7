"""One item of a grinder: what to call, for whom, and where the outcome goes."""

from __future__ import annotations

import asyncio
import contextvars
from abc import abstractmethod
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from typing import Any

from slotline.leases._jobs import Sink
from slotline.leases._mailbox import Inbox, settle

Outcome = tuple["Item", Any, BaseException | None]


class Item(Sink):
    """A call that waits for its batch.

    Args:
        fn: What to call.
        args: With what.
        kwargs: With what.
        arrival: When it came, on the loop's clock.
        done: Takes its outcome home to the grinder's loop.
    """

    __slots__ = ("args", "arrival", "context", "done", "fn", "kwargs", "owner")

    def __init__(
        self,
        fn: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        arrival: float,
        done: Inbox[Outcome],
    ) -> None:
        self.owner: str | None = kwargs.pop("owner", None) if kwargs else None
        self.fn, self.args, self.kwargs, self.arrival, self.done = fn, args, kwargs, arrival, done
        self.context = contextvars.copy_context()

    @property
    def label(self) -> str | None:
        """See :class:`Sink`."""
        return self.owner

    @abstractmethod
    def arrive(self, value: Any, error: BaseException | None) -> None:
        """The outcome has come home: the last word on the item, in the grinder's loop."""

    def resolve(self, value: Any, error: BaseException | None) -> None:
        """See :class:`Sink`."""
        self.done.put((self, value, error))


class LoopItem(Item):
    """An item of a coroutine of the grinder's loop."""

    __slots__ = ("future",)
    brief = True

    future: asyncio.Future[Any]

    def starting(self) -> bool:
        """See :class:`Sink`."""
        if self.future.done():
            self.done.put((self, None, None))
            return False
        return True

    def arrive(self, value: Any, error: BaseException | None) -> None:
        """See :class:`Item`."""
        settle(self.future, value, error)


class ThreadItem(Item):
    """An item of another thread, which has its outcome before the grinder's loop hears of it."""

    __slots__ = ("future",)

    future: Future[Any]

    def starting(self) -> bool:
        """See :class:`Sink`."""
        wanted = self.future.set_running_or_notify_cancel()
        if not wanted:
            self.done.put((self, None, None))
        return wanted

    def resolve(self, value: Any, error: BaseException | None) -> None:
        """See :class:`Sink`."""
        if isinstance(error, CancelledError):
            self.future.cancel()
        if self.future.running() or self.future.set_running_or_notify_cancel():
            if error is not None:
                self.future.set_exception(error)
            else:
                self.future.set_result(value)
        super().resolve(None, None)

    def arrive(self, value: Any, error: BaseException | None) -> None:
        """See :class:`Item`."""
