"""Starting, stopping and surviving a fork."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from slotline.errors import ManagerClosedError
from slotline.leases._checker import Checker
from slotline.leases._revocation import Revoker
from slotline.leases._sizing import Sizing
from slotline.leases._states import State

if TYPE_CHECKING:
    from concurrent.futures import Executor

    from slotline.leases._core import LeaseCore

_inherited: list[Any] = []
"""What a forked child got from its parent: kept, so that nothing is finalised here that belongs there."""


class Lifecycle:
    """Opens and closes one manager's books and runs the thread that keeps them."""

    def __init__(
        self,
        core: LeaseCore,
        *,
        size_provider: Callable[[], float] | None,
        units_per_pool: int,
        min_pools: int,
        check_interval: float,
        name: str,
        logger: logging.Logger,
        hold_overdue: bool,
    ) -> None:
        self._core, self._interval, self._name, self._logger = core, check_interval, name, logger
        self.sizing = Sizing(
            size_provider, units_per_pool=units_per_pool, least=min_pools, most=core.max_places, logger=logger
        )
        core.revoker = Revoker(core, logger, hold_overdue=hold_overdue)
        self._lock = threading.Lock()
        self.checker = self._new_checker()

    def start(self) -> None:
        """Open the books; harmless when they are open."""
        with self._lock:
            if self._core.open:
                return
            self._core.backend.check_process()
            self.checker = self._new_checker()
            with self._core.lock:
                self._core.open = True
            self.sizing.apply(self._core)
            self.checker.start()
            self._logger.info("Started with %d executors on the %s backend.", self._core.total, self._core.backend.name)

    def stop(self, *, wait: bool) -> None:
        """Close the books and end the executors; see ``LeasedExecutorManager.stop``."""
        core = self._core
        with self._lock:
            if not core.open:
                return
            with core.lock:
                core.open = False
                line, leases = list(core.line), list(core.leases.values())
                core.line.clear()
                while core.idle:
                    core.hand_on(core.idle.pop())
            for waiter in line:
                waiter.error = ManagerClosedError("The manager was stopped while this caller waited for an executor.")
                waiter.wake()
            for grant in leases:
                if wait:
                    core.release(grant)
                    grant.why = "ended when its manager was stopped"
                else:
                    core.revoker.begin(grant, "was revoked because its manager was stopped", "stopped")
            with core.lock:
                while core.leases or core.killing:
                    core.changed.wait()
            for executor in self._let_go_of_held():
                core.backend.close(executor, wait=False)
            self.checker.stop()
            retired, core.retired = core.retired, []
            for executor in retired:
                # Where work can be killed, none is left by now. Such an executor is seen to its end: a multiprocessing
                # child, as Taskiq's workers are, that exits in the middle of it waits for the executor's own children.
                core.backend.close(executor, wait=wait or core.backend.killable)
            self._logger.info("Stopped.")

    def _let_go_of_held(self) -> list[Executor]:
        """Take the places of overdue work away, which nobody waits for; return their executors."""
        core = self._core
        with core.lock:
            held = [grant for grant in core.overdue if grant.state is State.HELD]
            for grant in held:
                grant.state = State.OVERDUE
                core.total -= 1
        return [executor for grant in held if (executor := grant.place.empty()) is not None]

    def begin_anew(self) -> bool:
        """Forget the parent process's state, in a forked child; return whether the books were open."""
        core, was_open = self._core, self._core.open
        for grant in [*core.leases.values(), *core.overdue, *core.killing]:
            grant.state, grant.why = State.FOREIGN, "belongs to the process that this one was forked from"
            _inherited.append((grant, grant.place.executor))
            core.backend.forget(grant.place.executor)
        for place in core.idle:
            _inherited.append(place.executor)
            core.backend.forget(place.executor)
        _inherited.append((self.checker, core.lock, list(core.line)))
        self._lock = threading.Lock()
        core.reset()
        self.checker = self._new_checker()
        return was_open

    def _new_checker(self) -> Checker:
        return Checker(self._core, self.sizing, interval=self._interval, name=self._name, logger=self._logger)
