"""Results of tasks, kept and shared: ``CacheMiddleware``."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, TypeAlias

from taskiq.exceptions import NoResultError, TaskRejectedError

from slotline._checks import flag, optional_seconds, refuse
from slotline.caches import BaseCacheAdapter, CacheAdapter, InMemoryCacheAdapter
from slotline.caches.line import shared_part
from slotline.errors import CacheRecursionError, SerializationError, StoreError
from taskiq_ext import _sending
from taskiq_ext._base import LabelledMiddleware
from taskiq_ext._calls import calls_of
from taskiq_ext._delivery import RUNS_LATER, without_result_if_parked
from taskiq_ext._entry import CacheEntry, entry_for
from taskiq_ext._errors import error_from_cache
from taskiq_ext._flight import Flight, Served
from taskiq_ext._following import Following, RunsLater
from taskiq_ext._interception import current_plan, function_of, plan_of
from taskiq_ext._labels import CACHE_LABELS, CacheOptions, cache_options
from taskiq_ext._outage import Outage
from taskiq_ext._refresh import Refresh
from taskiq_ext._room import waiting_room

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping

    from taskiq.abc.broker import AsyncBroker
    from taskiq.message import TaskiqMessage
    from taskiq.result import TaskiqResult

    from slotline.caches import Hit
    from slotline.settings import OnStoreError
    from slotline.stores import MemoryStore
    from slotline.stores.base import Store
    from taskiq_ext._interception import AnyTask, Plan

logger = logging.getLogger(__name__)

_Run: TypeAlias = Flight | Refresh
_NO_ANSWER = (NoResultError, TaskRejectedError)

HIT_LABEL = "cache_hit"
"""Set to ``True`` on a result that was not computed for its message."""


class CacheMiddleware(LabelledMiddleware[CacheOptions]):
    """Serve the results of tasks that carry ``cache_ttl`` (or ``cache=True``) from a cache.

    A hit ends with the value that the function had returned, and a ``cache_hit`` label on the result; the function
    does not run. With a cache that processes share, a hit is found by the sender already, and nothing is sent.
    Of the messages that ask for one value at the same time, one runs and the others get its result.
    Only what a function returns is kept; with the label ``cache_errors`` also what it raises. If the worker dies
    in the middle of a run, the next message runs within the lease of the cache.

    Put it before ``PoolLimitMiddleware``, so that a hit needs no slot.

    Args:
        cache: Where results are kept; ``None``: in this process's memory.
        enabled: ``False`` leaves every task alone.
        default_ttl: Seconds that a result is kept where the task says ``cache=True`` alone; 0 or ``None``: no end.
        on_store_error: What happens to a message while the cache's store is away: it waits (``"wait"``), runs
            without the cache (``"open"``), or ends with ``StoreUnavailableError`` (``"fail"``). Default: the settings'.
        answer_senders: Whether a hit is looked for before a plain message is sent (default ``True``; never in a cache
            of one process). One that carries labels of others than the task and this package is sent.

    Raises:
        InvalidOptionError: An argument is impossible.
    """

    family = CACHE_LABELS

    def __init__(
        self,
        cache: BaseCacheAdapter | None = None,
        enabled: bool = True,  # noqa: FBT001, FBT002 - the documented interface
        default_ttl: float | None = 3600,
        *,
        on_store_error: OnStoreError | None = None,
        answer_senders: bool = True,
    ) -> None:
        super().__init__()
        if cache is not None and not isinstance(cache, BaseCacheAdapter):
            raise refuse("cache", cache, "a BaseCacheAdapter or None")
        self.enabled = flag("enabled", enabled)
        self.default_ttl = optional_seconds("default_ttl", default_ttl, zero=True)
        self.cache = InMemoryCacheAdapter() if cache is None else cache
        self._answers = flag("answer_senders", answer_senders) and not isinstance(self.cache, InMemoryCacheAdapter)
        self._outage = Outage(on_store_error)
        self._running: dict[Plan, _Run] = {}
        self._following: Following | None = None
        self._memory: MemoryStore | None = None

    def read(self, labels: Mapping[str, Any], function: Callable[..., Any] | None) -> CacheOptions | None:
        """Return the options that ``labels`` ask for."""
        return cache_options(labels, function, self.default_ttl, capable=isinstance(self.cache, CacheAdapter))

    def set_broker(self, broker: AsyncBroker) -> None:
        """Serve ``broker``; see :class:`LabelledMiddleware`."""
        fresh = self._served is None
        super().set_broker(broker)
        if fresh and self._answers and self.enabled:
            _sending.answer_before_kicking(broker)
        if fresh and shared_part(self.cache) is not None:
            self._following = Following(self.cache, broker)

    def pre_send(self, message: TaskiqMessage) -> TaskiqMessage | Coroutine[Any, Any, TaskiqMessage]:
        """Check the labels of this call, and look for its value.

        Raises:
            InvalidOptionError: A label is unknown or has an impossible value; nothing is sent.
        """
        options = self.options_to_send(message) if message.labels else None
        if options is None or not self._answers or not self.enabled:
            return message
        return self._answered(message, options)

    async def _answered(self, message: TaskiqMessage, options: CacheOptions) -> TaskiqMessage:
        task = self.broker.find_task(message.task_name)
        if task is None or not _sending.can_answer(self.broker, task, message):
            return message
        try:
            entry = entry_for(self.cache, task.task_name, calls_of(function_of(task)), options, message)
            hit = None if entry is None else await entry.look()
        except (StoreError, SerializationError):
            return message  # the worker knows what to do about it
        if hit is not None and hit.error is None and not hit.stale and error_from_cache(hit.value) is None:
            _sending.answer(message, hit.value, HIT_LABEL)
        return message

    async def admit(self, plan: Plan, options: CacheOptions, message: TaskiqMessage) -> None:
        """Serve the message from the cache, or let it run for everyone who waits for the same."""
        name = plan.task.task_name
        serves_old = any(other.serves_old(plan.task, message) for other in self.others())
        entry = entry_for(self.cache, name, calls_of(plan.real), options, message, serves_old=serves_old)
        if entry is None:
            return  # the arguments do not fit: the function says so itself
        self._refuse_waiting_for_oneself(entry.key, plan)
        found = await self._outage.ride_out(
            lambda: self._find(entry, message), f"Task {name} with id {message.task_id} cannot ask the cache and"
        )
        if isinstance(found, RunsLater):
            plan.serve_value(RUNS_LATER)
        elif isinstance(found, Flight | Refresh):
            self._running[plan] = found
            plan.hold(self, self._abandon)
        elif found is not None and not (found.error is not None and _is_retry(message)):
            # A retry is not served the very error that it is the retry of.
            logger.debug("Cache hit: %s for task %s with id %s.", entry.key, name, message.task_id)
            plan.hit = True
            if found.error is not None:
                plan.fail(found.error)
            else:
                plan.serve_value(found.value)

    async def old_value(self, plan: Plan, message: TaskiqMessage) -> Hit | None:
        """Return the last value of a message's call, however old; its task must be one that keeps it."""
        options = self.options_for(plan.task, message) if self.enabled else None
        if options is None:
            return None
        try:
            entry = entry_for(self.cache, plan.task.task_name, calls_of(plan.real), options, message)
            return None if entry is None else await entry.old()
        except (StoreError, SerializationError) as error:
            logger.debug("There is no old value for task %s with id %s: %s", message.task_name, message.task_id, error)
            return None

    async def _find(self, entry: CacheEntry, message: TaskiqMessage) -> Served | _Run | RunsLater:
        if entry.grace > 0:
            hit = await entry.look(stale=True)
            if hit is not None and hit.error is None:
                refresh = await Refresh.begin(entry, hit.value, self._lock_store()) if hit.stale else None
                return refresh or Served(hit.value)
        if self._following is None or not self._following.possible:
            return await self._board(Flight(entry))
        lead = await self._following.taken(entry.key)
        if lead is None:
            hit = None if entry.grace > 0 else await entry.peek()
            if hit is not None:
                return Served(hit.value, hit.error)
            lead = await self._following.join(entry.key, message.task_id)
        return lead if isinstance(lead, RunsLater) else await self._board(Flight(entry, lead), _is_retry(message))

    async def _board(self, flight: Flight, retry: bool = False) -> Served | Flight:  # noqa: FBT001, FBT002 - called here
        try:
            served = await flight.awaited(errors=not retry) or await flight.board()
        except BaseException:
            flight.abandon()
            raise
        if served is not None:
            await flight.give_way()
        return served or flight

    def post_execute(self, message: TaskiqMessage, result: TaskiqResult[Any]) -> Coroutine[Any, Any, None] | None:
        """Keep the result of a run, and mark the result of a hit."""
        without_result_if_parked(result)
        if current_plan() is None or (plan := plan_of(self, message)) is None:
            return None
        if plan.hit:
            result.labels[HIT_LABEL] = True
        plan.close(self)
        run = self._running.pop(plan, None)
        if run is None:
            return None
        plan.let_go(self)
        error = result.error
        if plan.outcome is not None:
            return run.turn_back()  # the function did not run: a limit has parked, dropped or failed this message
        if error is None:
            return run.land(result.return_value)
        if isinstance(error, _NO_ANSWER) or not isinstance(error, Exception):
            return run.turn_back()  # a retry or a cancellation concerns this message alone
        if isinstance(run, Refresh):
            result.error, result.is_err, result.return_value = None, False, run.old
            result.labels[HIT_LABEL] = True
        return run.fail(error)

    async def invalidate(self, task: AnyTask, message: TaskiqMessage) -> bool:
        """Remove what is kept for the call that ``message`` stands for; see :func:`taskiq_ext.invalidate`."""
        options = self.options_of(task)
        if options is None:
            raise refuse("task", task, "a task that is cached: one with cache_ttl or cache=True")
        entry = entry_for(self.cache, task.task_name, calls_of(function_of(task)), options, message)
        if entry is None:
            raise TypeError(f"These arguments do not fit {task.task_name}.")
        return await self.cache.invalidate(entry.key)

    async def shutdown(self) -> None:
        """Give back what was taken and has not begun to run, and close what the cache has opened in this process."""
        if self._following is not None:
            await waiting_room(self.broker).close()
        await self.cache.close()

    def _lock_store(self) -> Store:
        store: Store | None = getattr(getattr(self.cache, "shared", self.cache), "store", None)
        if store is not None:
            return store
        from slotline.stores import MemoryStore  # noqa: PLC0415 - its import is dear

        self._memory = self._memory or MemoryStore()
        return self._memory

    def _refuse_waiting_for_oneself(self, key: str, plan: Plan) -> None:
        outer = plan.outer
        while outer is not None:
            run = self._running.get(outer)
            if run is not None and run.entry.key == key:
                raise CacheRecursionError(key)
            outer = outer.outer

    def _abandon(self, plan: Plan) -> None:
        self._running.pop(plan).abandon()


def _is_retry(message: TaskiqMessage) -> bool:
    return bool(message.labels.get("_retries"))
