"""Worker processes of the queues: started with the frameworks' own commands, watched, killed, and always ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal, Self, TypedDict, TypeVar, Unpack

import psutil

from tests.harness import guardian
from tests.harness.waiting import wait_until

ROOT = Path(__file__).resolve().parents[2]
_MARK = "TEST_WORKER_OF_SLOTLINE"  # SLOTLINE_* are settings, and an unknown one is refused

started: list[Worker] = []
"""Every worker that the running test started, for the report of a failure."""


def in_worker() -> bool:
    """Tell whether this process is a worker that a test has started, or one of its children."""
    return _MARK in os.environ


def parent_worker(pid: int) -> int | None:
    """Return the parent of ``pid`` if that is a process of a worker that a test has started."""
    try:
        parent = psutil.Process(pid).parent()
        return parent.pid if parent is not None and _MARK in parent.environ() else None
    except psutil.Error:
        return None


class WorkerOptions(TypedDict, total=False):
    """The options that every kind of worker takes; see :class:`Worker`."""

    args: Sequence[str]
    env: Mapping[str, str] | None
    ready_timeout: float
    python: Path | None


class Worker(ABC):
    """A worker and all its child processes; use it as a context manager.

    Args:
        app: The module of the application, as the framework's command takes it (``"module:broker"`` for Taskiq,
            ``"module"`` or ``"module:app"`` for Celery).
        directory: Where the worker runs, where its log is written, and a place its modules are imported from.
        args: Further arguments of the command.
        env: Further environment variables.
        ready_timeout: Seconds until a worker that does not get ready is a failure.
        python: An interpreter that has everything installed; by default this one, which finds this source tree.
    """

    kind: str

    def __init__(
        self,
        app: str,
        directory: Path,
        *,
        args: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        ready_timeout: float = 60,
        python: Path | None = None,
    ) -> None:
        self.python = python
        self.app, self.directory, self.args = app, directory, tuple(args)
        self.env = dict(env or {})
        self.ready_timeout = ready_timeout
        self.name = f"{self.kind}-{uuid.uuid4().hex[:8]}"
        self.log_path = directory / f"{self.name}.log"
        self._process: subprocess.Popen[bytes] | None = None

    @abstractmethod
    def command(self) -> list[str]:
        """Return the command line."""

    @abstractmethod
    def ready(self) -> bool:
        """Tell from the log whether the worker takes messages."""

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def start(self, *, wait: bool = True) -> None:
        """Start the worker and wait until it takes messages."""
        assert self._process is None, "the worker was started before; make a new one"
        started.append(self)
        env = {**os.environ, "PYTHONPATH": self._path(), "PYTHONUNBUFFERED": "1", **self.env, _MARK: self.name}
        env.pop("PYTHONWARNINGS", None)  # the frameworks warn
        with self.log_path.open("wb") as log:
            self._process = subprocess.Popen(
                self.command(),
                cwd=self.directory,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        guardian.guard(self._process.pid)
        if wait:
            self.wait_ready()

    def wait_ready(self) -> None:
        """Wait until the worker takes messages; a worker that ends or does not get there fails with its log."""
        try:
            wait_until(f"{self.name} is ready", lambda: not self.alive or self.ready(), self.ready_timeout, 0.05)
            assert self.alive, f"{self.name} ended with {self.returncode} before it was ready"
        except AssertionError as failure:
            self.close()
            raise AssertionError(f"{failure}\n--- log of {self.name} ---\n{self.log}") from None

    @property
    def pid(self) -> int:
        """The pid of the main process."""
        assert self._process is not None, "the worker was not started"
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether the main process lives."""
        return self._process is not None and self._process.poll() is None

    @property
    def returncode(self) -> int | None:
        """The main process's exit status; ``None`` while it lives."""
        return self._process.poll() if self._process is not None else None

    @property
    def log(self) -> str:
        """What the worker and its children have printed so far."""
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

    def wait_log(self, text: str, timeout: float = 20) -> None:
        """Wait until the log contains ``text``."""
        wait_until(f"{self.name} logs {text!r}", lambda: text in self.log, timeout, 0.05)

    def children(self) -> list[int]:
        """Return the pids of the processes that run tasks, oldest first; none in pools that use threads."""
        try:
            direct = psutil.Process(self.pid).children()
            living = [child for child in direct if child.status() != psutil.STATUS_ZOMBIE and _runs_tasks(child)]
            return [child.pid for child in sorted(living, key=lambda child: (child.create_time(), child.pid))]
        except psutil.NoSuchProcess:
            return []

    def processes(self) -> list[psutil.Process]:
        """Return every living process that came from this worker, whoever its parent is now."""
        if self._process is None:
            return []
        return [process for process in psutil.process_iter() if self._is_mine(process)]

    def terminate(self, timeout: float | None = 30) -> int | None:
        """Ask the worker to end in order (SIGTERM); wait for it unless ``timeout`` is ``None``."""
        assert self._process is not None, "the worker was not started"
        self._process.terminate()
        return None if timeout is None else self._process.wait(timeout)

    def kill(self) -> None:
        """End the main process at once (SIGKILL); its children are left to notice."""
        assert self._process is not None, "the worker was not started"
        self._process.kill()
        self._process.wait()

    def kill_all(self) -> None:
        """End every process of the worker at once (SIGKILL), as when its machine dies."""
        assert self._process is not None, "the worker was not started"
        os.kill(self.pid, signal.SIGSTOP)  # so that it cannot replace a child that ended before it
        self._end_all()

    def kill_child(self, pid: int | None = None, signum: int = signal.SIGKILL) -> int:
        """Kill one process that runs tasks (by default the oldest) and return its pid."""
        if pid is None:
            pid = wait_until(f"{self.name} has a child process", self.children)[0]
        os.kill(pid, signum)
        return pid

    def pause(self) -> None:
        """Stop every process of the worker (SIGSTOP), as a machine that hangs."""
        for process in self.processes():
            process.suspend()

    def resume(self) -> None:
        """Let a paused worker go on."""
        for process in self.processes():
            process.resume()

    def close(self) -> None:
        """End whatever is left of the worker; harmless when nothing is."""
        if self._process is None:
            return
        if self._process.poll() is None:
            os.kill(self.pid, signal.SIGSTOP)
        self._end_all()
        guardian.release(self.pid)

    def _path(self) -> str:
        if self.python is not None:
            return str(self.directory)
        inherited = os.environ.get("PYTHONPATH")
        places = [str(self.directory), str(ROOT / "shared"), str(ROOT), *([inherited] if inherited else [])]
        return os.pathsep.join(places)

    def _end_all(self) -> None:
        assert self._process is not None
        deadline = time.monotonic() + 20
        while left := self.processes():
            assert time.monotonic() < deadline, f"{self.name} cannot be ended: {left}"
            for process in left:
                try:
                    process.kill()
                except psutil.NoSuchProcess:
                    continue
            self._process.poll()
            time.sleep(0.01)
        self._process.wait(10)

    def _is_mine(self, process: psutil.Process) -> bool:
        try:
            if process.status() == psutil.STATUS_ZOMBIE:
                return False
            # A daemonised grandchild may have left the session; the environment it was born with stays with it.
            return os.getsid(process.pid) == self.pid or process.environ().get(_MARK) == self.name
        except (OSError, psutil.Error):
            return False


W = TypeVar("W", bound=Worker)


def all_ready(starting: Iterable[W]) -> list[W]:
    """Wait for workers that start at the same time, each of them started with ``wait=False``; return them."""
    workers = list(starting)
    for worker in workers:
        worker.wait_ready()
    return workers


class TaskiqWorker(Worker):
    """``taskiq worker APP --workers N``.

    Args:
        app: ``"module:broker"``; the module is one of the task modules, too.
        directory: See :class:`Worker`.
        workers: How many worker processes.
        **options: See :class:`Worker`.
    """

    kind = "taskiq"

    def __init__(
        self,
        app: str,
        directory: Path,
        *,
        workers: int = 1,
        **options: Unpack[WorkerOptions],
    ) -> None:
        super().__init__(app, directory, **options)
        self.workers = workers

    def command(self) -> list[str]:
        python = str(self.python or sys.executable)
        return [python, "-m", "taskiq", "worker", self.app, "--workers", str(self.workers), *self.args]

    def ready(self) -> bool:
        return self.log.count("Listening started.") >= self.workers


class TaskiqScheduler(Worker):
    """``taskiq scheduler APP``, which looks for new schedules every second."""

    kind = "taskiq-scheduler"

    def command(self) -> list[str]:
        python = str(self.python or sys.executable)
        return [python, "-m", "taskiq", "scheduler", self.app, "--update-interval", "1", *self.args]

    def ready(self) -> bool:
        return "Startup completed." in self.log


class CeleryWorker(Worker):
    """``celery -A APP worker``, without the second in which it looks for others when it starts.

    Args:
        app: ``"module"`` or ``"module:app"``.
        directory: See :class:`Worker`.
        pool: The kind of pool.
        concurrency: How many processes, threads or greenlets.
        queues: The queues to serve; by default the application's.
        loglevel: The worker's log level; ``INFO`` or finer, since readiness is read from the log.
        **options: See :class:`Worker`.
    """

    kind = "celery"

    def __init__(
        self,
        app: str,
        directory: Path,
        *,
        pool: Literal["prefork", "threads", "solo", "gevent"] = "prefork",
        concurrency: int = 2,
        queues: Sequence[str] = (),
        loglevel: Literal["INFO", "DEBUG"] = "INFO",
        **options: Unpack[WorkerOptions],
    ) -> None:
        super().__init__(app, directory, **options)
        _let_go_of_results()
        _take_what_has_arrived()
        self.pool, self.concurrency, self.queues, self.loglevel = pool, concurrency, tuple(queues), loglevel

    @property
    def nodename(self) -> str:
        """The worker's name for ``inspect`` and ``control``."""
        return f"{self.name}@localhost"

    def command(self) -> list[str]:
        python = str(self.python or sys.executable)
        queues = ["-Q", ",".join(self.queues)] if self.queues else []
        return [
            python, "-m", "celery", "-A", self.app, "worker", "-P", self.pool, "-c", str(self.concurrency),
            "-n", self.nodename, "-l", self.loglevel, "--without-gossip", "--without-mingle", *queues, *self.args,
        ]  # fmt: skip

    def ready(self) -> bool:
        return f"{self.nodename} ready." in self.log


def _let_go_of_results() -> None:
    """Keep results that are collected as garbage from looking for their server.

    A failed test's traceback keeps its results alive beyond its Redis. Each then tries to reach it for 20 seconds, in
    ``__del__``, where neither an error nor the time limit of a test is heard.
    """
    from celery.result import AsyncResult

    AsyncResult.__del__ = lambda _self: None


@cache
def _take_what_has_arrived() -> None:
    """Keep Celery 5.4 from waiting up to a second for a result that came while it waited for another one."""
    from celery.backends.asynchronous import Drainer

    drain = Drainer.drain_events_until

    def drain_events_until(self: Any, promise: Any, *args: Any, **options: Any) -> Iterator[Any]:
        if not promise.ready:
            yield from drain(self, promise, *args, **options)

    Drainer.drain_events_until = drain_events_until


def _runs_tasks(process: psutil.Process) -> bool:
    """Tell a pool process from the helpers that multiprocessing and billiard start beside them."""
    command = " ".join(process.cmdline())
    return "resource_tracker" not in command and "semaphore_tracker" not in command
