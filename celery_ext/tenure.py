"""From its start to its very end, a request holds its slot."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from billiard.einfo import ExceptionWithTraceback
from billiard.exceptions import Terminated, TimeLimitExceeded, WorkerLostError

from celery_ext.mailbox import attempt
from celery_ext.outcome import info_of
from celery_ext.parcel import TakenMessage
from celery_ext.slot import tell
from slotline.pools import Slot

if TYPE_CHECKING:
    from celery_ext.unreported import Unreported

_KILLED = (Terminated, WorkerLostError, SystemExit)
"""What a pool reports of a process that was killed."""
_KILLED_GREENLET = (False, None, None)
"""What a gevent pool reports of a task whose greenlet was killed: no failure, no value and no runtime."""


class NotBegunError(Exception):
    """A pool was about to begin a request that must not begin any more."""


class Tenure:
    """Gives a request's slot back when the request has ended, once, whichever way it ends.

    Args:
        request: The request that runs.
        slot: Its slot.
        release: Gives the slot back; what it raises is logged, and keeps nobody from hearing how the run has ended.
        has_child: Whether it runs in a process of its own.
        when_gone: Calls its second argument once the process of its first has ended.
        on_free: Called after the slot was given back.
        report: Calls its first argument, which tells how the request has ended, with its second, the request.
        told: Whether the task may know of the slot.

    Attributes:
        error: What the request has ended with; ``None`` as long as it has not, and where it ended well.
        ended_well: Whether its task returned.
        withdrawn: Whether it was taken back from its pool before any process had it. Unless it was evicted nothing has
            become of it then, and it can be handed over anew.
    """

    def __init__(
        self,
        request: Any,
        slot: Slot,
        *,
        release: Callable[[], None],
        has_child: bool,
        when_gone: Callable[[int, Callable[[], None]], None],
        on_free: Callable[[Tenure], None],
        report: Callable[[Callable[[Any], None], Any], None],
        told: bool = True,
    ) -> None:
        self.request, self.slot = request, slot
        self.error: BaseException | None = None
        self.ended_well = False
        self.withdrawn = False
        self._release, self._has_child = release, has_child
        self._when_gone, self._on_free, self._report = when_gone, on_free, report
        self._state = "running"
        self._lost: Exception | None = None
        self._kill: Callable[[int], object] | None = None
        self._unreported: Unreported | None = None
        self._killed: int | None = None
        self._begun = self._over = False
        self._ending = threading.Lock()
        if told:
            tell(request, slot)
        self._watch()

    @property
    def job(self) -> Any:
        """What the pool knows the request by; ``None`` when it has forgotten it."""
        job = self.request._apply_result  # noqa: SLF001 - checked by check_worker
        return None if job is None else job()

    @property
    def discarded(self) -> bool:
        """Whether the pool has forgotten the request before any process had accepted it."""
        handed_over = self.request._apply_result is not None  # noqa: SLF001 - checked by check_worker
        return self.request.time_start is None and handed_over and self.job is None

    @property
    def may_begin(self) -> bool:
        """Whether it is not to end by now; while it was handed over, nobody could take it back."""
        return self._lost is None

    def _watch(self) -> None:
        request = self.request
        on_success, on_failure, on_timeout = request.on_success, request.on_failure, request.on_timeout
        on_accepted, self._fail = request.on_accepted, on_failure
        self._own = on_success, on_failure, on_timeout, on_accepted

        def accepted(pid: int, *args: Any, **kwargs: Any) -> Any:
            self._begin()
            try:
                return on_accepted(pid, *args, **kwargs)
            finally:
                if self._lost is not None:  # before it was known to have begun
                    self._stop(pid)
                    self.report_when_gone()

        def succeeded(outcome: Any, *args: Any, **kwargs: Any) -> Any:
            self._is_over()
            if self._lost is not None and (self._state == "free" or tuple(outcome) == _KILLED_GREENLET):
                return self._report_loss()
            self.ended_well = not outcome[0]
            if self.ended_well:
                self.free()  # the next run need not wait for what this one's end means to Celery
            try:
                return on_success(outcome, *args, **kwargs)
            finally:
                self.free()

        def failed(info: Any, *args: Any, **kwargs: Any) -> Any:
            self._is_over()
            if self._lost is not None and (self._state == "free" or isinstance(_error_in(info), _KILLED)):
                return self._report_loss()
            self._free_after(info)
            try:
                return on_failure(info, *args, **kwargs)
            finally:
                self._go_back_if_cancelled()

        def timed_out(soft: bool, *args: Any, **kwargs: Any) -> Any:  # noqa: FBT001 - the signature is Celery's
            try:
                return on_timeout(soft, *args, **kwargs)
            finally:
                if not soft:
                    self._free_after_kill()

        # On the instance: the Request class that the worker generates for a task looks its callbacks up there.
        request.on_success, request.on_failure, request.on_timeout = succeeded, failed, timed_out
        request.on_accepted = accepted

    def _begin(self) -> None:
        with self._ending:
            self._begun = self._lost is None or self._kill is not None
        if not self._begun:
            self._report_loss()
            raise NotBegunError

    def _go_back_if_cancelled(self) -> None:
        # Celery cancels a run when its connection breaks, and decides nothing of its message: a broker's went back.
        message = self.request.message
        if isinstance(message, TakenMessage) and message.decided is None and self.request._already_cancelled:  # noqa: SLF001 - checked by check_worker
            message.requeue()

    def _free_after(self, info: Any) -> None:
        self.error = error = _error_in(info)
        if isinstance(error, TimeLimitExceeded):
            self._free_after_kill()
        else:
            self.free()

    def _free_after_kill(self) -> None:
        # A hard time limit is reported before its process is killed: until then the task still runs.
        pid = self.request.worker_pid
        if not self._has_child or pid is None or not process_lives(pid):
            self.free()
        elif self._state == "running":
            self._state = "ending"
            self._when_gone(pid, self.free)

    def end(self, error: Exception, kill: Callable[[int], object], unreported: Unreported | None = None) -> None:
        """Have the request end with ``error``; called in any thread.

        Args:
            error: What it ends with.
            kill: Kills the process, or the greenlet, in which it runs.
            unreported: Stops what no process has reported yet; without it that is killed when it is reported.
        """
        with self._ending:
            if not self._over:
                self._lost, self._kill, self._unreported = error, kill, unreported
        self._stop()

    def prevent(self, error: Exception) -> bool:
        """Have the request end with ``error`` if it has not begun; return whether that is so; called in any thread."""
        with self._ending:
            if not self._begun and self.request.time_start is None and not self._over:
                self._lost = error
            return self._lost is not None

    def _stop(self, pid: int | None = None) -> None:
        """Kill what the request runs in, as far as that is known, or see to it that it does not begin."""
        with self._ending:
            kill, request, job = self._kill, self.request, self.job
            if kill is None or self._over or self.withdrawn or self._killed is not None:
                return
            if pid is None and request.time_start is not None:
                pid = request.worker_pid
            if pid is None and job is not None and self._unreported is not None:
                self.withdrawn = self._unreported.withdraw(job)
                pid = None if self.withdrawn else self._unreported.child_of(job)
            if pid is not None and not (self._has_child and pid == os.getpid()):  # who answers for a dead child
                self._killed = pid
                kill(pid)

    def report_when_gone(self) -> None:
        """Report the loss, and give the slot back, when the process that was killed has ended."""
        if not self._has_child or self._lost is None or self._state != "running":
            return
        self._stop()  # its pool has perhaps handed it to a process since
        if self.withdrawn:
            self._undo()
        elif self._killed is not None:
            self._state = "ending"
            self._when_gone(self._killed, self._report_loss)

    def _undo(self) -> None:
        job, request = self.job, self.request
        if job is not None:
            job.discard()
        if self.slot.evicted:
            self._report_loss()
            return
        request.on_success, request.on_failure, request.on_timeout, request.on_accepted = self._own
        request._apply_result = None  # noqa: SLF001 - checked by check_worker
        self.free()

    def _report_loss(self) -> None:
        # As for a child that has died, but not to be repeated: who is slow to renew would do it again and again.
        if self._state == "free" or self._lost is None:
            return
        self.error = self._lost
        try:
            self._report(self._tell_loss, self.request)
        finally:
            self.free()

    def _tell_loss(self, request: Any) -> None:
        assert self._lost is not None  # noqa: S101 - this is what it is told of
        self._fail(info_of(self._lost))
        if request.time_start is None:  # where messages are acknowledged early, that is done at the start
            request.acknowledge()

    def _is_over(self) -> None:
        with self._ending:  # its process runs another task next, which must not be killed
            self._over = True

    def look_again(self) -> None:
        """Look for the process that is being killed, if one is: timers may have been forgotten."""
        if self._state == "ending":
            pid = self.request.worker_pid if self._killed is None else self._killed
            self._when_gone(pid, self.free if self._lost is None else self._report_loss)

    def free(self) -> None:
        """Give the slot back; again is harmless."""
        if self._state == "free":
            return
        self._state = "free"
        attempt(self._release)
        self._on_free(self)


def _error_in(info: Any) -> Any:
    error = getattr(info, "exception", None)
    return error.exc if isinstance(error, ExceptionWithTraceback) else error


def process_lives(pid: int) -> bool:
    """Return whether this process's child ``pid`` still runs; one that waits to be reaped does not."""
    with contextlib.suppress(ChildProcessError):
        return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None
    return False
