"""What workers say: they are ready, they have taken a task, they have an outcome."""

from __future__ import annotations

from typing import Final

from slotline.workers import outcome, wire
from slotline.workers.courier import logger
from slotline.workers.crew import Crew
from slotline.workers.dispatch import QUICK, SHORT, Dispatcher, Phase
from slotline.workers.jobs import ApplyResult
from slotline.workers.member import Member, State

ACK: Final = 0
"""billiard's number for "go on"."""
NACK: Final = 3
"""billiard's number for "do not start"."""


class Inbox:
    """Reads the packets of workers and acts on them, in the supervisor's thread or in one that waits for an answer."""

    def __init__(self, dispatcher: Dispatcher, crew: Crew) -> None:
        self.dispatcher, self.crew = dispatcher, crew

    def listen(self, member: Member, *, to_the_end: bool = False) -> None:
        """Handle, in the supervisor's thread, what a worker was expected to say, or all that a dead one has said."""
        while self.read(member) and (member.inflight or to_the_end):
            pass
        member.call_reader()  # if it was called before, the call may have been among what was read

    def read(self, member: Member) -> bool:
        """Handle one thing that a worker has said; returns whether there was one."""
        with member.reading:
            try:
                packet = member.sock.recv(wire.PACKET)
            except OSError:
                return False
            if packet:
                self._handle(member, packet)
            return bool(packet)

    def _handle(self, member: Member, packet: bytes) -> None:
        kind, flags, number, when, offset, size = wire.HEADER.unpack_from(packet)
        if kind in (wire.DONE, wire.FAILED):
            self._outcome(member, kind, flags, number, when, (offset, size), packet)
        elif kind == wire.ACCEPTED:
            self._accepted(member, number, when)
        elif kind == wire.READY:
            self._ready(member, number)
        elif kind == wire.BROKEN:
            self.crew.last_words = packet[wire.HEADER.size :].decode(errors="replace")
            logger.error("The initializer of a worker failed:\n%s", self.crew.last_words)

    def _ready(self, member: Member, pid: int) -> None:
        dispatcher = self.dispatcher
        with dispatcher.lock:
            dispatcher.policy.started()
            if member.state is not State.STARTING:
                return
            member.pid = pid
            member.state = State.READY
            large = self.next(member)
            self.crew.fill()
        dispatcher.write_all(large)

    def _outcome(
        self, member: Member, kind: int, flags: int, number: int, when: float, shared: tuple[int, int], packet: bytes
    ) -> None:
        dispatcher, inflight = self.dispatcher, member.inflight
        if not inflight or inflight[0].number != number:
            return  # a copy of the worker that a task has forked off has answered as well
        payload, later, unpacked = packet[wire.HEADER.size :], False, None
        if flags & wire.SHARED:
            later = shared[1] > QUICK
            if not later:
                # The worker may write there again as soon as it has its next task, so the payload is taken out first.
                view = member.arena.read(*shared)
                if dispatcher.unpacks_here(inflight[0], flags):
                    unpacked = outcome.unpack_value(view)
                else:
                    payload = bytes(view)
        with dispatcher.lock:
            job = inflight.popleft()
            member.part_with(job)
            member.fast = when - member.begun < SHORT
            member.begun = when
            if flags & wire.LEAVING:
                member.state, member.deliberate = State.LEAVING, True
            if later:
                member.fetching += 1
            if flags & wire.LEAVING or later:
                dispatcher.take_back(member)
                self.crew.fill()
                large = dispatcher.pump()
            else:
                large = self.next(member)
        if later:
            dispatcher.courier.put(self._fetch, member, job, kind, shared)
        elif unpacked:
            dispatcher.settle(job, *unpacked)
        else:
            dispatcher.deliver(job, kind, flags, payload)
        dispatcher.write_all(large)

    def next(self, member: Member) -> list[tuple[Member, ApplyResult]]:
        """Give the worker its next task, or let it go if it is to be replaced. The lock is held."""
        if member.state is not State.READY:
            return []
        if not member.retire:
            return self.dispatcher.refill(member)
        self.dispatcher.take_back(member)
        if not member.inflight:
            member.stop()
            self.crew.fill()
        return self.dispatcher.pump()

    def _fetch(self, member: Member, job: ApplyResult, kind: int, shared: tuple[int, int]) -> None:
        """Read a very long result, in the callbacks' thread; the worker gets no task meanwhile."""
        dispatcher = self.dispatcher
        error: BaseException | None = None
        payload = b""
        try:
            payload = bytes(member.arena.read(*shared))
        except (OSError, MemoryError) as raised:
            error = raised
        with dispatcher.lock:
            member.fetching -= 1
            gone = member.gone
            if not gone and not member.inflight and not member.fetching:
                member.arena.trim()
            large = self.next(member) if not gone and not member.inflight else []
        if dispatcher.phase is not Phase.RUN:
            dispatcher.wake()
        if gone and not member.busy:
            member.close()
        if error is not None:
            dispatcher.finish(job, None, error)
        else:
            dispatcher.deliver(job, kind, 0, payload)
        dispatcher.write_all(large)

    def _accepted(self, member: Member, number: int, when: float) -> None:
        inflight = member.inflight
        if inflight and inflight[0].number == number:
            job = inflight[0]
            job.time_accepted = when
            self.dispatcher.courier.put(self._accept, member, job, when)

    def _accept(self, member: Member, job: ApplyResult, when: float) -> None:
        """Tell the callback that a task was taken and, with ``synack``, the worker whether to start it."""
        dispatcher = self.dispatcher
        must_answer = bool(job.flags & wire.AWAIT)
        if must_answer and not dispatcher.confirm(job):
            self._answer(member, job, NACK)
            return
        error: BaseException | None = None
        try:
            if job.hooks.accept_callback is not None:
                job.hooks.accept_callback(member.pid, when)
        except Exception as raised:  # noqa: BLE001 - it is the caller's code; it is logged or becomes the task's error
            error = raised
            if not must_answer and job.hooks.accept_callback is not None:
                dispatcher.log_callback_failure(job.hooks.accept_callback)
        if must_answer:
            self._answer(member, job, ACK if error is None else NACK)
            if error is not None:
                dispatcher.finish(job, None, error)

    def _answer(self, member: Member, job: ApplyResult, response: int) -> None:
        dispatcher = self.dispatcher
        large: list[tuple[Member, ApplyResult]] = []
        with dispatcher.lock:
            if member.gone:
                return
            dispatcher.send_ack(response, job.number, None, member.sock.fileno())
            if response == NACK and member.inflight and member.inflight[0] is job:
                member.part_with(member.inflight.popleft())
                large = self.next(member)
        dispatcher.write_all(large)
