"""Every way to hand in work, shared by an executor and its ``options(...)`` views."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Executor
from typing import Any

from slotline import _checks
from slotline._checks import refuse
from slotline.workers import chunks
from slotline.workers.jobs import NO_HOOKS, ApplyResult, Hooks, Observer
from slotline.workers.mapping import IMapIterator, MapResult, MapResults
from slotline.workers.options import TaskLimits
from slotline.workers.supervisor import Supervisor

_AHEAD = 4
"""How many chunks for each process a lazy map keeps under way."""


class TaskMethods(Executor):
    """Submitting and mapping, in the words of ``concurrent.futures`` and of billiard's ``Pool``."""

    _limits: TaskLimits

    @abstractmethod
    def _supervisor(self) -> Supervisor:
        """Return the supervisor of this process, started."""

    @abstractmethod
    def _hand_in(
        self,
        call: tuple[Callable[..., Any], tuple[Any, ...], Mapping[str, Any]],
        limits: TaskLimits,
        *,
        hooks: Hooks = NO_HOOKS,
        waitforslot: bool | None = None,
        correlation_id: Any = None,
        observer: Observer | None = None,
        index: int | None = None,
    ) -> ApplyResult:
        """Make a task and give it to the dispatcher."""

    # One call.

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> ApplyResult:
        """Have ``fn(*args, **kwargs)`` run in a worker.

        Returns:
            The future. A task, argument, result or exception that cannot be pickled is the future's error.

        Raises:
            ExecutorClosedError: the executor takes no more work.
            RestartFreqExceeded: it has given up because its workers kept failing.
        """
        return self._hand_in((fn, args, kwargs), self._limits)

    def apply(self, func: Callable[..., Any], args: Iterable[Any] = (), kwds: Mapping[str, Any] | None = None) -> Any:
        """Return ``func(*args, **kwds)``, run in a worker."""
        return self.apply_async(func, args, kwds).get()

    def apply_async(  # noqa: PLR0917 - billiard's parameters in billiard's order
        self,
        func: Callable[..., Any],
        args: Iterable[Any] = (),
        kwds: Mapping[str, Any] | None = None,
        callback: Callable[[Any], Any] | None = None,
        error_callback: Callable[[BaseException], Any] | None = None,
        accept_callback: Callable[[int, float], Any] | None = None,
        timeout_callback: Callable[..., Any] | None = None,
        waitforslot: bool | None = None,  # noqa: FBT001 - billiard's order of parameters
        soft_timeout: float | None = None,
        timeout: float | None = None,
        lost_worker_timeout: float | None = None,
        callbacks_propagate: type[BaseException] | Iterable[type[BaseException]] | None = None,
        correlation_id: Any = None,
    ) -> ApplyResult:
        """Have ``func(*args, **kwds)`` run in a worker.

        Args:
            func: What to run; it must be importable in the worker.
            args: Positional arguments.
            kwds: Keyword arguments.
            callback: Called with the value.
            error_callback: Called with the error.
            accept_callback: Called with the worker's pid and the time (monotonic) when the worker has taken the task.
            timeout_callback: Called as ``(soft=..., timeout=...)`` when a limit has passed.
            waitforslot: Wait until fewer tasks than processes are unfinished (default: what ``putlocks`` says).
            soft_timeout: Seconds after which ``SoftTimeLimitExceeded`` is raised in the task (default: the executor's).
            timeout: Seconds after which the task is killed (default: the executor's).
            lost_worker_timeout: Seconds that a dead worker's exit status is waited for (default: the executor's).
            callbacks_propagate: Exceptions that, raised by a callback, become the task's error; others are logged.
            correlation_id: Kept on the result as ``correlation_id``.

        Returns:
            The result, which is a future as well.
        """
        limits = self._limits
        for name, value in (
            ("soft_timeout", soft_timeout),
            ("timeout", timeout),
            ("lost_worker_timeout", lost_worker_timeout),
        ):
            if value is not None:
                limits = limits.override(**{name: value})
        propagate = callbacks_propagate if callbacks_propagate is not None else ()
        hooks = Hooks(
            _callback("callback", callback),
            _callback("error_callback", error_callback),
            _callback("accept_callback", accept_callback),
            _callback("timeout_callback", timeout_callback),
            (propagate,) if isinstance(propagate, type) else tuple(propagate),
        )
        return self._hand_in(
            (func, tuple(args), {} if kwds is None else kwds),
            limits,
            hooks=NO_HOOKS if hooks == NO_HOOKS else hooks,
            waitforslot=None if waitforslot is None else _checks.flag("waitforslot", waitforslot),
            correlation_id=correlation_id,
        )

    # Many calls.

    def map(
        self,
        func: Callable[..., Any],
        *iterables: Any,
        timeout: float | None = None,
        chunksize: int | None = None,
    ) -> MapResults:
        """Return the list of ``func``'s results for each item, in the items' order.

        ``map(func, iterable)`` and ``map(func, iterable, chunksize)`` are billiard's ``Pool.map``;
        ``map(func, a, b, timeout=..., chunksize=...)`` is ``Executor.map``, whose iterator the list also serves as.

        Args:
            func: What to call.
            iterables: Where the arguments come from; the shortest ends the map. A whole number in the second place is
                the chunk size.
            timeout: Seconds that the whole map may take from now.
            chunksize: How many calls travel together (default: a quarter of a process's share). Where a time limit
                applies every call travels alone, because the limit is one call's.

        Raises:
            TimeoutError: the map took longer than ``timeout``; what has not begun is cancelled.
            Exception: the first that any call raised.
        """
        if len(iterables) == 2 and isinstance(iterables[1], int) and chunksize is None:  # noqa: PLR2004 - iterable, size
            *sources, chunksize = iterables
        else:
            sources = list(iterables)
        star = len(sources) != 1
        result = self._map_async(func, zip(*sources, strict=False) if star else sources[0], chunksize, star=star)
        try:
            values: MapResults = result.get(timeout)
        except TimeoutError:
            for part in result.parts:
                part.cancel()
            raise
        return values

    def starmap(
        self, func: Callable[..., Any], iterable: Iterable[Iterable[Any]], chunksize: int | None = None
    ) -> MapResults:
        """Return the results of ``func(*item)`` for each item, as :meth:`map` does."""
        values: MapResults = self._map_async(func, iterable, chunksize, star=True).get()
        return values

    def map_async(
        self,
        func: Callable[..., Any],
        iterable: Iterable[Any],
        chunksize: int | None = None,
        callback: Callable[[Any], Any] | None = None,
        error_callback: Callable[[BaseException], Any] | None = None,
    ) -> MapResult:
        """Start what :meth:`map` does and return its result, one for the whole map."""
        return self._map_async(func, iterable, chunksize, callback, error_callback, star=False)

    def starmap_async(
        self,
        func: Callable[..., Any],
        iterable: Iterable[Iterable[Any]],
        chunksize: int | None = None,
        callback: Callable[[Any], Any] | None = None,
        error_callback: Callable[[BaseException], Any] | None = None,
    ) -> MapResult:
        """Start what :meth:`starmap` does and return its result, one for the whole map."""
        return self._map_async(func, iterable, chunksize, callback, error_callback, star=True)

    def imap(self, func: Callable[..., Any], iterable: Iterable[Any], chunksize: int = 1) -> IMapIterator:
        """Return an iterator over the results in the items' order; the iterable is read as results are consumed."""
        return self._imap(func, iterable, chunksize, ordered=True)

    def imap_unordered(self, func: Callable[..., Any], iterable: Iterable[Any], chunksize: int = 1) -> IMapIterator:
        """Return an iterator over the results in the order in which they come."""
        return self._imap(func, iterable, chunksize, ordered=False)

    def _map_async(
        self,
        func: Callable[..., Any],
        iterable: Iterable[Any],
        chunksize: int | None,
        callback: Callable[[Any], Any] | None = None,
        error_callback: Callable[[BaseException], Any] | None = None,
        *,
        star: bool,
    ) -> MapResult:
        supervisor = self._supervisor()
        items = iterable if isinstance(iterable, list | tuple | range) else list(iterable)
        size = self._chunk_size(chunksize) or chunks.default_size(len(items), supervisor.crew.target)
        hooks = Hooks(_callback("callback", callback), _callback("error_callback", error_callback))
        result = MapResult(supervisor.dispatcher, NO_HOOKS if hooks == NO_HOOKS else hooks, -(-len(items) // size))
        run = chunks.run_star_chunk if star else chunks.run_chunk
        for index, chunk in enumerate(chunks.cut(items, size)):
            part = self._hand_in(
                (run, (func, chunk), {}), self._limits, waitforslot=False, observer=result.part_done, index=index
            )
            result.parts.append(part)
        result.complete()
        return result

    def _imap(
        self, func: Callable[..., Any], iterable: Iterable[Any], chunksize: int, *, ordered: bool
    ) -> IMapIterator:
        size = self._chunk_size(chunksize) or 1

        def submit(chunk: tuple[Any, ...], observer: Observer | None) -> ApplyResult:
            return self._hand_in(
                (chunks.run_chunk, (func, chunk), {}), self._limits, waitforslot=False, observer=observer
            )

        ahead = max(1, self._supervisor().crew.target) * _AHEAD
        return IMapIterator(submit, chunks.cut(iterable, size), ahead, ordered=ordered)

    def _chunk_size(self, chunksize: int | None) -> int | None:
        if chunksize is not None:
            chunksize = _checks.whole_number("chunksize", chunksize)
        return 1 if self._limits.timed else chunksize


def _callback(option: str, value: Any) -> Any:
    if value is not None and not callable(value):
        raise refuse(option, value, "a callable or None")
    return value
