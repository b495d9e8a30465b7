"""A process that calls a cache many times at once; tests start several and look at what their creators noted.

Run as ``python -m tests.integration.cache_process``, with a JSON object of options as its only argument. It prints
``ready`` when it could begin, begins at the first line on its standard input, and prints its outcome as JSON.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, NamedTuple

from slotline.caches import RedisCacheAdapter
from slotline.stores import RedisStore
from tests.harness import guardian
from tests.harness.waiting import await_until, wait_until

ROOT = Path(__file__).resolve().parents[2]


class Run(NamedTuple):
    """One run of a creator: for what, who, and from when to when (``None``: it never ended)."""

    key: str
    pid: int
    began: float
    ended: float | None


class CacheProcess:
    """One such process; use it as a context manager.

    Args:
        url: The Redis.
        log: The file in which creators note their runs.
        options: ``callers`` (1), ``work`` (seconds, 0.5), ``fails`` (False), ``face`` ("async"), ``key`` ("k"),
            ``leave`` (seconds after which its loop ends), ``rounds`` and ``from`` (as many keys, one a second, from
            that moment of the monotonic clock), ``cancelled`` (so many callers of each round, at random),
            ``needs`` (another key, for which its creator asks as soon as two runs have begun),
            ``store`` and ``cache`` (their options).
    """

    def __init__(self, url: str, log: Path, **options: Any) -> None:
        self.arguments = json.dumps({"url": url, "log": str(log), **options})
        self.process: subprocess.Popen[str] | None = None

    def __enter__(self):
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.integration.cache_process", self.arguments],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": f"{ROOT / 'shared'}{os.pathsep}{ROOT}"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        guardian.guard(self.process.pid)
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "ready\n"
        return self

    def __exit__(self, *exc_info: object) -> None:
        assert self.process is not None
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()
        guardian.release(self.process.pid)

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def begin(self) -> None:
        """Let it call."""
        assert self.process is not None
        assert self.process.stdin is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()

    def outcome(self, timeout: float = 60) -> dict[str, Any]:
        """Return ``values``, ``errors`` (texts), ``cancelled``, ``seconds``, ``stats``, ``log`` (lines)."""
        assert self.process is not None
        out, _ = self.process.communicate(timeout=timeout)
        assert self.process.returncode == 0, out
        lines = out.strip().splitlines()
        (told,) = [line for line in lines if line.startswith('{"')]  # what threads say as the process ends comes later
        return {**json.loads(told), "log": [line for line in lines if line != told]}


def runs(log: Path) -> list[Run]:
    """Return the runs noted so far, in the order of their beginnings."""
    found: dict[str, Run] = {}
    for line in log.read_text().splitlines() if log.exists() else []:
        what, name, pid, moment = line.split()
        if what == "began":
            found[name] = Run(name.rsplit("-", 2)[0], int(pid), float(moment), None)
        else:
            found[name] = found[name]._replace(ended=float(moment))
    return sorted(found.values(), key=lambda run: run.began)


def wait_for_run(log: Path, count: int = 1) -> Run:
    """Wait until the creator has begun for the ``count``-th time."""
    return wait_until(f"{count} run(s) have begun", lambda: len(runs(log)) >= count and runs(log)[count - 1])


def most_at_once(found: list[Run], died: dict[int, float] | None = None) -> int:
    """Return how many runs were alive at one instant at the most; ``died`` says when processes were killed."""
    ends = [run.ended or (died or {}).get(run.pid, float("inf")) for run in found]
    return max(
        (
            sum(run.began <= moment < end for run, end in zip(found, ends, strict=True))
            for moment in (r.began for r in found)
        ),
        default=0,
    )


def _note(log: str, what: str, name: str) -> None:
    descriptor = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(descriptor, f"{what} {name} {os.getpid()} {time.monotonic()}\n".encode())
    os.close(descriptor)


class _Calls:
    def __init__(self, options: dict[str, Any], cache: RedisCacheAdapter) -> None:
        self.options = options
        self.cache = cache
        self.values: list[Any] = []
        self.errors: list[str] = []
        self.cancelled = 0

    def _begin(self) -> str:
        name = f"{self.options.get('key', 'k')}-{os.getpid()}-{time.monotonic_ns()}"
        _note(self.options["log"], "began", name)
        return name

    def _end(self, name: str) -> str:
        _note(self.options["log"], "ended", name)
        if self.options.get("fails"):
            raise ValueError(f"failed in {os.getpid()}")
        return f"made by {os.getpid()}"

    async def create(self) -> str:
        name = self._begin()
        await asyncio.sleep(self.options.get("work", 0.5))
        if "needs" in self.options:
            await await_until("two have begun", lambda: len(runs(Path(self.options["log"]))) >= 2)
            await self.cache.get_or_create(self.options["needs"], lambda: "not made by its own creator")
        return self._end(name)

    def create_blocking(self) -> str:
        name = self._begin()
        time.sleep(self.options.get("work", 0.5))
        return self._end(name)

    async def run_rounds(self, cache: RedisCacheAdapter) -> None:
        """Call for another key every second, as every other process does at the same moment."""
        for number in range(self.options["rounds"]):
            await asyncio.sleep(max(0.0, self.options["from"] + number - time.monotonic()))
            self.options["key"] = f"k{number}"
            callers = range(self.options.get("callers", 1))
            jobs = [asyncio.create_task(cache.get_or_create(f"k{number}", self.create)) for _ in callers]
            for job in random.sample(jobs, self.options.get("cancelled", 0)):
                asyncio.get_running_loop().call_later(random.uniform(0, 0.4), job.cancel)
            for outcome in await asyncio.gather(*jobs, return_exceptions=True):
                self._take(outcome)
        await cache.store.close()

    async def run_async(self, cache: RedisCacheAdapter) -> None:
        key, count = self.options.get("key", "k"), self.options.get("callers", 1)
        callers = [asyncio.create_task(cache.get_or_create(key, self.create)) for _ in range(count)]
        if "leave" in self.options:
            await asyncio.sleep(self.options["leave"])
            return
        for outcome in await asyncio.gather(*callers, return_exceptions=True):
            self._take(outcome)
        await cache.store.close()

    def run_blocking(self, cache: RedisCacheAdapter) -> None:
        def call() -> None:
            try:
                self._take(cache.sync.get_or_create(self.options.get("key", "k"), self.create_blocking))
            except Exception as error:
                self._take(error)

        threads = [threading.Thread(target=call) for _ in range(self.options.get("callers", 1))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        cache.store.sync.close()

    def _take(self, outcome: Any) -> None:
        if isinstance(outcome, asyncio.CancelledError):
            self.cancelled += 1
        elif isinstance(outcome, BaseException):
            self.errors.append(f"{type(outcome).__name__}: {outcome}")
        else:
            self.values.append(outcome)


def main() -> None:
    options = json.loads(sys.argv[1])
    store = RedisStore(options["url"], **options.get("store", {}))
    cache = RedisCacheAdapter(store=store, **options.get("cache", {}))
    calls = _Calls(options, cache)
    print("ready", flush=True)
    sys.stdin.readline()
    began = time.monotonic()
    if "rounds" in options:
        asyncio.run(calls.run_rounds(cache))
    elif options.get("face", "async") == "async":
        asyncio.run(calls.run_async(cache))
    else:
        calls.run_blocking(cache)
    if "leave" in options:
        store.sync.close()
    seconds = time.monotonic() - began
    outcome = {"values": calls.values, "errors": calls.errors, "cancelled": calls.cancelled}
    print(json.dumps({**outcome, "seconds": seconds, "stats": cache.get_stats()}))


if __name__ == "__main__":
    main()
