"""The one thread that watches every worker, every pipe and every deadline of an executor."""

from __future__ import annotations

import heapq
import os
import signal
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any, Final

from slotline.errors import LeaseExpiredError
from slotline.metrics import _telling
from slotline.metrics.exporter import KillReason
from slotline.workers import _billiard
from slotline.workers.courier import logger
from slotline.workers.crew import Crew
from slotline.workers.dispatch import STALL, Dispatcher, Due, Phase
from slotline.workers.exits import Exits
from slotline.workers.inbox import Inbox
from slotline.workers.jobs import ApplyResult
from slotline.workers.lending import Lending
from slotline.workers.loop import Loop
from slotline.workers.member import Member, State
from slotline.workers.options import PoolOptions

_STOP_PATIENCE: Final = 5.0
"""Seconds that a worker has to end after it was told to."""


class Supervisor:
    """Runs in a thread of its own, or step by step in the caller's where the executor has ``threads=False``."""

    def __init__(self, options: PoolOptions, packed_spec: bytes) -> None:
        _telling.begin()
        self.owner = os.getpid()
        self.loop = Loop()
        self.dispatcher = Dispatcher(options, self.loop.wake)
        self.dispatcher.drive = self.drive
        self.crew = Crew(self.dispatcher, packed_spec, self._watch)
        self.inbox = Inbox(self.dispatcher, self.crew)
        self.exits = Exits(self.dispatcher, self.crew, self.inbox, self.loop, self.give_up)
        self.lending = Lending(self.dispatcher, self.inbox, self.loop)
        self.dispatcher.attend = self.lending.attend if options.threads else self._drive_for
        self.ended = threading.Event()
        self.thread: threading.Thread | None = None
        self._stepping = threading.Lock()

    def start(self) -> None:
        """Start the launcher, and the thread unless callers drive it themselves."""
        try:
            self.exits.start_launcher()
        except BaseException:
            self.loop.close()
            raise
        if self.dispatcher.options.threads:
            self.thread = threading.Thread(target=self._serve, name="slotline-supervisor", daemon=True)
            self.thread.start()

    def _watch(self, member: Member) -> None:
        self.loop.watch(member.sock.fileno(), partial(self.inbox.listen, member))

    # The loop.

    def _serve(self) -> None:
        self.dispatcher.supervisor = threading.get_ident()
        while not self.ended.is_set():
            try:
                self.step(None)
            except Exception as error:  # noqa: BLE001 - it is logged, and every task fails with it
                logger.exception("The supervisor of a process pool failed; its tasks fail and its workers are killed.")
                self.give_up(error)

    def drive(self, until: Callable[[], bool], timeout: float | None) -> None:
        """Do the supervisor's work in the calling thread until ``until()`` or for ``timeout`` seconds."""
        end = None if timeout is None else time.monotonic() + timeout
        while not until() and not self.ended.is_set():
            left = None if end is None else end - time.monotonic()
            if left is not None and left <= 0:
                return
            with self._stepping:
                if not until() and not self.ended.is_set():
                    self.step(left)
            self.dispatcher.courier.drain()

    def _drive_for(self, job: ApplyResult, timeout: float | None) -> float:
        self.drive(job.done, timeout)
        return 0.0

    def poll(self) -> None:
        """Do what is due now and return at once."""
        if self._stepping.acquire(blocking=False):
            try:
                if not self.ended.is_set():
                    self.step(0)
            finally:
                self._stepping.release()
            self.dispatcher.courier.drain()

    def step(self, timeout: float | None) -> None:
        """Wait for the next event, at most ``timeout`` seconds, and handle everything that has come."""
        dispatcher = self.dispatcher
        if dispatcher.ahead or dispatcher.loans:
            timeout = STALL if timeout is None else min(timeout, STALL)
        if dispatcher.deadlines:
            left = max(0.0, dispatcher.deadlines[0][0] - time.monotonic())
            timeout = left if timeout is None else min(timeout, left)
        self.loop.run(timeout)
        if dispatcher.ahead:
            self._take_back_stalled()
        if dispatcher.loans:
            self.lending.look_after()
        if dispatcher.deadlines and dispatcher.deadlines[0][0] <= time.monotonic():
            self._handle_deadlines()
        if dispatcher.phase is not Phase.RUN:
            self._wind_down()

    def _take_back_stalled(self) -> None:
        dispatcher, limit = self.dispatcher, time.monotonic() - STALL
        with dispatcher.lock:
            for member in [member for member in dispatcher.ahead if member.begun < limit]:
                member.fast = False
                dispatcher.take_back(member)
            large = dispatcher.pump()
        dispatcher.write_all(large)

    # Deadlines.

    def _handle_deadlines(self) -> None:
        dispatcher, now = self.dispatcher, time.monotonic()
        due: list[tuple[Due, Any]] = []
        with dispatcher.lock:
            while dispatcher.deadlines and dispatcher.deadlines[0][0] <= now:
                _, _, what, subject = heapq.heappop(dispatcher.deadlines)
                due.append((what, subject))
        for what, subject in due:
            if what is Due.SOFT:
                self._soft_limit(subject)
            elif what is Due.HARD:
                self._hard_limit(subject)
            elif what is Due.SETTLE:
                self._settle(subject)
            elif what is Due.LOST:
                self.exits.ended(subject, None)
            elif what is Due.STOP:
                if not subject.gone:
                    if (observer := _telling.observer) is not None:
                        observer.killed("stuck")
                    subject.kill()
            else:
                with dispatcher.lock:
                    self.crew.fill()

    def _soft_limit(self, job: ApplyResult) -> None:
        with self.dispatcher.lock:
            member = job.member
            if member is None or job.verdict is not None:
                return
            member.signal(signal.SIGUSR1)
        self._tell_timeout(job, soft=True)

    def _hard_limit(self, job: ApplyResult) -> None:
        dispatcher = self.dispatcher
        with dispatcher.lock:
            member = job.member
            if member is None or job.verdict is not None:
                return
            self._kill(member, _billiard.exceptions().TimeLimitExceeded(job.limits.timeout), "time_limit")
            self.crew.fill()
        self._tell_timeout(job, soft=False)

    def _kill(self, member: Member, error: BaseException, reason: KillReason) -> None:
        """Kill a worker, whose task fails with ``error``. The lock is held."""
        if (observer := _telling.observer) is not None and member.pid:
            observer.killed(reason)
        self.dispatcher.kill(member, error)

    def _tell_timeout(self, job: ApplyResult, *, soft: bool) -> None:
        callback = job.hooks.timeout_callback
        if callback is not None:
            limit = job.limits.soft_timeout if soft else job.limits.timeout
            self.dispatcher.courier.put(job.call, callback, soft=soft, timeout=limit)

    def _settle(self, member: Member) -> None:
        """Fail the tasks of a killed worker whose death has not been confirmed: it cannot die now."""
        with self.dispatcher.lock:
            jobs = [job for job in member.inflight if job.verdict is not None]
            for job in jobs:
                member.inflight.remove(job)
                member.part_with(job)
        for job in jobs:
            self.dispatcher.finish(job, None, job.verdict)

    # The end.

    def close(self) -> None:
        """Take no more tasks, finish those that are there, and end."""
        dispatcher = self.dispatcher
        with dispatcher.lock:
            if dispatcher.phase is Phase.RUN:
                dispatcher.phase = Phase.CLOSE
        dispatcher.wake()

    def close_unlocked(self) -> None:
        """Do as :meth:`close` from a finalizer, which may run in a thread that holds the lock already.

        Nobody can hand in work any more, so nothing is decided at the same time.
        """
        if self.dispatcher.phase is Phase.RUN:
            self.dispatcher.phase = Phase.CLOSE
        self.dispatcher.wake()

    def terminate(self, error: BaseException | None = None, refusal: BaseException | None = None) -> None:
        """Kill everything now; what is unfinished fails with ``error``."""
        dispatcher = self.dispatcher
        with dispatcher.lock:
            if self.ended.is_set():
                return
            dispatcher.phase = Phase.TERMINATE
            dispatcher.refusal = dispatcher.refusal or refusal
        self.abort(error or _billiard.exceptions().Terminated("The executor was terminated before the task was done."))
        dispatcher.wake()

    def abort(self, error: BaseException) -> tuple[list[ApplyResult], list[Member]]:
        """Kill every task that runs and drop every task that waits; all fail with ``error``.

        Returns:
            The tasks, and the workers that were killed for them.
        """
        dispatcher = self.dispatcher
        with dispatcher.lock:
            everybody = dispatcher.phase is Phase.TERMINATE
            killed = [member for member in dispatcher.members.values() if member.inflight or everybody]
            running: list[ApplyResult] = []
            for member in killed:
                self._kill(member, error, "revoked" if isinstance(error, LeaseExpiredError) else "terminated")
                running += member.inflight
            waiting = list(dispatcher.queue)
            dispatcher.queue.clear()
            self.crew.fill()
        for job in waiting:
            dispatcher.finish(job, None, error)
        return [*running, *waiting], killed

    def give_up(self, error: BaseException) -> None:
        """End because going on is pointless; everything unfinished and every later task fails with ``error``."""
        logger.error("A process pool gives up: %s", error)
        self.terminate(error, refusal=error)

    def _wind_down(self) -> None:
        """Let the workers go once they have nothing left to do, and end after the last."""
        dispatcher = self.dispatcher
        with dispatcher.lock:
            members = list(dispatcher.members.values())
            if dispatcher.phase is Phase.CLOSE:
                if dispatcher.queue or any(member.inflight or member.busy for member in members):
                    return
                for member in members:
                    if member.state is State.READY:
                        self.stop(member)
                    elif member.state is State.STARTING:
                        member.kill()
            if any(member.pid for member in members):
                return
        self._finish()

    def stop(self, member: Member) -> None:
        """Have a worker end by itself, and kill it if it does not. The lock is held."""
        member.stop()
        self.dispatcher.due(time.monotonic() + _STOP_PATIENCE, Due.STOP, member)

    def _finish(self) -> None:
        """Release everything; what is left of the workers is killed by the launcher as it ends."""
        control = self.crew.control
        if control is not None:
            self.loop.unwatch(control.fileno())
        self.crew.bury_launcher(kill=False)
        for member in list(self.dispatcher.members.values()):
            self.exits.ended(member, None)
        self.ended.set()
        self.loop.close()
        self.dispatcher.courier.close(timeout=0)

    def join(self, timeout: float | None = None) -> bool:
        """Wait until everything has ended; returns whether it has. A callback that joins does not wait for itself."""
        if self.thread is None:
            self.drive(self.ended.is_set, timeout)
        elif self.thread is not threading.current_thread():
            self.thread.join(timeout)
        if self.ended.is_set():
            self.dispatcher.courier.close(timeout)
        return self.ended.is_set()

    # The number of workers.

    def resize(self, by: int) -> int:
        """Add workers, or remove some, busy ones after their task; returns how many were added or removed."""
        dispatcher, crew = self.dispatcher, self.crew
        with dispatcher.lock:
            if by >= 0:
                crew.target += by
                crew.fill()
                return by
            count = min(-by, crew.target - 1)
            crew.target -= count
            staying = [m for m in dispatcher.members.values() if m.state is not State.LEAVING and not m.retire]
            staying.sort(key=lambda member: bool(member.inflight) or member.busy)
            for member in staying[: max(0, len(staying) - crew.target)]:
                self._retire(member)
            large = dispatcher.pump()
        dispatcher.wake()
        dispatcher.write_all(large)
        return count

    def restart(self) -> None:
        """Replace every worker, each after its task."""
        dispatcher = self.dispatcher
        with dispatcher.lock:
            for member in list(dispatcher.members.values()):
                self._retire(member)
            self.crew.fill()
            large = dispatcher.pump()
        dispatcher.wake()
        dispatcher.write_all(large)

    def _retire(self, member: Member) -> None:
        """Have a worker end after its task, if it has one. The lock is held."""
        self.dispatcher.take_back(member)
        member.retire = True
        if member.state is State.READY and not member.inflight:
            self.stop(member)

    def terminate_worker(self, pid: int, signum: int | None) -> None:
        """Send a signal (default SIGTERM) to a worker, whose task then fails with ``Terminated``."""
        dispatcher = self.dispatcher
        signum = signal.SIGTERM if signum is None else signum
        with dispatcher.lock:
            member = next((member for member in dispatcher.members.values() if member.pid == pid), None)
            if member is None:
                return
            dispatcher.condemn(member, _billiard.exceptions().Terminated(signum))
            member.deliberate = True
            member.signal(signum)
