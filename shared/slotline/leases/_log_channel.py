"""The socket on which worker processes send their log records home.

A socket that keeps packets whole, rather than a ``multiprocessing.Queue``: a worker that is killed while it logs can
neither leave half a record behind nor take a lock with it that the others need. It has an abstract address, which is
plain text and leaves no file, and serves processes of the same user alone.
"""

from __future__ import annotations

import errno
import logging
import logging.handlers
import os
import pickle
import secrets
import select
import socket
import struct
import threading
from typing import Any

from slotline.leases.process_logging import ProcessLoggingConfig

_BUFFER = 1 << 20
_MOST = 1 << 18
_CUT = 4096
_GRACE = 5.0
_CREDENTIALS = struct.Struct("3i")


class LogChannel:
    """Receives the log records of one executor's workers and hands them to the owner's loggers.

    Args:
        config: Which loggers those are.

    Attributes:
        address: Where the workers connect.
    """

    def __init__(self, config: ProcessLoggingConfig) -> None:
        self._config = config
        self.address = f"\0slotline-logs-{os.getpid()}-{secrets.token_hex(8)}"
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.bind(self.address)
        self._listener.listen(128)
        self._listener.settimeout(0.0)
        self._bell, self._ringer = socket.socketpair()
        self._workers: dict[int, socket.socket] = {}
        self._thread = threading.Thread(target=self._receive, name="slotline-logs", daemon=True)
        self._thread.start()

    def close(self, *, workers_gone: bool) -> None:
        """Take no new workers, and end with the last of those that are connected.

        Args:
            workers_gone: Whether all workers have ended; if so, return when their last record is in.
        """
        self._ringer.close()
        if workers_gone:
            self._thread.join(_GRACE)

    def _receive(self) -> None:
        poll = select.poll()
        for end in (self._listener, self._bell):
            poll.register(end, select.POLLIN)
        listening = True
        while listening or self._workers:
            ready = {number for number, _ in poll.poll()}
            if listening:
                self._accept(poll)  # first, so that nobody who connected before the bell rang is missed
                if self._bell.fileno() in ready:
                    listening = False
                    for end in (self._listener, self._bell):
                        poll.unregister(end)
                        end.close()
            for number in ready & self._workers.keys():
                self._read(number, poll)

    def _accept(self, poll: select.poll) -> None:
        while True:
            try:
                worker, _ = self._listener.accept()
            except OSError:  # nobody else is waiting
                return
            _, user, _ = _CREDENTIALS.unpack(
                worker.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
            )
            if user != os.geteuid():
                worker.close()
                continue
            self._workers[worker.fileno()] = worker
            poll.register(worker, select.POLLIN)

    def _read(self, number: int, poll: select.poll) -> None:
        worker = self._workers[number]
        try:
            packet = worker.recv(_BUFFER)
        except OSError:
            packet = b""
        if not packet:
            poll.unregister(worker)
            del self._workers[number]
            worker.close()
            return
        try:
            self._deliver(logging.makeLogRecord(pickle.loads(packet)))  # noqa: S301 - from a process of our own user
        except Exception:
            logging.getLogger(__name__).exception("A log record of a worker process could not be forwarded.")

    def _deliver(self, record: logging.LogRecord) -> None:
        target = self._config.target_logger or logging.getLogger(record.name)
        if target.isEnabledFor(record.levelno):
            target.handle(record)


class _Sender(logging.handlers.QueueHandler):
    """The root handler of a worker process."""

    def __init__(self, address: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER)
        self._socket.settimeout(_GRACE)  # an owner that hangs must not hang its workers
        self._socket.connect(address)
        super().__init__(self._socket)  # type: ignore[arg-type] # enqueue() below is all that touches the queue

    def enqueue(self, record: logging.LogRecord) -> None:
        """Send one record; what goes wrong goes to the handler's own error handling, and the work goes on."""
        facts = dict(record.__dict__)
        packet = _packed(facts)
        if len(packet) <= _MOST:
            try:
                self._socket.send(packet)
            except OSError as error:
                if error.errno != errno.EMSGSIZE:
                    raise
            else:
                return
        facts["msg"] = facts["message"] = f"{facts['message'][:_CUT]}... (cut: the record was too large)"
        facts["exc_text"] = None
        self._socket.send(_packed({name: value for name, value in facts.items() if name in _STANDARD}))


_STANDARD = frozenset(logging.makeLogRecord({}).__dict__) | {"message"}


def _packed(facts: dict[str, Any]) -> bytes:
    try:
        return pickle.dumps(facts)
    except Exception:  # noqa: BLE001 - an extra of the user's that cannot travel must not cost the record
        return pickle.dumps({name: value if name in _STANDARD else repr(value) for name, value in facts.items()})


def send_logs(address: str, level: int | str, *, clear_handlers: bool) -> None:
    """Have the calling worker process send its log records to its owner."""
    root = logging.getLogger()
    if clear_handlers:
        for handler in list(root.handlers):
            root.removeHandler(handler)
    root.addHandler(_Sender(address))
    root.setLevel(level)
