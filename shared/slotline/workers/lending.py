"""A thread that waits for a task reads its worker's answer itself, which spares two changes of threads.

While it waits, the worker is lent to it: the supervisor does not listen. A thread that hands in one short task after
the other, and waits for each, keeps the worker between them, so that the supervisor is not woken by an answer that the
thread is about to wait for. Should it not wait this time, the supervisor notices within 2 ms.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Final

from slotline.workers import _billiard
from slotline.workers.dispatch import STALL, Dispatcher, Phase
from slotline.workers.member import Member, State

if TYPE_CHECKING:
    from slotline.workers.inbox import Inbox
    from slotline.workers.jobs import ApplyResult
    from slotline.workers.loop import Loop

_HABIT: Final = 8
"""How many more answers must have been read by those who wait, than were not, for a worker to be kept in between."""

_FIRM: Final = 128
"""As many are counted at most, so that a habit which is given up is soon forgotten."""

_UNREAD, _UNUSED = 64, 8
"""What is taken off when nobody waits for the answer of a worker that was kept, or nobody uses the worker."""

_LONGEST: Final = 3600.0
"""Seconds that one wait takes at most, since the system's clock for it is a short one."""


class Lending:
    """Lends workers to threads that wait for them, and looks after those that were not given back.

    Args:
        dispatcher: Whose workers they are.
        inbox: Handles what they say.
        loop: What the supervisor listens with.
    """

    def __init__(self, dispatcher: Dispatcher, inbox: Inbox, loop: Loop) -> None:
        self.dispatcher, self.inbox, self.loop = dispatcher, inbox, loop
        self.habit = 0
        dispatcher.listen = lambda member: loop.resume(member.sock.fileno())

    def attend(self, job: ApplyResult, timeout: float | None) -> float | None:
        """Read what the task's worker says as long as the task is there, for at most ``timeout`` seconds.

        Returns:
            How many seconds are left to wait for the task in another way.
        """
        dispatcher, member, me = self.dispatcher, job.member, threading.get_ident()
        # A signal's handler may wait for a task in a thread that waits for one already.
        if member is None or job.flags or me in dispatcher.errands:
            return timeout
        end = None if timeout is None else time.monotonic() + timeout
        left, reading = _LONGEST, False
        errands = dispatcher.errands[me] = []
        try:
            if not self._borrow(member, job, me):
                return timeout
            while job.member is member and left > 0:
                if end is not None:
                    left = min(max(0.0, end - time.monotonic()), _LONGEST)
                if member.poll.poll(left * 1000):
                    reading = True
                    self.inbox.read(member)
                    reading = False
            self._give_back(member)
            reading = True
            for errand, args in errands:
                errand(*args)
        except BaseException:
            if reading:
                self._spoilt(member, job)
            raise
        finally:
            if member.reader == me:
                self._give_back(member)
            del dispatcher.errands[me]
        return None if end is None else max(0.0, end - time.monotonic())

    def _borrow(self, member: Member, job: ApplyResult, me: int) -> bool:
        with self.dispatcher.lock:
            # A worker with other tasks behind this one is the supervisor's: they are not this thread's to wait for.
            if job.member is not member or len(member.inflight) > 1 or member.state is not State.READY or member.busy:
                return False
            if member.lent_to is None:
                self.loop.pause(member.sock.fileno())
            member.lent_to = member.reader = me
            return True

    def _give_back(self, member: Member) -> None:
        dispatcher = self.dispatcher
        with dispatcher.lock:
            member.reader = None
            if member.gone:
                if not member.busy:
                    member.close()
            elif member.lent_to is not None:
                self.habit = min(self.habit + 1, _FIRM)
                if member.inflight or not member.fast or self.habit < _HABIT:
                    dispatcher.reclaim(member)
                elif member not in dispatcher.loans:
                    dispatcher.loans.add(member)
                    dispatcher.wake()
        if dispatcher.phase is not Phase.RUN:
            dispatcher.wake()

    def _spoilt(self, member: Member, job: ApplyResult) -> None:
        """Leave nothing undone after a signal's handler, or an error, has interrupted the handling of an answer."""
        if member.reader is not None:
            with self.dispatcher.lock:
                member.kill()  # what is known of it may be wrong; the supervisor replaces it
        if job.member is None:
            reason = f"The answer to task {job.number} was lost: its reader was interrupted."
            self.dispatcher.finish(job, None, _billiard.exceptions().WorkerLostError(reason))

    def look_after(self) -> None:
        """Listen again to the workers on loan that nobody has used, or waits for, for a moment."""
        dispatcher, limit = self.dispatcher, time.monotonic() - STALL
        with dispatcher.lock:
            for member in [member for member in dispatcher.loans if member.begun < limit]:
                if member.reader is not None:
                    dispatcher.loans.discard(member)
                    continue
                self.habit = max(self.habit - (_UNREAD if member.inflight else _UNUSED), -_FIRM)
                dispatcher.reclaim(member)
