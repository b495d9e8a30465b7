"""The workers as a body: started through the launcher, counted, replaced, given up when they keep failing."""

from __future__ import annotations

import contextlib
import inspect
import os
import pickle
import signal
import socket
import time
from collections.abc import Callable
from typing import Any, Final

from slotline.workers import _billiard, launcher
from slotline.workers.courier import logger
from slotline.workers.dispatch import Dispatcher, Due, Phase
from slotline.workers.member import Member, State, WorkerPid

_AT_ONCE: Final = 16
"""How many launches may be under way; each holds descriptors that are on their way to the launcher."""

_RETRY: Final = 0.1
_LAUNCHER_PATIENCE: Final = 5.0


class Crew:
    """Keeps the wanted number of workers alive; used by the supervisor, and by callers with the dispatcher's lock.

    Args:
        dispatcher: Where ready workers go.
        packed_spec: The pickled ``WorkerSpec``.
        watch: Called with each new worker, to listen to it.
    """

    def __init__(self, dispatcher: Dispatcher, packed_spec: bytes, watch: Callable[[Member], None]) -> None:
        options = dispatcher.options
        self.dispatcher = dispatcher
        self.target = options.processes
        self.packed_spec = packed_spec
        self.watch = watch
        self.context = _billiard.spawn_context(options.context)
        self.control: socket.socket | None = None
        self.process: Any = None
        self.launcher_ready = False
        self.not_before = 0.0
        """No worker is started until then: the system has refused one."""
        self.exits = 0
        """How many workers have ended without being told to."""
        self.last_words = ""
        """The traceback of the last initializer that failed."""
        self._next = 0
        self._complaint = ""

    # The launcher.

    def start_launcher(self) -> socket.socket:
        """Start the launcher's process and return this end of the connection to it."""
        near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        process = self.context.Process(
            target=launcher.main, args=(far, os.getpid(), self.packed_spec), name="SlotlineLauncher", daemon=True
        )
        try:
            process.start()
        except BaseException:
            near.close()
            raise
        finally:
            far.close()
        # The launcher ends with its connection. Were it in billiard's list, a process forked off by somebody else would
        # terminate it, as its own child, when it ends.
        with contextlib.suppress(AttributeError):
            process._children.discard(process)  # noqa: SLF001 - billiard keeps the name for compatibility
        self.control, self.process, self.launcher_ready = near, process, False
        return near

    def bury_launcher(self, *, kill: bool) -> None:
        """Close the connection, wait until the launcher has killed what is left and ended, and reap it."""
        control, process = self.control, self.process
        self.control = self.process = None
        self.launcher_ready = False
        if control is not None:
            # Said aloud as well: a process forked from this one may hold a copy of the connection.
            with contextlib.suppress(OSError):
                control.send(b"")
            control.close()
        if process is None:
            return
        if kill:
            with contextlib.suppress(OSError):
                os.kill(process.pid, signal.SIGKILL)
        if process.join(_LAUNCHER_PATIENCE) is None and process.exitcode is None:
            with contextlib.suppress(OSError):
                os.kill(process.pid, signal.SIGKILL)
            process.join(_LAUNCHER_PATIENCE)
        with contextlib.suppress(ValueError):
            process.close()

    def pause(self) -> None:
        """Start no worker for a moment."""
        self.not_before = time.monotonic() + _RETRY

    # Workers; the dispatcher's lock is held.

    def fill(self) -> None:
        """Ask the launcher for as many workers as are missing."""
        dispatcher = self.dispatcher
        if self.control is None or not self.launcher_ready or dispatcher.phase is Phase.TERMINATE:
            return
        if dispatcher.phase is Phase.CLOSE and not dispatcher.queue:
            return
        if time.monotonic() < self.not_before:
            dispatcher.due(self.not_before, Due.FILL, None)
            return
        members = dispatcher.members.values()
        staying = [member for member in members if member.state is not State.LEAVING]
        starting = sum(member.state is State.STARTING for member in staying)
        for _ in range(min(self.target - len(staying), _AT_ONCE - starting)):
            taken = {member.index for member in staying}
            index = next(number for number in range(len(staying) + 1) if number not in taken)
            try:
                member = self._launch(index)
            except OSError as error:  # no descriptors, or the launcher is gone, which its connection tells
                self._complain(error)
                dispatcher.due(time.monotonic() + _RETRY, Due.FILL, None)
                return
            staying.append(member)
            dispatcher.members[member.number] = member
            self.watch(member)

    def _complain(self, error: OSError) -> None:
        """Log why no worker can be started, once for each reason."""
        if str(error) != self._complaint:
            self._complaint = str(error)
            logger.warning("A worker cannot be started, which is tried again and again: %s", error)

    def _launch(self, index: int) -> Member:
        assert self.control is not None  # noqa: S101 - fill() has looked
        self._next += 1
        member = Member(self._next, index)
        try:
            request = pickle.dumps((member.number, index))
            socket.send_fds(self.control, [request], [member.far.fileno(), member.arena.fd])
        except BaseException:
            member.close()
            raise
        return member

    def explain(self, verdict: str) -> str:
        """Return why the executor gives up, with the last initializer's traceback if one failed."""
        return f"{verdict}\n{self.last_words}" if self.last_words else verdict

    def up(self, member: Member) -> None:
        """Tell the callback that a worker has started."""
        callback = self.dispatcher.options.on_process_up
        if callback is not None:
            self.dispatcher.courier.put(callback, WorkerPid.of(member))

    def down(self, member: Member, exitcode: int | None) -> None:
        """Tell the callback that a worker has ended."""
        callback = self.dispatcher.options.on_process_down
        if callback is not None and member.pid:
            pid = WorkerPid.of(member, exitcode)
            self.dispatcher.courier.put(callback, *((pid, exitcode) if _takes_two(callback) else (pid,)))


def _takes_two(callback: Callable[..., Any]) -> bool:
    """Return whether a callback takes the exit code as well, or the worker alone as billiard's do."""
    try:
        inspect.signature(callback).bind(0, 0)
    except TypeError:
        return False
    except ValueError:  # a builtin that does not tell
        return True
    return True
