"""What the executor tests run in workers: importable there, small, and named for what they do."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from slotline.workers import outcome


def square(x):
    return x * x


def add(a, b):
    return a + b


def echo(x):
    return x


def keywords(*args, **kwargs):
    return args, kwargs


def pid(_=None):
    return os.getpid()


def sleep(seconds):
    time.sleep(seconds)
    return seconds


def sleep_then(seconds, value):
    time.sleep(seconds)
    return value


def stubborn(seconds):
    """Sleep on through every soft limit and every signal that can be handled."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            time.sleep(end - time.monotonic())
        except BaseException:
            continue


def touch_and_sleep(path, seconds):
    Path(path).write_text(str(os.getpid()))
    time.sleep(seconds)
    return "slept"


def clean_up_on_soft_limit(path, seconds):
    from billiard.exceptions import SoftTimeLimitExceeded

    try:
        time.sleep(seconds)
    except SoftTimeLimitExceeded:
        Path(path).write_text("cleaned")
        return "cleaned"


def finally_writes(path, seconds):
    Path(path + ".started").write_text(str(os.getpid()))
    try:
        time.sleep(seconds)
    finally:
        Path(path).write_text("finally")


def fail(message):
    raise ValueError(message)


def fail_with(error):
    raise error


def odd_fails(x):
    if x % 2:
        raise ValueError(f"{x} is odd")
    return x


class Gadget:
    def __init__(self, value):
        self.value = value

    def __eq__(self, other):
        return isinstance(other, Gadget) and other.value == self.value

    __hash__ = None


class PicklesNowhere:
    def __reduce__(self):
        raise TypeError("this object stays where it is")


class BreaksWhenRebuilt:
    def __reduce__(self):
        return _break, ()


def _break():
    raise RuntimeError("rebuilding fails")


class NeedsTwoArgumentsError(Exception):
    """Pickles, but cannot be rebuilt: the classic mistake."""

    def __init__(self, a, b):
        super().__init__(f"{a} and {b}")


def return_unpicklable():
    return PicklesNowhere()


def return_broken():
    return BreaksWhenRebuilt()


def raise_unrebuildable():
    raise NeedsTwoArgumentsError(1, 2)


def raise_with_unpicklable_inside():
    raise ValueError(PicklesNowhere())


def gadget(value):
    return Gadget(value)


def exit_with(code):
    sys.exit(code)


def os_exit(code):
    os._exit(code)


def interrupt():
    raise KeyboardInterrupt


def kill_self(signum=signal.SIGKILL):
    os.kill(os.getpid(), signum)
    time.sleep(30)


def close_standard_streams():
    sys.stdin.close()
    sys.stdout.close()
    for fd in (0, 1):
        with contextlib.suppress(OSError):
            os.close(fd)
    return "closed"


def print_something():
    print("still here")
    sys.stdout.flush()
    return "printed"


def close_every_descriptor():
    os.closerange(3, 4096)
    return "unreachable"


def fork_and_both_return():
    return "child" if os.fork() == 0 else "parent"


def daemonise(path):
    """End the worker's process in the manner of daemons; the copy goes on for a long time."""
    if os.fork() != 0:
        os._exit(0)
    os.setsid()
    if os.fork() != 0:
        os._exit(0)
    note = Path(f"{path}.new")
    note.write_text(str(os.getpid()))
    note.rename(path)  # whole, or not there: it may be killed at any moment
    time.sleep(120)


def start_children(path, seconds=0.0):
    """Start a child in the same group, one in a session of its own and a daemon; write their pids; sleep."""
    command = [sys.executable, "-c", "import time; time.sleep(120)"]
    plain = subprocess.Popen(command)
    apart = subprocess.Popen(command, start_new_session=True)
    read, write = os.pipe()
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            os.write(write, str(os.getpid()).encode())
            time.sleep(120)
        os._exit(0)
    daemon = int(os.read(read, 32))
    Path(path + ".part").write_text(f"{plain.pid} {apart.pid} {daemon}")
    Path(path + ".part").rename(path)
    time.sleep(seconds)
    return plain.pid, apart.pid, daemon


def allocate(megabytes):
    block = bytearray(megabytes * 1024 * 1024)
    block[::4096] = b"x" * len(block[::4096])
    return len(block)


def cap_address_space(further):
    """Let this process grow by so many bytes and no more."""
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + further, resource.RLIM_INFINITY))


def break_the_worker():
    outcome.pack_value = outcome.pack_error = None


def take_signals(path):
    """Ignore the signals that limits and terminations use, then sleep."""
    for signum in (signal.SIGUSR1, signal.SIGTERM):
        signal.signal(signum, signal.SIG_IGN)
    Path(path).write_text("ignored")
    return "ignored"


initialised = {}


def remember(value):
    initialised["value"] = value


def recall(_=None):
    return initialised.get("value")


def broken_initializer():
    raise RuntimeError("the initializer cannot work")


def die_in_initializer():
    os._exit(7)


def note_exit(pid, exitcode):
    with Path(os.environ["SLOTLINE_TEST_EXITS"]).open("a") as file:
        file.write(f"{pid} {exitcode}\n")


def nested_stdlib_process():
    import multiprocessing

    process = multiprocessing.get_context("fork").Process(target=print_something)
    process.start()
    process.join()
    return process.exitcode


class TellsWhoRebuildsIt:
    """Remembers the thread that rebuilds it, and can be told to interrupt that thread."""

    def __init__(self, interrupt=False):
        self.interrupt = interrupt

    def __setstate__(self, state):
        self.__dict__.update(state)
        self.thread = threading.current_thread()
        if self.interrupt:
            raise KeyboardInterrupt


def result_that_tells(*, interrupt=False, seconds=0):
    time.sleep(seconds)
    return TellsWhoRebuildsIt(interrupt)
