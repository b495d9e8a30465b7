"""The grinder: many small pieces of work, each batch of them in one lease."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from types import TracebackType
from typing import ParamSpec, Self, TypedDict, TypeVar

from slotline._checks import refuse, seconds, text
from slotline.errors import LeaseUnavailableError
from slotline.leases import _options, _work
from slotline.leases._gate import Gate
from slotline.leases._items import Item, LoopItem, Outcome, ThreadItem
from slotline.leases._mailbox import Inbox
from slotline.leases.lease import ExecutorLease
from slotline.leases.manager import LeasedExecutorManager

P = ParamSpec("P")
T = TypeVar("T")


class GrinderStats(TypedDict):
    """How a grinder stands.

    ``pending`` counts accepted items without an executor, those of batches that wait for one included; ``unfinished``
    also those that run; ``waiting_batches`` the batches that wait for an executor.
    """

    started: bool
    stopping: bool
    pending: int
    unfinished: int
    waiting_batches: int
    max_pending: int
    batch_size_threshold: int
    max_wait_seconds: float
    lease_seconds: float
    oldest_wait_seconds: float


class WorkGrinder:
    """Collects calls and runs them in batches, one lease for each batch.

    Batches do not wait for one another, and an item's result is delivered when that item is done. Whoever adds items
    faster than they are ground waits in line once ``max_pending`` of them have no executor.

    The coroutine methods and, while it runs, ``stats()`` belong to the event loop that called ``start()``;
    ``submit_from_thread()`` and ``stats_from_thread()`` to other threads. Anything else is a ``RuntimeError``.

    Args:
        executor_manager: A running manager.
        max_wait_seconds: The longest that an item waits for its batch to fill (default 10).
        batch_size_threshold: How many items fill a batch (default 20).
        lease_seconds: Life of each batch's lease (default 60).
        owner_prefix: First part of the leases' labels (default ``"work-grinder"``).
        max_pending: How many items may wait (default 10,000).
        logger: Gets a line when a batch fails (default: ``slotline.leases``).

    Raises:
        InvalidOptionError: A value is not one of those.
    """

    def __init__(
        self,
        *,
        executor_manager: LeasedExecutorManager,
        max_wait_seconds: float = 10.0,
        batch_size_threshold: int = 20,
        lease_seconds: float = 60.0,
        owner_prefix: str = "work-grinder",
        max_pending: int = 10_000,
        logger: logging.Logger | None = None,
    ) -> None:
        if not isinstance(executor_manager, LeasedExecutorManager):
            raise refuse("executor_manager", executor_manager, "a LeasedExecutorManager")
        self._manager = executor_manager
        self._max_wait = seconds("max_wait_seconds", max_wait_seconds)
        self._threshold = _options.count("batch_size_threshold", batch_size_threshold)
        self._lease_seconds = seconds("lease_seconds", lease_seconds)
        self._prefix = text("owner_prefix", owner_prefix)
        self._max_pending = _options.count("max_pending", max_pending)
        if self._max_pending < self._threshold:
            raise refuse("max_pending", max_pending, f"at least batch_size_threshold ({self._threshold})")
        self._logger = _options.logger_of("logger", logger)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping = False

    async def start(self) -> None:
        """Begin to take work; the running loop becomes the grinder's own.

        Raises:
            RuntimeError: It runs already, on another loop.
        """
        loop = asyncio.get_running_loop()
        if self._loop is not None:
            self._own("start")
            return
        self._thread = threading.get_ident()
        self._inbox: Inbox[Item] = Inbox(loop, self._accept)
        self._done: Inbox[Outcome] = Inbox(loop, self._arrive)
        self._gate = Gate(self._max_pending)
        self._pending: deque[Item] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._batches: dict[asyncio.Task[None], list[Item]] = {}
        self._serial = 0
        self._unfinished = 0
        self._idle = loop.create_future()  # set when the last item of a stopping grinder is done
        self._stopping = False
        self._loop = loop

    async def stop(self, *, cancel_pending: bool = False) -> None:
        """Take no more work and return when all that was accepted is done; callers that wait for room are turned away.

        Args:
            cancel_pending: Whether items that no worker has begun are cancelled instead (default ``False``).
        """
        if self._loop is None:
            return
        self._own("stop")
        self._stopping = True
        self._gate.close()
        self._inbox.empty()
        if cancel_pending:
            self._cancel_pending()
        self._flush()
        if self._unfinished:
            await asyncio.shield(self._idle)  # whoever gives up waiting may come again
        if self._batches:
            await asyncio.wait(list(self._batches))
        self._loop, self._stopping = None, False

    async def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a call in a batch and return what it returns; cancelling it drops the call if no worker has it yet.

        The keyword argument ``owner`` is the grinder's: a label for this item, which ``fn`` does not get.

        Raises:
            RuntimeError: The grinder is not running, or this is not its loop.
            LeaseExpiredError: The batch's lease expired before the call had ended.
            ManagerClosedError: The manager is not running.
        """
        loop = self._own("submit")
        if self._stopping or (not self._gate.try_enter() and not await self._gate.enter()):
            raise _stopped()
        item = LoopItem(fn, args, kwargs, loop.time(), self._done)
        future: asyncio.Future[T] = loop.create_future()
        item.future = future
        self._accept(item)
        return await future

    async def enqueue(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> asyncio.Future[T]:
        """Add a call to a batch, waiting for room if need be, and return the future of its result; see ``submit``."""
        loop = self._own("enqueue")
        if self._stopping or (not self._gate.try_enter() and not await self._gate.enter()):
            raise _stopped()
        item = LoopItem(fn, args, kwargs, loop.time(), self._done)
        item.future = loop.create_future()
        self._accept(item)
        return item.future

    def submit_from_thread(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Add a call to a batch from another thread, blocking it for room if need be; see ``submit``.

        Returns:
            The future of its result; cancelling it drops the call if no worker has it yet.
        """
        loop = self._elsewhere("submit_from_thread")
        if self._stopping or (not self._gate.try_enter() and not self._gate.enter_blocking()):
            raise _stopped()
        item = ThreadItem(fn, args, kwargs, loop.time(), self._done)
        item.future = Future()
        if not self._inbox.put(item):
            raise RuntimeError("The event loop of this WorkGrinder is closed.")
        return item.future

    def stats(self) -> GrinderStats:
        """Return how the grinder stands; while it runs, only in its own loop."""
        if self._loop is None:
            return self._facts(oldest=0.0, pending=0, unfinished=0, batches=0)
        loop = self._own("stats")
        arrivals = [batch[0].arrival for batch in self._batches.values()]
        if self._pending:
            arrivals.append(self._pending[0].arrival)
        return self._facts(
            oldest=max(0.0, loop.time() - min(arrivals)) if arrivals else 0.0,
            pending=self._gate.inside,
            unfinished=self._unfinished,
            batches=len(self._batches),
        )

    async def astats(self) -> GrinderStats:
        """Return what ``stats`` returns."""
        return self.stats()

    def stats_from_thread(self, timeout: float | None = None) -> GrinderStats:
        """Return what ``stats`` returns, from another thread.

        Args:
            timeout: The longest wait for the loop to answer, in seconds (default: no limit).
        """
        loop = self._elsewhere("stats_from_thread")
        return asyncio.run_coroutine_threadsafe(self.astats(), loop).result(timeout)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    def _accept(self, item: Item) -> None:
        self._unfinished += 1
        if self._loop is None:  # from a thread that came through the gate just before it closed
            self._fail([item], _stopped())
            return
        self._pending.append(item)
        if len(self._pending) >= self._threshold or self._stopping:
            self._flush()
        elif self._timer is None:
            self._timer = self._loop.call_at(item.arrival + self._max_wait, self._flush)

    def _flush(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._pending:
            batch = [self._pending.popleft() for _ in range(min(self._threshold, len(self._pending)))]
            self._serial += 1
            owner = f"{self._prefix}:{self._serial}"
            try:
                lease = self._manager.sync.acquire(lease_seconds=self._lease_seconds, owner=owner, wait=False)
            except LeaseUnavailableError:
                if self._loop is not None:
                    task = self._loop.create_task(self._wait_and_grind(batch, owner))
                    self._batches[task] = batch
                    task.add_done_callback(self._batches.pop)
            except Exception as error:  # noqa: BLE001 - it belongs to those who wait for the batch
                self._fail(batch, error)
            else:
                self._grind(lease, batch)

    async def _wait_and_grind(self, batch: list[Item], owner: str) -> None:
        try:
            lease = await self._manager.acquire(lease_seconds=self._lease_seconds, owner=owner)
        except asyncio.CancelledError:
            self._gate.leave(len(batch))
            for item in batch:
                item.resolve(None, CancelledError())
        except Exception as error:  # noqa: BLE001 - it belongs to those who wait for the batch
            self._fail(batch, error)
        else:
            self._grind(lease, batch)

    def _grind(self, lease: ExecutorLease, batch: list[Item]) -> None:
        self._gate.leave(len(batch))
        grant = lease._grant  # noqa: SLF001 - the same package: a batch enters a lease in one piece
        if not grant.core.backend.local:  # nobody asks again before another process runs it
            batch = [item for item in batch if item.starting()]
        jobs = [_work.job_for(grant, item, item.fn, item.args, item.kwargs, item.context) for item in batch]
        try:
            _work.submit_many(grant, jobs)
        except Exception as error:  # noqa: BLE001 - it belongs to those who wait for the batch
            for item in batch:
                item.resolve(None, error)
        finally:
            lease.sync.release()  # the batch drains, then the place passes on

    def _fail(self, batch: list[Item], error: Exception) -> None:
        self._logger.error("A batch of %d items found no executor: %s", len(batch), error)
        self._gate.leave(len(batch))
        for item in batch:
            item.resolve(None, error)

    def _cancel_pending(self) -> None:
        batch = list(self._pending)
        self._pending.clear()
        self._gate.leave(len(batch))
        for item in batch:
            item.resolve(None, CancelledError())
        for task in self._batches:
            task.cancel()

    def _arrive(self, outcome: Outcome) -> None:
        item, value, error = outcome
        item.arrive(value, error)
        self._unfinished -= 1
        if self._stopping and not self._unfinished and not self._idle.done():
            self._idle.set_result(None)

    def _own(self, method: str) -> asyncio.AbstractEventLoop:
        if self._loop is None:
            raise _stopped()
        try:
            own = asyncio.get_running_loop() is self._loop
        except RuntimeError:  # no loop runs in this thread
            own = False
        if not own:
            raise RuntimeError(
                f"WorkGrinder.{method}() belongs to the event loop that started it; "
                "from other threads use submit_from_thread() and stats_from_thread()."
            )
        return self._loop

    def _elsewhere(self, method: str) -> asyncio.AbstractEventLoop:
        if self._loop is None:
            raise _stopped()
        if threading.get_ident() == self._thread:
            raise RuntimeError(
                f"WorkGrinder.{method}() would block the event loop that started it; await submit() or astats() there."
            )
        return self._loop

    def _facts(self, *, oldest: float, pending: int, unfinished: int, batches: int) -> GrinderStats:
        return GrinderStats(
            started=self._loop is not None,
            stopping=self._stopping,
            pending=pending,
            unfinished=unfinished,
            waiting_batches=batches,
            max_pending=self._max_pending,
            batch_size_threshold=self._threshold,
            max_wait_seconds=self._max_wait,
            lease_seconds=self._lease_seconds,
            oldest_wait_seconds=oldest,
        )


def _stopped() -> RuntimeError:
    return RuntimeError("This WorkGrinder is not running: await its start() first.")
