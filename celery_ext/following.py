"""Cached tasks whose value another task's run makes: parked in the room, where they hold no worker.

The main process asks before a process or thread gets the task: whether the value is there, and if not, whether this
task is the one to make it. Whoever is not waits in the room, in the line for its entry.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from billiard.einfo import ExceptionWithTraceback
from billiard.exceptions import Terminated, TimeLimitExceeded, WorkerLostError
from celery.utils.log import get_logger
from celery.utils.serialization import get_pickled_exception

from celery_ext.cache import CONTROL_FLOW, entry_key
from celery_ext.options import HEADER
from celery_ext.slot import tell_failure
from slotline.caches.line import Line, is_there, line_for, shared_part
from slotline.errors import InvalidOptionError, StoreError
from slotline.steps import run_blocking

if TYPE_CHECKING:
    from celery_ext.config import Runtime
    from celery_ext.options import TaskOptions
    from celery_ext.parcel import TakenMessage
    from celery_ext.parking import Parking
    from celery_ext.store_watch import StoreWatch
    from slotline import pools
    from slotline.caches.redis import RedisCacheAdapter
    from slotline.pools import Room, Slot

logger = get_logger(__name__)

_ITS_OWN = (*CONTROL_FLOW, TimeLimitExceeded, WorkerLostError, Terminated)


class Lead:
    """The right of one task to make a value; those behind it in the line wait for the end.

    Args:
        line: The line.
        slot: Its slot.
        watch: The way to the store.
        errors: The exception classes that are kept; an empty tuple: any is shared.
    """

    def __init__(self, line: Line, slot: Slot, watch: StoreWatch, errors: tuple[type[Exception], ...]) -> None:
        self.line, self.slot = line, slot
        self._watch, self._errors = watch, errors

    def end(self, error: BaseException | None = None) -> None:
        """Let the next task go on; with an error that is not one task's own, those who wait by now get that."""
        if isinstance(error, ExceptionWithTraceback):
            error = error.exc
        error = get_pickled_exception(error)
        shared = isinstance(error, Exception) and not isinstance(error, _ITS_OWN)
        if self._errors and not isinstance(error, self._errors):
            shared = False
        command = self.line.last_word(self.slot, error if shared else None)
        try:
            self._watch.ask(lambda: self._watch.store.sync.execute(command))
        except StoreError as failure:
            logger.debug("the line for %r goes on in the background: %s", self.line.key, failure)
            self._watch.store.settle(command, self.line.patience)


class Parked:
    """What became of a task that is parked: nothing is to be done for it here."""


class Following:
    """The lines of one worker.

    Args:
        cache: The app's cache.
        watch: The way to the gate's store.
        parking: Parks requests.
    """

    def __init__(self, cache: RedisCacheAdapter, watch: StoreWatch, parking: Parking) -> None:
        self._cache, self._watch, self._parking = cache, watch, parking

    @classmethod
    def of(cls, using: Runtime, watch: StoreWatch, parking: Parking) -> Following | None:
        """Return the lines of a worker, ``None`` where its app's cache is not where the room is."""
        cache = shared_part(using.cache)
        # The gate asks with little patience, by a store of its own: it must be the server that the cache is on.
        return cls(cache, watch, parking) if cache is not None and cache.store is using.store else None

    def lead(self, request: Any) -> Lead | Parked | None:
        """Take the lead for a request's entry, or park it; ``None``: it simply goes on, cached or not."""
        found = self._entry(request)
        if found is None:
            return None
        line, key, errors = found
        lane = self._parking.lane_of(request)
        if lane is None:  # it waits for the value itself
            return None

        def join(room: Room, message: bytes, owner: str) -> Slot | pools.Parked:
            return run_blocking(line.joining(room, message, lane, owner))

        try:
            if self._watch.ask(lambda: self._filled(key)):
                return None
            slot = self._parking.park(request, join)
        except StoreError as error:  # the task itself knows how to go on without its cache
            logger.debug("%s runs without a line: %s", request, error)
            return None
        return Parked() if slot is None else Lead(line, slot, self._watch, errors)

    def resume(self, request: Any, message: TakenMessage) -> Lead | None:
        """Return the lead of a request that comes out of its line, ``None`` where what it waited for is there."""
        taken = message.taken
        found = self._entry(request)
        if found is None or found[0].key != taken.pool.key:
            Lead(Line(taken.pool.key, self._watch.store), taken.slot, self._watch, ()).end()
            return None
        line, key, errors = found
        lead = Lead(line, taken.slot, self._watch, errors)
        try:
            filled = self._watch.ask(lambda: self._filled(key))
            payload = None if filled else self._watch.ask(lambda: run_blocking(line.verdict(taken)))
        except StoreError:
            return lead
        if payload is not None:
            tell_failure(request, payload)
        elif not filled:
            return lead
        lead.end()
        return None

    def _filled(self, key: str) -> bool:
        return bool(self._watch.store.sync.execute(is_there(self._cache, key)))

    def _entry(self, request: Any) -> tuple[Line, str, tuple[type[Exception], ...]] | None:
        options: TaskOptions | None = getattr(request.task, "slotline_options", None)
        if options is None:
            return None
        try:
            changes = request.request_dict.get(HEADER)
            options = options if changes is None else options.with_call(changes)
            key = entry_key(request.task, options, request.args, request.kwargs) if options.cached else None
        except InvalidOptionError:  # the task says so itself
            return None
        errors = options.get("cache_errors", False)
        line = None if key is None else line_for(self._cache, key, self._watch.store)
        return None if line is None or key is None else (line, key, errors if isinstance(errors, tuple) else ())
