"""What becomes of a worker's tasks, and of its place, when the worker has ended."""

from __future__ import annotations

import pickle
import socket
import time
from collections.abc import Callable
from functools import partial

from slotline.workers import _billiard, launcher
from slotline.workers.courier import logger
from slotline.workers.crew import Crew
from slotline.workers.dispatch import Dispatcher, Due, Phase
from slotline.workers.inbox import Inbox
from slotline.workers.jobs import ApplyResult
from slotline.workers.loop import Loop
from slotline.workers.member import Member, State
from slotline.workers.process_tree import how_it_ended
from slotline.workers.worker import EX_OK, EX_RECYCLE

_LOST = 0.05
"""Seconds that the exit status of a dead worker is waited for, where the options do not say."""


class Exits:
    """Acts on the launcher's reports and on the deaths that nobody reports, in the supervisor's thread."""

    def __init__(
        self, dispatcher: Dispatcher, crew: Crew, inbox: Inbox, loop: Loop, give_up: Callable[[BaseException], None]
    ) -> None:
        self.dispatcher, self.crew, self.inbox, self.loop = dispatcher, crew, inbox, loop
        self.give_up = give_up
        self.pidfds: dict[int, int] = {}

    def read_launcher(self, control: socket.socket) -> None:
        """Handle one report of the launcher."""
        try:
            packet = control.recv(65536)
        except OSError:
            packet = b""
        if not packet:
            self._launcher_lost()
            return
        kind, *facts = pickle.loads(packet)  # noqa: S301 - a process of our own, over its own socket
        dispatcher = self.dispatcher
        with dispatcher.lock:
            if kind == launcher.HELLO:
                self.crew.launcher_ready = True
                self.crew.fill()
                return
            member = dispatcher.members.get(facts[0])
        if member is None:
            return
        if kind == launcher.STARTED:
            self._started(member, facts[1])
        elif kind == launcher.EXITED:
            self.ended(member, facts[2])
        else:
            logger.warning("A worker could not be started: %s", facts[1])
            self.crew.pause()
            self.ended(member, None)

    def _started(self, member: Member, pid: int) -> None:
        with self.dispatcher.lock:
            member.started(pid)
            if member.state is State.LEAVING or self.dispatcher.phase is Phase.TERMINATE:
                member.kill()  # it was given up before it had a pid
            self.crew.fill()
        if member.pidfd >= 0:
            self.loop.watch(member.pidfd, partial(self._died, member))
        self.crew.up(member)

    def _died(self, member: Member) -> None:
        """Give the launcher a moment to report a death that the kernel has told of."""
        self.loop.unwatch(member.pidfd)
        with self.dispatcher.lock:
            patience = [job.limits.lost_worker_timeout for job in member.inflight][:1]
            limit = patience[0] if patience and patience[0] is not None else _LOST
            self.dispatcher.due(time.monotonic() + limit, Due.LOST, member)

    def ended(self, member: Member, code: int | None) -> None:
        """Hand on what a dead worker has said, fail the task that it was running, and start another worker."""
        dispatcher = self.dispatcher
        if member.gone:
            return
        self.inbox.listen(member, to_the_end=True)
        with dispatcher.lock:
            self.loop.unwatch(member.sock.fileno())
            if member.pidfd >= 0:
                self.loop.unwatch(member.pidfd)
            dispatcher.members.pop(member.number, None)
            was_ready = member.state is not State.STARTING
            dispatcher.take_back(member)
            expected = member.deliberate or (code in (EX_OK, EX_RECYCLE) and not member.inflight and was_ready)
            member.state, member.gone = State.LEAVING, True
            failed = list(member.inflight)
            member.inflight.clear()
            for job in failed:
                member.part_with(job)
            if failed and failed[0].verdict is None and member.arena.begun() != failed[0].number:
                dispatcher.queue.appendleft(failed.pop(0))  # the worker died with the task in its hands, not begun
            verdict = None if expected else dispatcher.policy.lost(was_ready=was_ready)
            self.crew.exits += not expected
            if verdict is None:
                self.crew.fill()
            large = dispatcher.pump()
            if not member.busy:
                member.close()
        for job in failed:
            dispatcher.finish(job, None, job.verdict or lost(job, code))
        dispatcher.write_all(large)
        member.buried.set()
        self.crew.down(member, code)
        if verdict is not None:
            self.give_up(_billiard.exceptions().RestartFreqExceeded(self.crew.explain(verdict)))

    def _launcher_lost(self) -> None:
        """Treat every worker as dead, which the kernel has seen to, and start over with another launcher."""
        dispatcher = self.dispatcher
        control = self.crew.control
        if control is not None:
            self.loop.unwatch(control.fileno())
        never_ready = not self.crew.launcher_ready
        self.crew.bury_launcher(kill=True)
        with dispatcher.lock:
            members = list(dispatcher.members.values())
            for member in members:
                member.kill()
        for member in members:
            self.ended(member, None)
        verdict = None
        if never_ready:
            with dispatcher.lock:
                verdict = dispatcher.policy.lost(was_ready=False)
        if dispatcher.phase is Phase.TERMINATE:
            return
        if verdict is not None:
            self.give_up(_billiard.exceptions().RestartFreqExceeded(self.crew.explain(verdict)))
        else:
            self.start_launcher()

    def start_launcher(self) -> None:
        """Start a launcher and listen to it."""
        control = self.crew.start_launcher()
        self.loop.watch(control.fileno(), partial(self.read_launcher, control))


def lost(job: ApplyResult, code: int | None) -> BaseException:
    """Return the error of a task whose worker ended under it, in words."""
    how = how_it_ended(code)
    error: BaseException = _billiard.exceptions().WorkerLostError(f"The worker of task {job.number} was lost: {how}.")
    return error
