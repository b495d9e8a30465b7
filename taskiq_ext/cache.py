"""Results of tasks, kept and shared: ``CacheMiddleware``."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from taskiq.exceptions import NoResultError, TaskRejectedError

from slotline._checks import flag, optional_seconds, refuse
from slotline.caches import BaseCacheAdapter, InMemoryCacheAdapter
from slotline.errors import CacheRecursionError
from taskiq_ext._base import LabelledMiddleware
from taskiq_ext._calls import calls_of
from taskiq_ext._flight import Flight, Served
from taskiq_ext._interception import current_plan, plan_of
from taskiq_ext._labels import CACHE_LABELS, CacheOptions, cache_options
from taskiq_ext._outage import Outage

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping

    from taskiq.message import TaskiqMessage
    from taskiq.result import TaskiqResult

    from slotline.settings import OnStoreError
    from taskiq_ext._interception import Plan

logger = logging.getLogger(__name__)

_NO_ANSWER = (NoResultError, TaskRejectedError)

HIT_LABEL = "cache_hit"
"""Set to ``True`` on a result that was not computed for its message."""


class CacheMiddleware(LabelledMiddleware[CacheOptions]):
    """Serve the results of tasks that carry ``cache_ttl`` (or ``cache=True``) from a cache.

    A hit ends with the value that the function had returned, and a ``cache_hit`` label on the result; the function
    does not run. Of the messages that ask for one value at the same time, one runs and the others get its result.
    Only what a function returns is kept; with the label ``cache_errors`` also what it raises. If the worker dies
    in the middle of a run, the next message runs within the lease of the cache.

    Put it before ``PoolLimitMiddleware``, so that a hit needs no slot.

    Args:
        cache: Where results are kept; ``None``: in this process's memory.
        enabled: ``False`` leaves every task alone.
        default_ttl: Seconds that a result is kept where the task says ``cache=True`` alone; 0 or ``None``: no end.
        on_store_error: What happens to a message while the cache's store is away: it waits (``"wait"``), runs
            without the cache (``"open"``), or ends with ``StoreUnavailableError`` (``"fail"``). Default: the settings'.

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
    ) -> None:
        super().__init__()
        if cache is not None and not isinstance(cache, BaseCacheAdapter):
            raise refuse("cache", cache, "a BaseCacheAdapter or None")
        self.enabled = flag("enabled", enabled)
        self.default_ttl = optional_seconds("default_ttl", default_ttl, zero=True)
        self.cache = InMemoryCacheAdapter() if cache is None else cache
        self._outage = Outage(on_store_error)
        self._flights: dict[Plan, Flight] = {}

    def read(self, labels: Mapping[str, Any], function: Callable[..., Any] | None) -> CacheOptions | None:
        """Return the options that ``labels`` ask for."""
        return cache_options(labels, function, self.default_ttl)

    async def admit(self, plan: Plan, options: CacheOptions, message: TaskiqMessage) -> None:
        """Serve the message from the cache, or let it run for everyone who waits for the same."""
        calls = calls_of(plan.real)
        name = plan.task.task_name
        key = calls.key(name, message) if options.key is None else calls.fill(options.key, message)
        if key is None:
            return  # the arguments do not fit: the function says so itself
        self._refuse_waiting_for_oneself(key, plan)
        flight = Flight(self.cache, key, options, calls.returns)
        boarded = await self._outage.ride_out(
            lambda: _boarded(flight), f"Task {name} with id {message.task_id} cannot ask the cache and"
        )
        if boarded is None:
            return
        (served,) = boarded
        if served is None:
            self._flights[plan] = flight
            plan.hold(self, lambda: self._abandon(plan))
            return
        if served.error is not None and message.labels.get("_retries"):
            return  # the error is what this message is the retry of
        logger.debug("Cache hit: %s for task %s with id %s.", key, name, message.task_id)
        plan.hit = True
        if served.error is not None:
            plan.fail(served.error)
        else:
            plan.serve_value(served.value)

    def post_execute(self, message: TaskiqMessage, result: TaskiqResult[Any]) -> Coroutine[Any, Any, None] | None:
        """Keep the result of a run, and mark the result of a hit."""
        if current_plan() is None or (plan := plan_of(self, message)) is None:
            return None
        if plan.hit:
            result.labels[HIT_LABEL] = True
        plan.close(self)
        flight = self._flights.pop(plan, None)
        if flight is None:
            return None
        plan.let_go(self)
        error = result.error
        if error is None:
            return flight.land(result.return_value)
        if plan.outcome is not None or isinstance(error, _NO_ANSWER) or not isinstance(error, Exception):
            return flight.turn_back()  # a limit, a retry or a cancellation concerns this message alone
        return flight.fail(error)

    async def shutdown(self) -> None:
        """Close what the cache has opened in this process; it opens it again if it is used again."""
        await self.cache.close()

    def _refuse_waiting_for_oneself(self, key: str, plan: Plan) -> None:
        outer = plan.outer
        while outer is not None:
            flight = self._flights.get(outer)
            if flight is not None and flight.key == key:
                raise CacheRecursionError(key)
            outer = outer.outer

    def _abandon(self, plan: Plan) -> None:
        self._flights.pop(plan).abandon()


async def _boarded(flight: Flight) -> tuple[Served | None]:
    return (await flight.board(),)
