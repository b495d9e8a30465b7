"""Taking a lease away from an owner that did not give it back."""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING

from slotline.errors import LeaseExpiredError
from slotline.leases._jobs import Job
from slotline.leases._states import State
from slotline.metrics import _telling

if TYPE_CHECKING:
    from slotline.leases._core import LeaseCore
    from slotline.leases._grants import Grant
    from slotline.leases._line import Waiter
    from slotline.metrics.exporter import ReclaimReason


class Revoker:
    """Revokes leases of one manager.

    Args:
        core: The manager's books.
        hold_overdue: Whether work that cannot be killed keeps its place until it ends.
        logger: Gets a line for each revocation.
    """

    def __init__(self, core: LeaseCore, logger: logging.Logger, *, hold_overdue: bool) -> None:
        self._core, self._logger, self._hold = core, logger, hold_overdue

    def begin(self, grant: Grant, why: str, reason: ReclaimReason = "revoked") -> None:
        """Revoke a lease, with the reason as the end of a sentence; killing goes on in a thread of its own.

        Nothing happens to a lease that is over. Work in the queue fails. What runs is killed, and its place passes on
        when it is dead; what cannot be killed runs on.
        """
        core = self._core
        waiter: Waiter | None = None
        with core.lock:
            if grant.state not in {State.ACTIVE, State.DRAINING}:
                return
            core.leases.pop(grant.lease_id, None)
            core.changed.notify_all()  # a manager that is being stopped waits for them
            grant.why = why
            jobs = list(grant.jobs)
            if (observer := _telling.observer) is not None:
                observer.reclaimed(reason)
            if not jobs:
                waiter = core.close(grant)
            elif core.backend.killable:
                grant.state, grant.dead = State.KILLING, threading.Event()
                core.killing.add(grant)
            else:
                grant.state = State.HELD if self._hold else State.OVERDUE
                core.overdue.add(grant)
        if not jobs:
            self._logger.warning("%s %s; it had no work.", grant.described(), why)
            core.wake(waiter)
        elif core.backend.killable:
            threading.Thread(target=self._kill, args=(grant, jobs), name="slotline-kill", daemon=True).start()
        else:
            self._abandon(grant, jobs)

    def _abandon(self, grant: Grant, jobs: list[Job]) -> None:
        core = self._core
        for job in jobs:
            if job.fail_waiting(_not_started(grant)):
                core.job_done(grant, job)
        running = [job.name for job in jobs if job in grant.jobs]
        self._logger.warning(
            "%s %s; %d of its calls cannot be killed and run on%s%s.",
            grant.described(),
            grant.why,
            len(running),
            " and hold their place" if self._hold else "",
            f": {', '.join(running)}" if running else "",
        )
        if not self._hold:
            executor = grant.place.empty()
            if executor is not None:
                core.backend.close(executor, wait=False)
            core.pass_on(grant.place)

    def _kill(self, grant: Grant, jobs: list[Job]) -> None:
        core = self._core
        executor = grant.place.empty()  # first, so that all jobs are either in it or turned away
        verdicts = {job: _killed(grant, job) if job.started() else _not_started(grant) for job in jobs}
        for job, verdict in verdicts.items():
            job.verdict = verdict
        try:
            if executor is not None:
                core.backend.kill(executor)
        except Exception:
            self._logger.exception("%s %s, but killing its work failed.", grant.described(), grant.why)
        else:
            self._logger.warning("%s %s; %d of its calls were killed.", grant.described(), grant.why, len(jobs))
        for job, verdict in verdicts.items():
            job.fail(verdict)
        with core.lock:
            core.killing.discard(grant)
            grant.jobs.clear()
            grant.state = State.CLOSED
            waiter = core.hand_on(grant.place)
            core.changed.notify_all()
        core.wake(waiter)
        if grant.dead is not None:
            grant.dead.set()


def _not_started(grant: Grant) -> LeaseExpiredError:
    return LeaseExpiredError(f"{grant.described()} {grant.why} before this work was started: it did not run.")


def _killed(grant: Grant, job: Job) -> LeaseExpiredError:
    return LeaseExpiredError(f"{grant.described()} {grant.why}: its work, {job.name}, was killed.")
