"""End servers and workers even if the test run itself is killed.

A small process holds the read end of a pipe and is told which sessions it guards. When the pipe breaks, because the
test run ended in whatever way, it ends every process of the sessions that are still on its list.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading

_SOURCE = """
import os, signal, sys
guarded = set()
for line in sys.stdin:
    (guarded.add if line[0] == "+" else guarded.discard)(int(line[1:]))
for entry in filter(str.isdigit, os.listdir("/proc") if guarded else ()):
    try:
        if os.getsid(int(entry)) in guarded:
            os.kill(int(entry), signal.SIGKILL)
    except OSError:
        pass
"""

_lock = threading.Lock()
_process: subprocess.Popen[str] | None = None
_owner = 0


def guard(session: int) -> None:
    """End all processes of ``session`` (the pid of its first process) when this process ends."""
    _tell(f"+{session}\n")


def release(session: int) -> None:
    """Take a session that has ended off the list, before its number is used again."""
    _tell(f"-{session}\n")


def pid() -> int | None:
    """Return the guardian's pid, if it was needed so far."""
    return _process.pid if _process is not None and _owner == os.getpid() else None


def _tell(line: str) -> None:
    global _process, _owner  # noqa: PLW0603 - one guardian for each process that runs tests
    with _lock:
        if _process is None or _owner != os.getpid():
            _owner = os.getpid()
            _process = subprocess.Popen(
                [sys.executable, "-S", "-E", "-c", _SOURCE], stdin=subprocess.PIPE, text=True, start_new_session=True
            )
        assert _process.stdin is not None
        _process.stdin.write(line)
        _process.stdin.flush()


def close() -> None:
    """End the guardian, and with it whatever is still on its list."""
    global _process
    with _lock:
        process, _process = _process, None
    if process is not None and _owner == os.getpid():
        assert process.stdin is not None
        process.stdin.close()
        process.wait()
