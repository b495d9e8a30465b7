"""The results of maps: all of them at once, or one by one as they are asked for."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from slotline.workers import _billiard
from slotline.workers.jobs import ApplyResult, Hooks, Observer
from slotline.workers.options import NO_LIMITS

if TYPE_CHECKING:
    from slotline.workers.dispatch import Dispatcher


class MapResults(list[Any]):
    """The list of a map's results, which can also be consumed with ``next()`` like the iterator of ``Executor.map``."""

    _consumed: Iterator[Any] | None = None

    def __next__(self) -> Any:
        if self._consumed is None:
            self._consumed = iter(self)
        return next(self._consumed)


class MapResult(ApplyResult):
    """The results of a whole map as one: its value is their list, its error the first that any call raised."""

    def __init__(self, dispatcher: Dispatcher, hooks: Hooks, count: int) -> None:
        super().__init__(dispatcher, [], NO_LIMITS, hooks)
        self.parts: list[ApplyResult] = []
        self._left = count + 1  # the last is complete()
        self._mutex = threading.Lock()

    def complete(self) -> None:
        """Note that every part has been handed in."""
        self._count_down(None)

    def part_done(self, part: ApplyResult) -> None:
        """Take note of a chunk that is done; called in any thread, once for each."""
        if part.cancelled():
            error: BaseException | None = _billiard.exceptions().Terminated("A part of the map was cancelled.")
        else:
            error = part.outcome_error
        self._count_down(error)

    def _count_down(self, error: BaseException | None) -> None:
        with self._mutex:
            self._left -= 1
            last = self._left == 0
        if error is not None:
            if not self.done():
                self.dispatcher.finish(self, None, error)
        elif last and not self.done():
            self.dispatcher.finish(self, MapResults(value for part in self.parts for value in part.result(0)), None)

    def worker_pids(self) -> list[int]:
        """Return the pids of the workers that run parts of the map now."""
        return [pid for part in self.parts for pid in part.worker_pids()]

    def accepted(self) -> bool:
        """Return whether workers have taken every part."""
        return all(part.accepted() for part in self.parts)

    def terminate(self, signum: int) -> None:
        """End every part of the map that is not done."""
        for part in self.parts:
            if not part.done():
                part.terminate(signum)

    def cancel(self) -> bool:
        """Cancel the map if no worker has taken any part of it."""
        if any(part.claimed for part in self.parts) or not super().cancel():
            return False
        for part in self.parts:
            part.cancel()
        return True


class IMapIterator:
    """The results of a lazy map, in the order of its items or as they come.

    Items are read ahead of the results by a bounded number of chunks, so the iterable may be endless.
    """

    def __init__(
        self,
        submit: Callable[[tuple[Any, ...], Observer | None], ApplyResult],
        chunks: Iterable[tuple[Any, ...]],
        ahead: int,
        *,
        ordered: bool,
    ) -> None:
        self._submit = submit
        self._chunks: Iterator[tuple[Any, ...]] | None = iter(chunks)
        self._ahead = ahead
        self._ordered = ordered
        self._under_way: deque[ApplyResult] = deque()
        self._finished: deque[ApplyResult] = deque()
        self._ready: deque[Any] = deque()
        self._source_error: BaseException | None = None
        self._done = threading.Condition()
        self._feed()

    def _feed(self) -> None:
        while self._chunks is not None and len(self._under_way) < self._ahead:
            try:
                chunk = next(self._chunks)
            except StopIteration:
                self._chunks = None
            except Exception as error:  # noqa: BLE001 - it is raised to the consumer in its turn
                self._chunks, self._source_error = None, error
            else:
                self._under_way.append(self._submit(chunk, None if self._ordered else self._on_done))

    def _on_done(self, job: ApplyResult) -> None:
        with self._done:
            self._finished.append(job)
            self._done.notify()

    def __iter__(self) -> IMapIterator:
        return self

    def __next__(self) -> Any:
        return self.next()

    def next(self, timeout: float | None = None) -> Any:
        """Return the next result.

        Args:
            timeout: Seconds to wait for it; ``None`` waits for ever.

        Raises:
            StopIteration: there are no more.
            TimeoutError: it was not there in time; the next call asks for the same one again.
            Exception: what the call raised; the next call returns the result after it.
        """
        while not self._ready:
            if not self._under_way:
                error, self._source_error = self._source_error, None
                if error is not None:
                    raise error
                raise StopIteration
            job = self._first_done(timeout)
            self._under_way.remove(job)
            try:
                self._feed()
            finally:
                self._ready.extend(job.result(0))
        return self._ready.popleft()

    def _first_done(self, timeout: float | None) -> ApplyResult:
        if self._ordered:
            job = self._under_way[0]
            job.wait(timeout)
            if not job.done():
                raise _billiard.result_timeout()(f"no result after {timeout} s")
            return job
        dispatcher = self._under_way[0].dispatcher
        if not dispatcher.options.threads:
            dispatcher.drive(lambda: bool(self._finished), timeout)
            timeout = 0
        with self._done:
            if not self._done.wait_for(lambda: bool(self._finished), timeout):
                raise _billiard.result_timeout()(f"no result after {timeout} s")
            return self._finished.popleft()
