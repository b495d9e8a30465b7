"""What runs in a worker process of the process backend: one call at a time, in the main thread."""

from __future__ import annotations

import os
import traceback
from multiprocessing.connection import Connection

from slotline.leases._child import WorkerSetup, start_worker
from slotline.workers import outcome, wire
from slotline.workers.process_tree import EX_CHANNEL, adopt_orphans
from slotline.workers.streams import Streams

STOP = b""
"""What the owner sends instead of a call."""
_MOST_TEXT = 10_000


def serve(connection: Connection, setup: WorkerSetup) -> None:
    """Answer calls until the owner says that it is enough, or a call has made the process unfit for others."""
    adopt_orphans()  # so that a daemon which a call has started is found when the worker is killed
    try:
        start_worker(setup)
    except BaseException:  # noqa: BLE001 - it is reported to the owner
        _answer(connection, wire.BROKEN, 0, [traceback.format_exc()[-_MOST_TEXT:].encode(errors="replace")])
        return
    os.register_at_fork(after_in_child=connection.close)
    pid, streams = os.getpid(), Streams()
    _answer(connection, wire.READY, 0, [])
    fit = True
    while fit:
        try:
            packet = connection.recv_bytes()
        except MemoryError as error:  # the rest of the call would be taken for the next one
            _answer(connection, wire.FAILED, wire.LEAVING, outcome.pack_error(error))
            return
        if packet == STOP:
            return
        kind, payload = _run(packet)
        del packet
        if os.getpid() != pid:
            os._exit(0)  # a copy that the call forked off and let return: the answer is the original's to give
        fit = not streams.damaged()
        _answer(connection, kind, 0 if fit else wire.LEAVING, payload)
        del payload


def _run(packet: bytes) -> tuple[int, wire.Payload]:
    try:
        fn, args, kwargs = wire.load("task or argument", packet)
        kind, _, payload = outcome.pack_value(fn(*args, **kwargs))
    except BaseException as error:  # noqa: BLE001 - whatever a call raises is its outcome
        return wire.FAILED, outcome.pack_error(error)
    else:
        return kind, payload


def _answer(connection: Connection, kind: int, flags: int, payload: wire.Payload) -> None:
    try:
        connection.send_bytes(b"".join([bytes((kind, flags)), *payload]))
    except MemoryError as error:  # in joining them: nothing is sent yet
        _answer(connection, wire.FAILED, flags, outcome.pack_error(error))
    except OSError:  # the owner is gone, or the call has closed descriptors that were not its own
        os._exit(EX_CHANNEL)
