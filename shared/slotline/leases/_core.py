"""The book of one manager: which places are free, who holds a lease, and who is next in line.

Everything here is quick, and safe from any thread. Nothing calls out while it holds the lock: waking a waiter, ending
an executor and running a user's callback happen after the books are right.
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING

from slotline.errors import ManagerClosedError
from slotline.leases._grants import Grant
from slotline.leases._places import Place
from slotline.leases._states import State
from slotline.metrics import _telling

if TYPE_CHECKING:
    from concurrent.futures import Executor

    from slotline.leases._jobs import Job
    from slotline.leases._line import Waiter
    from slotline.leases._revocation import Revoker
    from slotline.leases.backend import Backend


class LeaseCore:
    """Places, leases and the line.

    Args:
        backend: Makes and ends executors.
        max_places: How many places there may be.
        grace: Seconds between the soft expiry of a lease and its revocation.
        logger: Gets a line for each lease that is granted or released.

    Attributes:
        lock: Guards all of it.
        changed: Notified when the checker should look again: a lease expires earlier than ``next_check``, or places
            were given up while the manager closes.
        open: Whether leases are granted.
    """

    def __init__(self, backend: Backend, max_places: int, grace: float, logger: logging.Logger) -> None:
        self.backend, self.max_places, self.grace, self._logger = backend, max_places, grace, logger
        self.revoker: Revoker
        _telling.begin()
        self.reset()

    def reset(self) -> None:
        """Begin with empty books, in a state that takes no leases."""
        self.lock = threading.Lock()
        self.changed = threading.Condition(self.lock)
        self.open = False
        self.total = 0
        self.idle: list[Place] = []  # the last one back goes out first: its workers are warm
        self.line: OrderedDict[Waiter, None] = OrderedDict()
        self.leases: dict[str, Grant] = {}  # active and draining ones
        self.overdue: set[Grant] = set()  # revoked, with work that runs on
        self.killing: set[Grant] = set()  # revoked, with work that is being killed
        self.retired: list[Executor] = []  # to be ended by whoever closes the manager
        self.next_check = 0.0
        self._mark = secrets.token_hex(4)
        self._serial = 0

    def take(self, seconds: float, owner: str | None) -> Grant | None:
        """Return a lease if a place is free."""
        with self.lock:
            place = self._free_place()
            if place is None:
                return None
            grant = self._grant(place, seconds, owner)
        self._announce(grant)
        return grant

    def stand_in_line(self, waiter: Waiter) -> bool:
        """Join the line; ``True`` if a place had come free and the waiter has its lease already."""
        with self.lock:
            place = self._free_place()
            if place is None:
                self.line[waiter] = None
                return False
            waiter.grant = self._grant(place, waiter.seconds, waiter.owner)
        self._announce(waiter.grant)
        return True

    def leave_line(self, waiter: Waiter) -> bool:
        """Leave the line; ``False`` if the waiter was served or refused before."""
        with self.lock:
            return self.line.pop(waiter, self) is None

    def admit(self, grant: Grant, job: Job) -> None:
        """Enter a job in a lease's books."""
        with self.lock:
            if grant.state is State.ACTIVE:
                grant.jobs.add(job)
                return
        raise grant.refusal()

    def admit_many(self, grant: Grant, jobs: Sequence[Job]) -> None:
        """Enter several jobs at once."""
        with self.lock:
            if grant.state is State.ACTIVE:
                grant.jobs.update(jobs)
                return
        raise grant.refusal()

    def job_done(self, grant: Grant, job: Job) -> None:
        """Strike a job out; the last one of a lease that is over gives its place up."""
        with self.lock:
            jobs = grant.jobs
            jobs.discard(job)
            if jobs or grant.state is State.ACTIVE:
                return
            waiter = None
            if grant.state is State.OVERDUE:
                self.overdue.discard(grant)
            elif grant.state in {State.DRAINING, State.HELD}:
                self.overdue.discard(grant)
                waiter = self.close(grant)
        self.wake(waiter)

    def release(self, grant: Grant) -> None:
        """End a lease: it takes no more work, and its place passes on when its work is done."""
        with self.lock:
            if grant.state is not State.ACTIVE:
                return
            grant.why = "was released"
            if grant.jobs:
                grant.state = State.DRAINING
                return
            waiter = self.close(grant)
        if self._logger.isEnabledFor(logging.DEBUG):
            self._logger.debug("%s was released.", grant.described())
        self.wake(waiter)

    def renew(self, grant: Grant, seconds: float) -> None:
        """Let a lease expire ``seconds`` from now."""
        with self.lock:
            if grant.state is State.ACTIVE:
                grant.lease_seconds, grant.leased_at = seconds, time.monotonic()
                grant.warned = False
        if grant.state is not State.ACTIVE:
            raise grant.refusal()
        self._expect(grant)

    def pass_on(self, place: Place) -> None:
        """Give a place to the next in line."""
        with self.lock:
            waiter = self.hand_on(place)
        self.wake(waiter)

    def wake(self, waiter: Waiter | None) -> None:
        """Tell a waiter that it was served; one that cannot be reached passes its lease on."""
        while waiter is not None:
            grant = waiter.grant
            if waiter.wake() or grant is None:
                if grant is not None:
                    self._announce(grant)
                return
            with self.lock:
                grant.why = "was never taken up: the event loop that waited for it is closed"
                waiter = self.close(grant) if grant.state is State.ACTIVE else None

    def _announce(self, grant: Grant) -> None:
        if self._logger.isEnabledFor(logging.DEBUG):
            self._logger.debug("%s was granted for %g s.", grant.described(), grant.lease_seconds)
        self._expect(grant)

    def _expect(self, grant: Grant) -> None:
        due = grant.leased_at + grant.lease_seconds
        if due < self.next_check:  # read without the lock: most leases outlast the next check anyway
            with self.lock:
                if due < self.next_check:
                    self.next_check = due
                    self.changed.notify_all()

    def _free_place(self) -> Place | None:
        if not self.open:
            raise ManagerClosedError("The manager is not running: start it first, or use it as a context manager.")
        if self.idle:
            return self.idle.pop()
        if self.total < self.max_places:
            self.total += 1
            return Place(self.backend)
        return None

    def _grant(self, place: Place, seconds: float, owner: str | None) -> Grant:
        self._serial += 1
        grant = Grant(self, place, f"{self._mark}-{self._serial}", owner, seconds)
        self.leases[grant.lease_id] = grant
        return grant

    def close(self, grant: Grant) -> Waiter | None:
        """End a lease without work and hand its place on, with the lock held; return whom to wake without it."""
        grant.state = State.CLOSED
        self.leases.pop(grant.lease_id, None)
        return self.hand_on(grant.place)

    def hand_on(self, place: Place) -> Waiter | None:
        """Give a place to the next in line, with the lock held; return whom to wake without it."""
        if not self.open:
            self.total -= 1
            if place.executor is not None:
                self.retired.append(place.executor)
            self.changed.notify_all()
            return None
        if not self.line:
            self.idle.append(place)
            return None
        waiter, _ = self.line.popitem(last=False)
        waiter.grant = self._grant(place, waiter.seconds, waiter.owner)
        return waiter
