"""From its start to its very end, a request holds its slot."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from typing import Any

from billiard.einfo import ExceptionWithTraceback
from billiard.exceptions import TimeLimitExceeded

from celery_ext.slot import tell
from slotline.pools import Slot


class Tenure:
    """Gives a request's slot back when the request has ended, once, whichever way it ends.

    Args:
        request: The request that runs.
        slot: Its slot.
        release: Gives the slot back; never raises.
        has_child: Whether it runs in a process of its own.
        when_gone: Calls its second argument once the process of its first has ended.
        on_free: Called after the slot was given back.
        told: Whether the task may know of the slot.

    Attributes:
        error: What the request has ended with; ``None`` as long as it has not, and where it ended well.
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
        told: bool = True,
    ) -> None:
        self.request, self.slot = request, slot
        self.error: BaseException | None = None
        self._release, self._has_child = release, has_child
        self._when_gone, self._on_free = when_gone, on_free
        self._state = "running"
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

    def _watch(self) -> None:
        request = self.request
        on_success, on_failure, on_timeout = request.on_success, request.on_failure, request.on_timeout

        def succeeded(*args: Any, **kwargs: Any) -> Any:
            try:
                return on_success(*args, **kwargs)
            finally:
                self.free()

        def failed(info: Any, *args: Any, **kwargs: Any) -> Any:
            try:
                return on_failure(info, *args, **kwargs)
            finally:
                self._free_after(info)

        def timed_out(soft: bool, *args: Any, **kwargs: Any) -> Any:  # noqa: FBT001 - the signature is Celery's
            try:
                return on_timeout(soft, *args, **kwargs)
            finally:
                if not soft:
                    self._free_after_kill()

        # On the instance: the Request class that the worker generates for a task looks its callbacks up there.
        request.on_success, request.on_failure, request.on_timeout = succeeded, failed, timed_out

    def _free_after(self, info: Any) -> None:
        error = getattr(info, "exception", None)
        if isinstance(error, ExceptionWithTraceback):
            error = error.exc
        self.error = error
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

    def look_again(self) -> None:
        """Look for the process that is being killed, if one is: timers may have been forgotten."""
        if self._state == "ending":
            self._when_gone(self.request.worker_pid, self.free)

    def free(self) -> None:
        """Give the slot back; again is harmless."""
        if self._state == "free":
            return
        self._state = "free"
        self._release()
        self._on_free(self)


def process_lives(pid: int) -> bool:
    """Return whether this process's child ``pid`` still runs; one that waits to be reaped does not."""
    with contextlib.suppress(ChildProcessError):
        return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None
    return False
