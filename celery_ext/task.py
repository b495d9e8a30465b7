"""The task base class: ``Celery(task_cls="celery_ext:Task")``, or ``base=Task`` for single tasks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import celery

from celery_ext import cache as _cache
from celery_ext import executors, sender
from celery_ext.answers import answer_of, has_answer
from celery_ext.config import read_config, runtime
from celery_ext.options import HEADER, TaskOptions, options_of, refuse_unknown, split_call
from celery_ext.slot import TaskSlot, failure_of, slot_of
from celery_ext.step import setup
from slotline._checks import of_task
from slotline.caches.line import failure_in

if TYPE_CHECKING:
    from celery.result import AsyncResult

    from slotline.leases import ExecutorLease

_INSIDE = "_slotline_inside"


class Task(celery.Task):  # type: ignore[misc] # Celery ships no types
    """A task that understands Slotline's options, given to ``@app.task(...)`` or to one ``apply_async(...)``.

    Attributes:
        pool: The pool that each call counts in, ``"api:{tenant_id}"`` or plain, or a list of several: a call needs a
            slot of each. ``None`` lifts the limit. The options from ``pool_size`` to ``pool_group`` may then be lists
            with a value for each.
        pool_size: How many calls of the pool run at once, in all workers together.
        pool_rate: How often calls of the pool start, ``"100/m"`` (units s, m, h, d), in all workers together; a pool
            has a size, a rate or both.
        pool_burst: How many of them may start at once after a pause; default: one.
        pool_slot_exp: Seconds after which a slot no longer counts; ``None`` for never.
        pool_weight: How many of the pool's slots a call counts as; default: one.
        pool_partition: On whose account a call counts, ``"{tenant_id}"``; those who wait are served in turn, one of
            each. ``None`` for nobody's.
        pool_max_per_partition: How many slots one partition may have at once; default: as many as there are.
        pool_group: On a Redis Cluster, what several pools have in common.
        pool_on_full: ``"park"`` (the message waits in Redis and costs no worker anything), ``"wait"`` (it is held in
            the worker, first come, first served), ``"fail"`` (``PoolFullError`` is the result), ``"drop"`` (no run,
            no result), ``"stale"`` (the last value that the cache has is the result; where it has none, as by
            default), ``"cancel_newest"`` (it is revoked) or ``"cancel_oldest"`` (it waits as by default, and the task
            that has run longest is ended for it). Default: parked on Redis, unless there is a ``pool_timeout``; held
            in the worker otherwise.
        pool_timeout: Seconds that a call waits at the most, then ``PoolTimeoutError`` is its result.
        pool_on_lost: ``"cancel"`` (a task whose slot is lost is killed where it can be, and ends with
            ``SlotLostError``) or ``"warn"`` (it goes on). Default: ``slotline_on_lost``.
        cache: Whether results are cached; a ``cache_ttl`` implies it.
        cache_ttl: Seconds that a result is kept; 0 and ``None`` for ever.
        cache_errors: Whether failures are kept as well: ``True``, seconds, or the exception classes that are.
        cache_key: The entry's name, ``"user:{user_id}"``; default: the task's name and a digest of the arguments.
        cache_grace: Seconds after that for which the old result is served while one call refreshes it.
        cache_tags: Names, ``("user:{user_id}",)``, under which entries are invalidated together.
        executor: The name, in ``slotline_executors``, of the manager in whose lease the body runs.
    """

    abstract = True
    _slotline_options: ClassVar[TaskOptions | None] = None

    if TYPE_CHECKING:
        pool: str | Sequence[str] | None
        pool_size: int | Sequence[int | None]
        pool_rate: str | Sequence[str | None]
        pool_burst: int | Sequence[int | None]
        pool_slot_exp: float | Sequence[float | None] | None
        pool_weight: int | Sequence[int | None]
        pool_partition: str | Sequence[str | None] | None
        pool_max_per_partition: int | Sequence[int | None]
        pool_group: str | Sequence[str | None]
        pool_on_full: str
        pool_timeout: float | None
        pool_on_lost: str
        cache: bool
        cache_ttl: float | None
        cache_errors: bool | float | type[Exception] | tuple[type[Exception], ...]
        cache_key: str | None
        cache_grace: float | None
        cache_tags: tuple[str, ...]
        executor: str | None

    @classmethod
    def on_bound(cls, app: Any) -> None:
        """Check the options and install the limits in the app's workers; called by Celery.

        Raises:
            InvalidOptionError: An option is unknown or impossible; it names the option, the value and what is allowed.
            UnsupportedFrameworkError: Celery is older than 5.4, or newer than 5.7.
        """
        super().on_bound(app)
        setup(app)
        with of_task(cls.name):
            refuse_unknown(cls, Task)
        cls._slotline_options = None

    @property
    def slotline_options(self) -> TaskOptions:
        """The checked options of this task, without those of single calls."""
        options = self._slotline_options
        if options is None:
            options = type(self)._slotline_options = options_of(self, read_config(self.app))  # noqa: SLF001 - its own class
        return options

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the task as its options say: from the cache, in a lease; plainly where it is called directly."""
        request = self.request_stack.top
        if request is None or request.called_directly or _INSIDE in vars(request):
            return super().__call__(*args, **kwargs)
        failure = failure_of(request)
        if failure is not None:
            raise failure_in(failure)  # of the run whose value this one was waiting for
        if has_answer(request):
            return answer_of(self)
        vars(request)[_INSIDE] = True  # a body that calls its own task means the plain function
        options = self.slotline_options
        changes = call_options(request)
        if changes:
            options = options.with_call(changes)
        body: Callable[[], Any] = partial(self.run, *args, **kwargs)
        if options.executor is not None:
            body = partial(executors.leased, self, options.executor, args, kwargs)
        if options.cached:
            return _cache.serve(self, options, args, kwargs, body)
        return body()

    def apply_async(
        self,
        args: Any = None,
        kwargs: Any = None,
        task_id: Any = None,
        producer: Any = None,
        link: Any = None,
        link_error: Any = None,
        shadow: Any = None,
        **options: Any,
    ) -> AsyncResult:
        """Send the task; options of Slotline among ``options`` hold for this call alone.

        Raises:
            InvalidOptionError: An option of Slotline is unknown or impossible; nothing is sent then.
            MessageTooLargeError: The call could not be parked; nothing is sent then.
        """
        changes = split_call(options)
        if changes:
            options["headers"] = {**(options.get("headers") or {}), HEADER: {**_earlier(options), **changes}}
        effective = self.slotline_options
        if _earlier(options):
            effective = effective.with_call(_earlier(options))
        if effective.limited:
            sender.check_limited(self, effective, args, kwargs, options)
        options.update(task_id=task_id, producer=producer, link=link, link_error=link_error, shadow=shadow)
        if effective.cached:
            hit = sender.answer(self, effective, args, kwargs, options)
            if hit is not None:
                return hit
        return super().apply_async(args, kwargs, **options)

    def invalidate(self, *args: Any, **kwargs: Any) -> bool:
        """Forget the cached result of the call with these arguments; return whether there was one."""
        key = _cache.entry_key(self, self.slotline_options, args, kwargs)
        return key is not None and bool(runtime(self.app).cache.sync.invalidate(key))

    @property
    def slot(self) -> TaskSlot | None:
        """The slot that the running call holds, ``None`` without a limit."""
        return slot_of(self.request)

    def lease(self, name: str, **options: Any) -> ExecutorLease:
        """Lease an executor of the manager ``name`` in ``slotline_executors``, for use as a context manager.

        The manager starts in the process that asks first and stops with it.

        Args:
            name: The manager's name.
            **options: What ``LeasedExecutorManager.acquire`` takes.

        Raises:
            InvalidOptionError: No such manager is declared.
        """
        return executors.lease(self, name, **options)

    # Celery's autoretry keeps the task's own body here and calls it from a wrapper that it puts in the place of run.
    # A body that runs in a lease runs inside of that wrapper, whose retry belongs to this process.
    @property
    def _orig_run(self) -> Callable[..., Any]:
        try:
            body: Callable[..., Any] = self.__dict__[executors.BODY]
        except KeyError:
            raise AttributeError("_orig_run") from None
        return executors.inside_autoretry(self, body)

    @_orig_run.setter
    def _orig_run(self, body: Callable[..., Any]) -> None:
        self.__dict__[executors.BODY] = body


def call_options(request: Any) -> Any:
    """Return the options that a running request brought with it, unchecked."""
    headers = request.headers
    return headers.get(HEADER) if headers else None


def _earlier(options: dict[str, Any]) -> dict[str, Any]:
    found = (options.get("headers") or {}).get(HEADER)
    return found if isinstance(found, dict) else {}
