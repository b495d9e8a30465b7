"""What kills or stops a worker at exactly one moment of a task's life; it runs in the worker."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from slotline.workers import arena, worker


class WhenRebuilt:
    """Sends its process a signal when it is unpickled."""

    def __init__(self, signum):
        self.signum = signum

    def __setstate__(self, state):
        os.kill(os.getpid(), state["signum"])


class WhenPickled:
    """Sends its process a signal when it is pickled."""

    def __init__(self, signum):
        self.signum = signum

    def __reduce__(self):
        os.kill(os.getpid(), self.signum)
        return int, ()


def load(megabytes):
    return [bytes([n % 256]) * (1 << 20) for n in range(megabytes)]


def total(parts, *_):
    return sum(len(part) for part in parts)


def running(path):
    Path(path).write_text(str(os.getpid()))
    time.sleep(60)


def packs(megabytes, signum):
    return [*load(megabytes), WhenPickled(signum), *load(megabytes)]


def sends_half(megabytes):
    """Return a result of which the worker writes one half before it dies."""

    def write(self, parts, offset, size):
        half = b"".join(parts)[: size // 2]
        original(self, [half], offset, len(half))
        os.kill(os.getpid(), signal.SIGKILL)

    original, arena.Arena.write = arena.Arena.write, write
    return load(megabytes)


def dies_once_sent(megabytes):
    """Return a result after whose sending the worker dies."""

    def answer(self, *args):
        original(self, *args)
        os.kill(os.getpid(), signal.SIGKILL)

    original, worker._Worker.answer = worker._Worker.answer, answer
    return load(megabytes)
