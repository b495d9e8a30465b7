"""The process between an owner and its workers: it forks them, buries them, and ends them all when the owner ends.

It runs one thread and no user code, so forking it is always safe and takes milliseconds; and because it forks in its
main thread, the kernel's parent-death signal reaches every worker should the launcher itself be killed. Whatever a
dead worker's task has left behind becomes its child, however it daemonised itself, and is killed before the death is
reported.
"""

from __future__ import annotations

import contextlib
import gc
import os
import pickle
import select
import signal
import socket
from typing import Any, Final

from slotline.workers import _billiard, process_tree, worker

HELLO, STARTED, EXITED, FAILED = "hello", "started", "exited", "failed"
_REQUEST: Final = 4096


def main(control: socket.socket, owner: int, packed_spec: bytes) -> None:
    """Serve launch requests until the owner closes the connection or ends."""
    control.set_inheritable(False)
    launcher = _Launcher(control, packed_spec)
    try:
        owner_fd = os.pidfd_open(owner)
    except OSError:
        os._exit(1)  # the owner ended before this process was up
    launcher.serve(owner_fd)


class _Launcher:
    def __init__(self, control: socket.socket, packed_spec: bytes) -> None:
        self.control, self.packed_spec = control, packed_spec
        self.pid = os.getpid()
        self.workers: dict[int, Any] = {}
        self.context = _billiard.load("billiard").get_context("fork")
        process_tree.own_session()
        process_tree.adopt_orphans()
        self.own_children = frozenset(process_tree.children())
        self.wake_read, self.wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(self.wake_write, warn_on_full_buffer=False)
        self.stopping = False
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        for signum in (signal.SIGCHLD, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP):
            signal.signal(signum, lambda *_: None)
        signal.signal(signal.SIGTERM, self._stop)

    def _stop(self, *_: Any) -> None:
        self.stopping = True

    def serve(self, owner_fd: int) -> None:
        gc.collect()
        gc.freeze()  # keeps pages shared with the workers
        poll = select.poll()
        for fd in (self.control.fileno(), owner_fd, self.wake_read):
            poll.register(fd, select.POLLIN)
        self._tell((HELLO, self.pid))
        try:
            while not self.stopping:
                ready = {fd for fd, _ in poll.poll()}
                if self.wake_read in ready:
                    with contextlib.suppress(BlockingIOError):
                        os.read(self.wake_read, 4096)
                    self._bury()
                if owner_fd in ready:
                    break
                if self.control.fileno() in ready and not self._launch(owner_fd):
                    break
        finally:
            for process in self.workers.values():
                process_tree.kill_group(process.pid)
            process_tree.kill_strangers(self.own_children)
            os._exit(0)

    def _launch(self, owner_fd: int) -> bool:
        """Fork one worker as the owner asks; ``False`` when the owner has closed the connection."""
        try:
            message, fds, _, _ = socket.recv_fds(self.control, _REQUEST, 2)
        except ConnectionError:
            return False
        if not message:
            return False
        number, index = pickle.loads(message)  # noqa: S301 - the owner made it
        sock = socket.socket(fileno=fds[0])
        inherited = [self.control.fileno(), owner_fd, self.wake_read, self.wake_write]
        process = self.context.Process(
            target=worker.main,
            args=(self.packed_spec, sock, fds[1], self.pid, inherited),
            name=f"SlotlineWorker-{index}",
            daemon=False,  # a task may start processes of its own
        )
        try:
            process.start()
        except OSError as error:
            self._tell((FAILED, number, str(error)))
        else:
            self.workers[number] = process
            self._tell((STARTED, number, process.pid))
        finally:
            sock.close()
            os.close(fds[1])
        return True

    def _bury(self) -> None:
        """Report the workers that have ended, once everything that they started is dead."""
        ended = [(number, process, process.exitcode) for number, process in self.workers.items()]
        ended = [entry for entry in ended if entry[2] is not None]
        for number, process, _ in ended:
            process_tree.kill_group(process.pid)
            del self.workers[number]
        process_tree.kill_strangers(self.own_children.union(process.pid for process in self.workers.values()))
        for number, process, code in ended:
            pid = process.pid
            process.close()
            self._tell((EXITED, number, pid, code))

    def _tell(self, report: tuple[Any, ...]) -> None:
        try:
            self.control.send(pickle.dumps(report))
        except OSError:
            self.stopping = True
