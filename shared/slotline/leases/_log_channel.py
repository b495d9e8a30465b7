"""The socket on which worker processes send their log records home.

A socket that keeps packets whole, rather than a ``multiprocessing.Queue``: a worker that is killed while it logs can
neither leave half a record behind nor take a lock with it that the others need.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import logging.handlers
import pickle
import socket
import threading
from typing import Any

from slotline.leases.process_logging import ProcessLoggingConfig

_BUFFER = 1 << 20
_CUT = 4096
_GRACE = 5.0
_SEND_TIMEOUT = 5.0


class LogChannel:
    """Receives the log records of one executor's workers and hands them to the owner's loggers.

    Args:
        config: Which loggers those are.

    Attributes:
        sender: The workers' end.
    """

    def __init__(self, config: ProcessLoggingConfig) -> None:
        self._config = config
        self._receiver, self.sender = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for end in (self._receiver, self.sender):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER)
        self._thread = threading.Thread(target=self._receive, name="slotline-logs", daemon=True)
        self._thread.start()

    def close(self, *, workers_gone: bool) -> None:
        """Stop receiving once the workers' last record is in."""
        if workers_gone:
            # An explicit end: a stranger that was forked from this process may hold the workers' end open for ever.
            self.sender.settimeout(_GRACE)
            with contextlib.suppress(OSError):
                self.sender.send(b"end")
        self.sender.close()
        if workers_gone:
            self._thread.join(_GRACE)

    def _receive(self) -> None:
        with self._receiver as receiver:
            while (packet := receiver.recv(_BUFFER)) not in {b"", b"end"}:
                try:
                    self._deliver(logging.makeLogRecord(pickle.loads(packet)))  # noqa: S301 - from our own workers
                except Exception:
                    logging.getLogger(__name__).exception("A log record of a worker process could not be forwarded.")

    def _deliver(self, record: logging.LogRecord) -> None:
        target = self._config.target_logger or logging.getLogger(record.name)
        if target.isEnabledFor(record.levelno):
            target.handle(record)


class _Sender(logging.handlers.QueueHandler):
    """The root handler of a worker process."""

    def __init__(self, sender: socket.socket) -> None:
        super().__init__(sender)  # type: ignore[arg-type] # enqueue() below is all that touches the queue
        sender.settimeout(_SEND_TIMEOUT)
        self._sender = sender

    def enqueue(self, record: logging.LogRecord) -> None:
        facts = dict(record.__dict__)
        try:
            self._sender.send(_packed(facts))
        except OSError as error:
            if error.errno != errno.EMSGSIZE:
                raise  # the handler's own error handling reports it; the work goes on
            facts["msg"] = facts["message"] = f"{facts['message'][:_CUT]}... (cut: the record was too large)"
            facts["exc_text"] = None
            self._sender.send(_packed({name: value for name, value in facts.items() if name in _STANDARD}))


_STANDARD = frozenset(logging.makeLogRecord({}).__dict__) | {"message"}


def _packed(facts: dict[str, Any]) -> bytes:
    try:
        return pickle.dumps(facts)
    except Exception:  # noqa: BLE001 - an extra of the user's that cannot travel must not cost the record
        return pickle.dumps({name: value if name in _STANDARD else repr(value) for name, value in facts.items()})


def send_logs(sender: socket.socket, level: int | str, *, clear_handlers: bool) -> None:
    """Have the calling worker process send its log records to its owner."""
    root = logging.getLogger()
    if clear_handlers:
        for handler in list(root.handlers):
            root.removeHandler(handler)
    root.addHandler(_Sender(sender))
    root.setLevel(level)
