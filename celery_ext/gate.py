"""The gate: what stands between the worker's consumer and its pool of processes or threads.

Every request that the consumer hands over, at once, after an ETA or after a rate limit, comes to :meth:`Gate.process`.
Its message is not acknowledged yet, whatever ``acks_late`` says, and a prefork worker has a free process for it. A
request without a limit goes on at once; one with a limit takes a slot, or is held, refused or dropped.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from celery.utils.log import get_logger
from celery.worker import state

from celery_ext import outcome
from celery_ext._compat import check_worker, has_semaphore
from celery_ext.config import runtime
from celery_ext.held import Held, Line, is_over, owner_of
from celery_ext.limits import LimitReader
from celery_ext.mailbox import mailbox_for
from celery_ext.options import Limit
from celery_ext.tenure import Tenure, process_lives
from slotline.errors import InvalidOptionError, PoolFullError, PoolTimeoutError, StoreError
from slotline.pools import Place, Pool, Slot

logger = get_logger(__name__)

POOLS = 1024
"""How many pools' objects are kept; a pool with arguments in its key has one for each value."""
LOOK_AGAIN = 0.25
"""Seconds between two looks at the held requests' clocks and revocations; no store is asked."""
STORE_PAUSE = 1.0
"""Seconds during which a store that could not be reached is not asked again."""


class Gate:
    """Admits, holds, refuses and drops the requests of one worker, and gives their slots back.

    Nothing that is held is lost: its message stays unacknowledged, so the broker delivers it again when this worker
    ends or dies.

    Args:
        worker: The ``WorkController``.
        consumer: Its consumer, whose strategies are not built yet.

    Raises:
        UnsupportedFrameworkError: This Celery lacks a part that the gate needs.
        InvalidOptionError: A task of the app, or its settings, cannot be used.
    """

    def __init__(self, worker: Any, consumer: Any) -> None:
        check_worker(worker, consumer)
        self._worker, self._consumer = worker, consumer
        self._runtime = runtime(worker.app)
        self._reader = LimitReader(worker.app, self._runtime.config)
        self._run: Callable[[Any], Any] = worker._process_task  # noqa: SLF001 - checked by check_worker
        self._counts_processes = has_semaphore(worker, consumer)
        self._has_processes = bool(getattr(consumer.pool, "uses_semaphore", False))
        self._mailbox = mailbox_for(consumer)
        self._pools: OrderedDict[tuple[Any, ...], Pool] = OrderedDict()
        self._lines: dict[str, Line] = {}
        self._granted: dict[Held, Slot] = {}
        self._running: set[Tenure] = set()
        self._unasked: list[Any] = []
        self._ticking = False
        self._open = True
        self._store_back_at = 0.0
        self._owed = 0
        self._giving_back = False
        worker._process_task = self.process  # noqa: SLF001 - checked by check_worker
        if not self._counts_processes:
            consumer.on_task_request = self.process

    # The worker's side

    def process(self, request: Any) -> Any:
        """Take over a request; called by the consumer, or by the semaphore that found a free process for it."""
        if self._reader.is_free(request):
            return self._run(request)
        self._mailbox.do(self._admit, request)
        return None

    def register(self, hub: Any) -> None:
        """Take part in the consumer's event loop."""
        self._mailbox.register(hub)

    def open(self) -> None:
        """Hold requests from now on; the consumer has a connection."""
        self._open = True

    def let_go(self) -> None:
        """Forget what is held: the connection is gone or the worker ends, and the broker has its messages still."""
        self._open = False
        unasked, self._unasked = self._unasked, []
        for request in unasked:
            state.requests.pop(request.id, None)
        lines, self._lines = self._lines, {}
        granted, self._granted = self._granted, {}
        for line in lines.values():
            line.leave()
            for held in line.waiting:
                state.requests.pop(held.request.id, None)
        for held, slot in granted.items():
            self._release(held.pool, slot)

    def close(self) -> None:
        """Give back what the worker still has; its pool has ended."""
        self.let_go()
        for tenure in list(self._running):
            tenure.free()
        self._mailbox.close()

    def counts(self) -> dict[str, Any]:
        """Return how many requests run with a slot and how many are held, by pool."""
        running: dict[str, int] = {}
        for tenure in list(self._running):
            running[tenure.slot.key] = running.get(tenure.slot.key, 0) + 1
        return {"running": running, "held": {key: len(line.waiting) for key, line in list(self._lines.items())}}

    # Admission

    def _admit(self, request: Any) -> None:
        if is_over(request) or not self._open:
            self._give_process_back()
            return
        try:
            limit = self._reader.limit_of(request)
        except (InvalidOptionError, TypeError) as error:
            self._refuse(request, error)
            return
        if limit is None:
            self._run(request)
            return
        pool = self._pool(limit)
        if limit.on_full == "wait":
            self._take_or_hold(Held.from_now(request, limit, pool))
        else:
            self._take_or_refuse(request, limit, pool)

    def _take_or_hold(self, held: Held) -> None:
        key = held.limit.key
        line = self._lines.get(key)
        if line is not None:
            line.waiting.append(held)
            self._hold(held.request, held.limit)
            return
        line = Line(key)
        line.waiting.append(held)
        try:
            slot = self._stand(line)
        except StoreError as error:
            if self._runtime.on_store_error == "open":
                self._run(held.request)
                return
            if self._runtime.on_store_error == "fail":
                self._refuse(held.request, error)
                return
            slot = None
            logger.warning("%s is held until its limit can be asked: %s", held.request, error)
        if slot is not None:
            self._start(held.request, held.pool, slot)
        elif held.limit.timeout == 0:
            line.leave()
            self._refuse(held.request, PoolTimeoutError(key, held.limit.size, timeout=0.0))
        else:
            self._lines[key] = line
            self._hold(held.request, held.limit)

    def _take_or_refuse(self, request: Any, limit: Limit, pool: Pool) -> None:
        try:
            slot = self._take_now(request, limit, pool)
        except PoolFullError as error:
            if limit.on_full == "drop":
                logger.info("%s is dropped: %s", request, error)
                outcome.drop(request)
                self._give_process_back()
            else:
                self._refuse(request, error)
        except StoreError as error:
            self._store_is_away()
            if self._runtime.on_store_error == "open":
                self._run(request)
            elif self._runtime.on_store_error == "fail":
                self._refuse(request, error)
            else:  # not known to be full: it is asked again when the store is back
                self._unasked.append(request)
                self._hold(request, limit)
        else:
            self._start(request, pool, slot)

    def _take_now(self, request: Any, limit: Limit, pool: Pool) -> Slot:
        if limit.key in self._lines:  # others wait for it already
            raise PoolFullError(limit.key, limit.size)
        self._store_must_be_back()
        return pool.sync.acquire(owner=owner_of(request))

    def _refuse(self, request: Any, error: Exception) -> None:
        try:
            outcome.fail(request, error)
        finally:
            self._give_process_back()

    def _start(self, request: Any, pool: Pool, slot: Slot) -> None:
        tenure = Tenure(
            request, pool, slot, has_processes=self._has_processes, when_gone=self._when_gone, on_free=self._freed
        )
        self._running.add(tenure)
        try:
            self._run(request)
        except BaseException:
            tenure.free()
            raise
        if request._already_revoked:  # noqa: SLF001 - it expired just now: nothing runs, and no callback will come
            tenure.free()

    def _freed(self, tenure: Tenure) -> None:
        self._running.discard(tenure)

    # Holding

    def _hold(self, request: Any, limit: Limit) -> None:
        # A held request is not one that the pool has: workers that count those must go on to take others.
        state.reserved_requests.discard(request)
        self._consumer.qos.increment_eventually()
        logger.debug("%s is held: pool %r has no slot for it", request, limit.key)
        self._give_process_back()
        self._tick_later()

    def _tick_later(self) -> None:
        if not self._ticking and (self._lines or self._unasked):
            self._ticking = True
            self._consumer.timer.call_after(LOOK_AGAIN, self._mailbox.post, (self._tick,))

    def _stand(self, line: Line) -> Slot | None:
        self._store_must_be_back()
        try:
            return line.stand(
                lambda *granted: self._mailbox.post(self._on_grant, *granted),
                lambda *nudged: self._mailbox.post(self._on_nudge, *nudged),
            )
        except StoreError:
            self._store_is_away()
            raise

    def _on_grant(self, line: Line, place: Place, slot: Slot) -> None:
        # A place that was given up has been abandoned with its slot; one whose answer came first has been served.
        if line.place is place and self._lines.get(line.key) is line:
            self._serve(line, slot)
            self._pump(line)

    def _on_nudge(self, line: Line, place: Place) -> None:
        if line.place is place and self._lines.get(line.key) is line:
            self._pump(line)

    def _pump(self, line: Line) -> None:
        """Start what has a slot, and have the next one stand in line."""
        while line.waiting:
            try:
                slot = self._stand(line)
            except StoreError:
                return
            if slot is None:
                return
            self._serve(line, slot)
        if self._lines.get(line.key) is line:
            del self._lines[line.key]

    def _serve(self, line: Line, slot: Slot) -> None:
        held = line.serve()
        self._consumer.qos.decrement_eventually()
        if is_over(held.request):
            self._release(held.pool, slot)
            return
        state.task_reserved(held.request)
        if not self._counts_processes:
            self._start(held.request, held.pool, slot)
            return
        self._granted[held] = slot
        semaphore = self._worker.semaphore
        if semaphore.value > 0:
            semaphore.acquire(self._process_found, held)
        else:
            # It has waited for its slot already, which stands idle until a process is free: it comes first.
            semaphore._waiting.appendleft((self._process_found, (held,), {}))  # noqa: SLF001 - checked by check_worker

    def _process_found(self, held: Held) -> None:
        self._mailbox.do(self._start_granted, held)

    def _start_granted(self, held: Held) -> None:
        slot = self._granted.pop(held, None)
        if slot is None:
            self._give_process_back()
        elif is_over(held.request):
            self._release(held.pool, slot)
            self._give_process_back()
        else:
            self._start(held.request, held.pool, slot)

    def _tick(self) -> None:
        self._ticking = False
        now = time.monotonic()
        for line in list(self._lines.values()):
            for held, why in list(line.ended(now)):
                self._end_wait(line, held, why)
            if line.place is None or now >= line.look_at:
                self._pump(line)
        if now >= self._store_back_at:
            unasked, self._unasked = self._unasked, []
            for request in unasked:
                self._hand_over_again(request)
        self._tick_later()

    def _hand_over_again(self, request: Any) -> None:
        self._consumer.qos.decrement_eventually()
        state.task_reserved(request)
        if self._counts_processes:
            self._worker.semaphore.acquire(self.process, request)
        else:
            self.process(request)

    def _end_wait(self, line: Line, held: Held, why: str) -> None:
        line.remove(held)
        self._consumer.qos.decrement_eventually()
        if why == "timeout":
            limit = held.limit
            try:
                outcome.fail(held.request, PoolTimeoutError(limit.key, limit.size, timeout=limit.timeout))
            except Exception:
                logger.exception("%s could not be failed", held.request)

    # The store

    def _pool(self, limit: Limit) -> Pool:
        name = (limit.key, limit.size, limit.slot_exp)
        pool = self._pools.get(name)
        if pool is None:
            pool = Pool(limit.key, limit.size, store=self._runtime.store, **limit.pool_options)
            self._pools[name] = pool
            if len(self._pools) > POOLS:
                self._pools.popitem(last=False)
        else:
            self._pools.move_to_end(name)
        return pool

    def _release(self, pool: Pool, slot: Slot) -> None:
        try:
            pool.sync.release(slot)
        except StoreError as error:
            logger.warning("slot %s of pool %r could not be given back yet: %s", slot.token, slot.key, error)

    def _store_must_be_back(self) -> None:
        if time.monotonic() < self._store_back_at:
            raise StoreError(f"the store {self._runtime.store.name} was away a moment ago")

    def _store_is_away(self) -> None:
        if time.monotonic() >= self._store_back_at:
            self._store_back_at = time.monotonic() + STORE_PAUSE

    # The pool's processes

    def _give_process_back(self) -> None:
        # Giving one back may start the next waiting request, which may give its own back at once, and so on.
        if not self._counts_processes:
            return
        self._owed += 1
        if self._giving_back:
            return
        self._giving_back = True
        try:
            while self._owed:
                self._owed -= 1
                self._worker._quick_release()  # noqa: SLF001 - checked by check_worker
        finally:
            self._giving_back = False

    def _when_gone(self, pid: int, then: Callable[[], None]) -> None:
        if process_lives(pid):
            self._consumer.timer.call_after(0.05, self._when_gone, (pid, then))
        else:
            then()
