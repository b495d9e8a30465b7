"""The heartbeat: one thread a process and store that keeps alive what the process holds there."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from slotline.errors import StoreUnavailableError
from slotline.metrics import _telling
from slotline.metrics.exporter import RenewalResult
from slotline.stores.base import Command

logger = logging.getLogger("slotline.stores")

BEATS = 3
"""How often something is renewed within its lease."""
EARLY = 1 / 6
"""The part of a lease by which work is told early that its slot is lost: it must be over when the lease ends."""
_ROUNDED = 0.001
"""Seconds by which a whole lease may come out shorter: the store counts milliseconds."""
_TOGETHER = 0.25
_RETRY = 1.0
_LINGER = 5.0


@dataclass(slots=True)
class Kept:
    """Something held.

    Attributes:
        deadline: The monotonic time at which it is lost unless a renewal succeeds: the end of its lease, or as much
            before it as its work needs to end.
        shortened: Whether it lasts for less than a lease, since something else ends it then.
        gone: Whether the store has answered that it is gone.
        to_end: Whether the store has answered that its holder is to end.
    """

    token: str
    renew: Command
    lease: float
    due: float
    deadline: float
    on_lost: Callable[[], None]
    work: float | None
    on_evict: Callable[[], object] | None
    shortened: bool = False
    gone: bool = False
    to_end: bool = False

    def lasts(self, since: float, seconds: float) -> None:
        """Take notice of how long it lasts now."""
        # What ends before its lease does cannot be prolonged: at its pace, renewals would grow denser up to that end.
        self.lease, self.due = seconds, since + (self.work or seconds) / BEATS
        self.shortened = self.work is not None and seconds < self.work - _ROUNDED
        self.deadline = end_of(since, seconds, self.work)


def end_of(since: float, seconds: float, work: float | None) -> float:
    """Return the monotonic time at which something ends for its holder, that lasts for ``seconds``."""
    return since + seconds - (0.0 if work is None or seconds < work - _ROUNDED else work * EARLY)


class Keeper:
    """Renews what is kept, all of it in one round trip, and says at once when something is lost.

    Something is lost when the store answers that it is gone, or when its lease has ended by this process's own clock,
    counted from before the last successful renewal was sent: always before anybody else can take it. For what work
    depends on that is a sixth of the lease earlier, so that the work can be over by then. Deadlines are watched by one
    thread and renewals sent from another, so that a store that does not answer delays no loss. The
    threads end when nothing is kept.

    Args:
        execute_many: Sends commands in one round trip.
        lane: Tells which server a command is for: one that does not answer delays no renewal at another.
    """

    def __init__(
        self,
        execute_many: Callable[[Sequence[Command]], list[Any]],
        lane: Callable[[Command], str | None] = lambda _: None,
    ) -> None:
        self._execute_many = execute_many
        self._lane = lane
        self._changed = threading.Condition()
        self._kept: dict[str, Kept] = {}
        self._later: dict[Command, float] = {}
        self._next_look = math.inf
        self._thread: threading.Thread | None = None
        self._senders: dict[str | None, threading.Thread] = {}
        self._retry_at: dict[str | None, float] = {}
        self._closed = False

    def keep(
        self,
        token: str,
        renew: Command,
        lease: float,
        since: float,
        on_lost: Callable[[], None],
        *,
        work: float | None = None,
        on_evict: Callable[[], object] | None = None,
    ) -> Kept:
        """Renew ``token`` every third of its lease until it is dropped.

        Args:
            token: What is held.
            renew: A command that answers how many milliseconds it now lasts, 0 when it is gone; as a negative number
                when it lasts, but its holder is to end.
            lease: Seconds that it lasts now.
            since: ``time.monotonic()`` before the command was sent that took it.
            on_lost: Called once, in one of the keeper's threads, when it is gone.
            work: The whole lease, where work must have ended by the end of it: then ``on_lost`` is called earlier.
            on_evict: Called once, in one of the keeper's threads, when its holder is to end.
        """
        kept = Kept(token, renew, lease, 0.0, 0.0, on_lost, work, on_evict)
        kept.lasts(since, lease)
        self._kept[token] = kept
        if self._thread is None or kept.due < self._next_look:
            try:
                self._look_again()
            except RuntimeError:  # there can be no thread now, and what is not renewed must not be held
                self.drop(token)
                raise
        return kept

    def hasten(self, renewals: Mapping[str, Command]) -> None:
        """Renew tokens now, and from now on by other commands."""
        for token, renew in renewals.items():
            kept = self._kept.get(token)
            if kept is not None:
                kept.renew, kept.due = renew, time.monotonic()
        self._look_again_if_possible()

    def drop(self, token: str) -> bool:
        """Renew ``token`` no more; return whether it was still kept."""
        return self._kept.pop(token, None) is not None

    def later(self, command: Command, seconds: float) -> None:
        """Send ``command`` as soon as the store answers, trying for ``seconds``: a release that must not get lost."""
        with self._changed:  # the thread goes through them, and makes them anew
            self._later[command] = time.monotonic() + seconds
            self._look_again_if_possible()

    def close(self) -> None:
        """Send the releases that are left, once, and stop; what is still kept runs out by its lease."""
        with self._changed:
            self._closed = True
            threads = [
                thread
                for thread in (self._thread, *self._senders.values())
                if thread not in (None, threading.current_thread())
            ]
            self._changed.notify_all()
        for thread in threads:
            if thread is not None:
                thread.join(timeout=5.0)
        if self._later:
            self._send(None, [], dict(self._later))

    def _look_again(self) -> None:
        with self._changed:
            self._next_look = 0.0
            if self._thread is None and not self._closed:
                thread = threading.Thread(target=self._run, name="slotline-keeper", daemon=True)
                thread.start()
                self._thread = thread
            self._changed.notify_all()

    def _look_again_if_possible(self) -> None:
        try:
            self._look_again()
        except RuntimeError as error:
            logger.warning("the heartbeat begins with the next slot: %s", error)

    def _run(self) -> None:
        lingered = False
        with self._changed:
            while not self._closed:
                now = time.monotonic()
                lost = [kept for kept in list(self._kept.values()) if kept.deadline <= now]
                if lost:
                    self._changed.release()
                    try:
                        self._lose(lost)
                    finally:
                        self._changed.acquire()
                    continue
                self._next_look = math.inf  # whoever is kept from here on says so, and is not missed
                self._start_sending(now)
                if not self._senders and not self._kept and not self._later:
                    if lingered:
                        break
                    # Short holds follow one another: a thread for each would cost more than the holds.
                    lingered, self._next_look = True, now + _LINGER
                    self._changed.wait(_LINGER)
                    continue
                lingered = False
                # What is overdue waits for its server's answer to others: only its end is watched till then.
                self._next_look = min(
                    (
                        min(kept.due, kept.deadline) if kept.due > now else kept.deadline
                        for kept in list(self._kept.values())
                    ),
                    default=math.inf,
                )
                if self._later:
                    self._next_look = min(self._next_look, now + _RETRY)
                self._changed.wait(None if self._next_look == math.inf else max(0.0, self._next_look - now))
            self._thread = None

    def _start_sending(self, now: float) -> None:
        due = [kept for kept in list(self._kept.values()) if kept.due <= now]
        if due:
            due = [kept for kept in list(self._kept.values()) if kept.due <= now + _TOGETHER * kept.lease / BEATS]
        self._later = {command: until for command, until in self._later.items() if until > now}
        loads: dict[str | None, tuple[list[Kept], dict[Command, float]]] = {}
        for kept in due:
            loads.setdefault(self._lane(kept.renew), ([], {}))[0].append(kept)
        for command, until in self._later.items():
            loads.setdefault(self._lane(command), ([], {}))[1][command] = until
        for lane, (renewals, later) in loads.items():
            if lane in self._senders or not (renewals or now >= self._retry_at.get(lane, 0.0)):
                continue
            for kept in renewals:
                kept.due = math.inf  # the watch on its deadline goes on while the renewal travels
            sender = threading.Thread(
                target=self._send, args=(lane, renewals, later), name="slotline-renewals", daemon=True
            )
            try:
                sender.start()
            except RuntimeError as error:
                logger.warning("renewing is tried again: %s", error)
                self._retry_at[lane] = now + _RETRY
                for kept in renewals:
                    kept.due = now + _RETRY
            else:
                self._senders[lane] = sender

    def _send(self, lane: str | None, due: list[Kept], later: dict[Command, float]) -> None:
        sent, renewals = time.monotonic(), [kept.renew for kept in due]
        answered = []
        try:
            replies = self._execute_many([*renewals, *later])
        except Exception as error:
            retry_at = self._retry_at[lane] = time.monotonic() + _RETRY
            if not isinstance(error, StoreUnavailableError):
                logger.exception("renewing failed")
            for kept in due:
                kept.due = retry_at
            _tell_renewals("failed" for _ in due)
        else:
            for command, reply in zip(later, replies[len(due) :], strict=True):
                if isinstance(reply, Exception):
                    self._retry_at[lane] = sent + _RETRY
                else:
                    answered.append(command)
            for kept, renewal, reply in zip(due, renewals, replies, strict=False):
                _note(kept, renewal, reply, sent)
            _tell_renewals(map(_result, replies[: len(due)]))
        self._lose([kept for kept in due if kept.gone])
        _evict([kept for kept in due if kept.to_end])
        with self._changed:  # the other thread goes through all of these
            for command in answered:
                if self._later.get(command) == later[command]:  # else it was handed over again while it travelled
                    del self._later[command]
            self._senders.pop(lane, None)
            self._look_again_if_possible()

    def _lose(self, lost: list[Kept]) -> None:
        for kept in lost:
            if self._kept.get(kept.token) is kept and self.drop(kept.token):
                if (observer := _telling.observer) is not None:
                    observer.reclaimed("gone" if kept.gone else "slot_exp" if kept.shortened else "expired")
                _tell(kept.on_lost, kept)


def _note(kept: Kept, renewal: Command, reply: Any, sent: float) -> None:
    if isinstance(reply, Exception):
        kept.due = sent + _RETRY
    elif reply:
        kept.lasts(sent, abs(reply) / 1000)
        kept.to_end = reply < 0
    else:  # what has just come to its own end is lost by its deadline, in a moment
        kept.gone = not (kept.shortened and time.monotonic() + _ROUNDED >= kept.deadline)
    if kept.renew is not renewal:  # it was to be renewed by another command while this one travelled
        kept.due = sent


def _result(reply: Any) -> RenewalResult:
    return "failed" if isinstance(reply, Exception) else "renewed" if reply else "gone"


def _tell_renewals(results: Iterable[RenewalResult]) -> None:
    if (observer := _telling.observer) is not None:
        for result in results:
            observer.renewed(result)


def _evict(due: list[Kept]) -> None:
    for kept in due:
        if kept.on_evict is not None:
            on_evict, kept.on_evict = kept.on_evict, None
            _tell(on_evict, kept)


def _tell(callback: Callable[[], object], kept: Kept) -> None:
    try:
        callback()
    except Exception:
        logger.exception("the callback for the lost %s failed", kept.token)
