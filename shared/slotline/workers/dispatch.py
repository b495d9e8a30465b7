"""Which task goes to which worker: the queue, the free workers and the deadlines, all under one lock."""

from __future__ import annotations

import contextlib
import heapq
import itertools
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from enum import Enum
from typing import Any, Final

from slotline.workers import _billiard, outcome, wire
from slotline.workers.arena import TASKS, WINDOW
from slotline.workers.courier import Courier, logger
from slotline.workers.errors import ExecutorClosedError
from slotline.workers.jobs import NO_HOOKS, ApplyResult
from slotline.workers.member import AHEAD, Member, State
from slotline.workers.options import PoolOptions
from slotline.workers.restarts import RestartPolicy

SHORT: Final = 0.001
"""A worker whose tasks take less than this many seconds gets several at once."""

STALL: Final = 0.002
"""Seconds that short tasks wait behind one that turns out to be long, before other workers may have them."""

SETTLE: Final = 0.045
"""Seconds that a killed task's error waits for the confirmation that everything is dead."""


class Phase(Enum):
    """What an executor does with work."""

    RUN = "run"
    CLOSE = "close"
    """It finishes what it has and takes no more."""
    TERMINATE = "terminate"


class Due(Enum):
    """What a deadline is for."""

    SOFT = "soft"
    HARD = "hard"
    SETTLE = "settle"
    LOST = "lost"
    FILL = "fill"
    STOP = "stop"


class Dispatcher:
    """The state that callers and the supervisor share.

    Args:
        options: The executor's options.
        wake: Makes the supervisor look at the deadlines and the phase again; called from any thread.
    """

    def __init__(self, options: PoolOptions, wake: Callable[[], None]) -> None:
        self.options = options
        self.wake = wake
        self.courier = Courier(threaded=options.threads)
        self.lock = threading.Lock()
        self.phase = Phase.RUN
        self.refusal: BaseException | None = None
        """Why the executor gave up, if it did."""
        self.queue: deque[ApplyResult] = deque()
        self.free: list[Member] = []
        self.members: dict[int, Member] = {}
        self.ahead: set[Member] = set()
        self.policy = RestartPolicy(options.processes, options.max_restarts, options.max_restart_freq)
        self.deadlines: list[tuple[float, int, Due, Any]] = []
        self._sequence = itertools.count()
        self.supervisor: int | None = None
        self.errands: dict[int, list[tuple[Callable[..., None], tuple[Any, ...]]]] = {}
        """What threads that read an answer themselves are to do when they have read it."""
        self.loans: set[Member] = set()
        """The workers that the supervisor does not listen to although nobody may be waiting for their answer."""
        self.listen: Callable[[Member], None] = lambda _member: None
        self.attend: Callable[[ApplyResult, float | None], float | None] = leave
        """Does what the calling thread can do for a task that it waits for; returns how long it is to wait then."""
        self.drive: Callable[[Callable[[], bool], float | None], None] = lambda _until, _timeout: None
        self.send_ack: Callable[[int, int, Any, int], Any] = send_ack
        self.on_job_ready: Callable[[int, Any, Any, int], Any] | None = None

    def in_supervisor(self) -> bool:
        """Return whether the calling thread is the supervisor."""
        return self.supervisor == threading.get_ident()

    def in_service(self) -> bool:
        """Return whether the calling thread does the supervisor's work, so that it must run nobody's code."""
        ident = threading.get_ident()
        return ident == self.supervisor or ident in self.errands

    # Callers.

    def submit(self, job: ApplyResult) -> None:
        """Give the task to a free worker, or queue it.

        Raises:
            ExecutorClosedError: the executor takes no more work.
            RestartFreqExceeded: it has given up because its workers kept failing.
        """
        with self.lock:
            if self.phase is not Phase.RUN:
                raise self.refusal or ExecutorClosedError("The executor takes no more work: it was closed.")
            member = self._take_free()
            if member is None or not job.wanted():
                self.queue.append(job)
                return
            large = self._assign(member, job)
        if large:
            self.write(member, job)

    def withdraw(self, job: ApplyResult) -> None:
        """Let those who wait for a cancelled task know; it is skipped when its turn comes."""
        with self.lock:
            if not job.withdrawn and not job.claimed:
                job.withdrawn = True
                job.set_running_or_notify_cancel()
        job.payload = []
        self.finished(job)

    def terminate_job(self, job: ApplyResult, signum: int) -> None:
        """Signal the worker that runs the task, or fail the task if no worker has it."""
        error = _billiard.exceptions().Terminated(signum)
        with self.lock:
            if job.member is not None:
                self.take_back(job.member)
            if job.member is not None and not job.done():
                job.verdict = error
                job.member.deliberate = True
                job.member.signal(signum)
                return
        self.finish(job, None, error)

    def confirm(self, job: ApplyResult) -> bool:
        """Decide whether a task that waits for a confirmation may start; once it may, it cannot be cancelled."""
        with self.lock:
            return job.claim()

    def log_callback_failure(self, callback: Callable[..., Any]) -> None:
        """Log what a task's callback raised."""
        logger.exception("A callback of a task failed: %r", callback)

    # Deadlines; the lock is held.

    def due(self, when: float, what: Due, subject: Any) -> None:
        """Have the supervisor look at ``subject`` at ``when``."""
        entry = (when, next(self._sequence), what, subject)
        heapq.heappush(self.deadlines, entry)
        if self.deadlines[0] is entry and not self.in_supervisor():
            self.wake()

    # Hand-over; the lock is held.

    def _take_free(self) -> Member | None:
        while self.free:
            member = self.free.pop()
            if member.state is State.READY:
                return member
        return None

    def _assign(self, member: Member, job: ApplyResult) -> bool:
        """Make the task the worker's; returns whether its payload must still be written, outside of the lock."""
        job.member = member
        member.inflight.append(job)
        if job.size > wire.INLINE:
            member.writing = True
            return True
        self._send(member, job, 0)
        return False

    def _send(self, member: Member, job: ApplyResult, shared: int) -> None:
        job.started_at = now = time.monotonic()
        if len(member.inflight) == 1:
            member.begun = now
        self.policy.accepted()
        flags, (deadline, memory) = job.flags, (0.0, 0) if job.simple else self._limit(job, now)
        if shared:
            flags |= wire.SHARED
        if not member.fetching:
            flags |= wire.CLEAN
        packet = wire.HEADER.pack(wire.RUN, flags, job.number, deadline, memory, shared)
        if not shared:
            packet += job.payload[0] if len(job.payload) == 1 else b"".join(job.payload)
        if member.lent_to is not None and member.lent_to != threading.get_ident():
            self.reclaim(member)
        try:
            member.sock.send(packet)
        except OSError:
            # The worker is dying; its end is reported soon. The task has not reached it.
            member.inflight.remove(job)
            member.part_with(job)
            member.state = State.LEAVING
            self.queue.appendleft(job)

    def _limit(self, job: ApplyResult, now: float) -> tuple[float, int]:
        """Set the deadlines of a task that starts now; returns its soft deadline and the kilobytes it may use, or 0."""
        limits, deadline = job.limits, 0.0
        if limits.soft_timeout is not None:
            deadline = now + limits.soft_timeout
            self.due(deadline, Due.SOFT, job)
        if limits.timeout is not None:
            self.due(now + limits.timeout, Due.HARD, job)
        if limits.timed and self.options.on_timeout_set is not None:
            self.courier.put(self.options.on_timeout_set, job, limits.soft_timeout, limits.timeout)
        return deadline, limits.max_memory or 0

    def write(self, member: Member, job: ApplyResult) -> None:
        """Copy a long payload to the worker's memory and send the task; called without the lock."""
        error: BaseException | None = None
        try:
            member.arena.write(job.payload, TASKS, job.size)
        except (OSError, MemoryError) as raised:
            error = raised
        with self.lock:
            member.writing = False
            mine = job.member is member
            if mine and error is None and job.verdict is None and member.state is State.READY:
                self._send(member, job, job.size)
                return
            if mine:
                member.inflight.remove(job)
                member.part_with(job)
            error = error or job.verdict
            if mine and error is None:
                self.queue.appendleft(job)
            if not member.gone and member.state is State.READY:
                self.set_free(member)
            more = self.pump()
        if member.gone and not member.busy:
            member.close()
        if mine and error is not None:
            self.finish(job, None, error)
        self.write_all(more)

    def write_all(self, large: Iterable[tuple[Member, ApplyResult]]) -> None:
        """Write the payloads that :meth:`pump` could not send at once."""
        for member, job in large:
            if job.size > QUICK and self.in_service():
                self.courier.put(self.write, member, job)
            else:
                self.write(member, job)

    def next_job(self) -> ApplyResult | None:
        """Return the first queued task that still wants to run, claimed."""
        while self.queue:
            job = self.queue.popleft()
            if job.wanted():
                return job
        return None

    def refill(self, member: Member) -> list[tuple[Member, ApplyResult]]:
        """Give a worker that has finished a task its next ones, or set it free."""
        inflight, queue = member.inflight, self.queue
        if not inflight:
            job = self.next_job() if queue else None
            if job is None:
                self.ahead.discard(member)
                self.set_free(member)
                return []
            if self._assign(member, job):
                return [(member, job)]
        if member.fast and queue and inflight and inflight[0].simple and len(inflight) <= AHEAD // 2:
            while len(inflight) < AHEAD and queue and queue[0].simple and member.state is State.READY:
                job = queue.popleft()
                if job.wanted():
                    self._assign(member, job)
            if len(inflight) > 1:
                self.ahead.add(member)
        return []

    def pump(self) -> list[tuple[Member, ApplyResult]]:
        """Bring queued tasks and free workers together."""
        large: list[tuple[Member, ApplyResult]] = []
        while self.queue and (member := self._take_free()) is not None:
            large += self.refill(member)
            if not member.inflight:
                break
        return large

    def take_back(self, member: Member) -> None:
        """Put the tasks that a worker has not begun back to the head of the queue."""
        self.ahead.discard(member)
        jobs = member.take_back()
        self.queue.extendleft(reversed(jobs))
        if jobs and not member.inflight and member.state is State.READY:
            self.set_free(member)

    def set_free(self, member: Member) -> None:
        """Let the worker have the next task; a supervisor that waits for the last to be done looks again."""
        self.free.append(member)
        if self.phase is not Phase.RUN:
            self.wake()

    def reclaim(self, member: Member) -> None:
        """Have the supervisor listen to a worker that was lent."""
        member.lent_to = None
        self.loans.discard(member)
        if not member.gone:
            self.listen(member)

    def condemn(self, member: Member, error: BaseException) -> None:
        """Have the task that a worker has now fail with ``error`` when the worker ends, whether it has begun or not."""
        current = member.inflight[0] if member.inflight else None
        self.take_back(member)
        if current is None:
            return
        current.verdict = current.verdict or error
        if current.member is None:
            self.queue.remove(current)
            current.member = member
            member.inflight.append(current)

    # Outcomes; the lock is not held.

    def unpacks_here(self, job: ApplyResult, flags: int) -> bool:
        """Return whether a value may be rebuilt, and its future resolved, without running anybody's code."""
        return bool(flags & wire.PLAIN) and job.hooks is NO_HOOKS and self.on_job_ready is None

    def deliver(self, job: ApplyResult, kind: int, flags: int, payload: bytes) -> None:
        """Resolve a task with its packed outcome; what may run somebody's code waits for a thread that may do so."""
        if self.unpacks_here(job, flags):
            self.settle(job, *outcome.unpack_value(payload))
            return
        errands = self.errands.get(threading.get_ident())
        if errands is not None and job.hooks is NO_HOOKS and self.on_job_ready is None:
            errands.append((self._unpack, (job, kind, payload)))
        else:
            self.courier.put(self._unpack_alone, job, kind, payload)

    def settle(self, job: ApplyResult, value: Any, error: BaseException | None) -> None:
        """Resolve a task here and now."""
        job.settle(value, error)
        self.finished(job)

    def _unpack(self, job: ApplyResult, kind: int, payload: bytes) -> None:
        value, error = outcome.unpack_value(payload) if kind == wire.DONE else (None, outcome.unpack_error(payload))
        if self.on_job_ready is not None:
            try:
                self.on_job_ready(job.number, job.index, (error is None, value if error is None else error), -1)
            except Exception:  # noqa: BLE001 - it is the caller's code; it is logged
                self.log_callback_failure(self.on_job_ready)
        try:
            job.settle(value, error)
        finally:
            self.finished(job)

    def _unpack_alone(self, job: ApplyResult, kind: int, payload: bytes) -> None:
        """Do so where nobody waits for it: what interrupts the rebuilding fails the task."""
        try:
            self._unpack(job, kind, payload)
        except BaseException as error:
            if not job.done():
                reason = f"The answer to task {job.number} was lost: {error!r} interrupted its rebuilding."
                self.finish(job, None, _billiard.exceptions().WorkerLostError(reason))
            raise

    def finish(self, job: ApplyResult, value: Any, error: BaseException | None) -> None:
        """Resolve a task where its callbacks may run: here if it has none, else in the callbacks' thread."""
        if job.hooks is NO_HOOKS or not self.in_service():
            job.settle(value, error)
        else:
            self.courier.put(job.settle, value, error)
        self.finished(job)

    def kill(self, member: Member, error: BaseException) -> None:
        """Kill a worker; its running task fails with ``error``, the others go back to the queue. The lock is held."""
        self.condemn(member, error)
        member.kill()
        self.due(time.monotonic() + SETTLE, Due.SETTLE, member)

    def finished(self, job: ApplyResult) -> None:
        """Give back what a task held besides its worker."""
        place = job.place
        if place is not None:
            job.place = None
            place.release()
        if job.limits.timed and job.claimed and self.options.on_timeout_cancel is not None:
            self.courier.put(self.options.on_timeout_cancel, job)


QUICK: Final = WINDOW
"""The supervisor itself moves payloads of up to this many bytes, which takes about a millisecond."""


def leave(_job: ApplyResult, timeout: float | None) -> float | None:
    """Do nothing for a task that a thread waits for: others see to it."""
    return timeout


def send_ack(response: int, job: int, _i: Any, fd: int) -> None:
    """Tell the worker behind ``fd`` whether it may start the task: 0 is yes, everything else is no."""
    with contextlib.suppress(OSError):
        os.write(fd, wire.HEADER.pack(wire.SKIP if response else wire.GO, 0, job, 0.0, 0, 0))
