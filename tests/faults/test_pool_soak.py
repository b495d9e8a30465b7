"""A long random run of processes that hold, wait, park and take; the limit is never exceeded, and nothing is lost.

They are killed and replaced, their connections are cut and stalled, the server stands still, for longer than the lease
at times, and their clocks are ten minutes apart.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
import redis

from slotline import Pool, RedisStore
from tests.faults.pool_history import PoolHistory
from tests.harness.proxy import TcpProxy
from tests.harness.redis_server import RedisServer
from tests.harness.waiting import wait_until

SIZE, LEASE, PROCESSES = 3, 1.5, 4
CLOCKS = (-600, 0, 600)
"""By how many seconds a process's clock is wrong."""
WORKER = Path(__file__).with_name("pool_soak_worker.py")


def start(url: str, name: str, history: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, WORKER, url, str(SIZE), str(LEASE), name, str(random.choice(CLOCKS)), history],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "ready\n"
    return process


def kill(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()
    process.stdin.close()
    process.stdout.close()


class Run:
    """The processes, the way to their server, and what befalls them.

    Args:
        server: Where the pool is.
        proxy: The way there.
        beside: The URL of a server that nothing befalls, for the history.
    """

    def __init__(self, server: RedisServer, proxy: TcpProxy, beside: str) -> None:
        self.server, self.proxy, self.beside = server, proxy, beside
        self.client = redis.Redis.from_url(beside)
        self.history = PoolHistory(self.client)
        self.processes: dict[str, subprocess.Popen[str]] = {}
        self.begun = self.faults = 0
        for _ in range(PROCESSES):
            self.add()

    def add(self) -> None:
        name = f"w{self.begun}"
        self.begun += 1
        self.processes[name] = start(self.proxy.redis_url, name, self.beside)

    def kill_one(self) -> None:
        name = random.choice(sorted(self.processes))
        kill(self.processes.pop(name))
        self.history.gone(name)
        self.add()

    def cut(self) -> None:
        self.proxy.cut()

    def stall(self) -> None:
        self.proxy.stall()
        time.sleep(random.uniform(0.1, 1.5 * LEASE))
        self.proxy.resume()

    def stand_still(self) -> None:
        self.server.pause()
        time.sleep(random.uniform(0.1, 1.5 * LEASE))
        self.server.resume()

    def go_on_for(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            time.sleep(random.uniform(0.1, 1.0))
            random.choice([self.kill_one, self.kill_one, self.cut, self.stall, self.stand_still])()
            self.faults += 1

    def drain(self) -> None:
        self.client.set("drain", 1, ex=3600)
        store = RedisStore(self.server.url)
        pool = Pool("soak", SIZE, store=store)
        with self.server.client() as client:
            state = "slotline:{pool:soak}:state"
            wait_until(
                "everything parked is worked off",
                lambda: not any(field.startswith(b"m:") for field in client.hkeys(state)),
                timeout=60,
            )
        self.end()
        wait_until("no slot is left", lambda: pool.sync.size() == 0, timeout=4 * LEASE)
        store.sync.close()

    def end(self) -> None:
        while self.processes:
            kill(self.processes.popitem()[1])

    def check(self) -> None:
        """Nobody was inside beyond the limit, fences are unique, no message was lost, and few have run again."""
        peak, ran, sent = self.history.most_inside(), self.history.runs(), self.client.smembers("sent")
        never = {message for message in sent if message not in ran}
        print(f"{self.faults} faults, peak {peak} of {SIZE}, {len(sent)} messages, {len(never)} of them never ran")
        assert peak == SIZE
        # A process that died between saying "sent" and parking has parked nothing: at most one a thread.
        assert len(never) <= 3 * self.begun
        # At a fault, each thread has at most one message of which nobody knows whether it has run.
        assert sum(times - 1 for times in ran.values()) <= 3 * PROCESSES * self.faults


def run(server: RedisServer, beside: str, seconds: float) -> None:
    with TcpProxy(server.port) as proxy:
        run = Run(server, proxy, beside)
        try:
            run.go_on_for(seconds)
            run.drain()
        finally:
            run.end()
        run.check()
        run.client.close()


def test_a_short_run_with_faults_keeps_the_limit_and_every_message(own_redis, redis_url):
    run(own_redis, redis_url, 6.0)


@pytest.mark.soak
def test_a_long_run_with_faults_keeps_the_limit_and_every_message(own_redis, redis_url):
    run(own_redis, redis_url, float(os.environ.get("SOAK_SECONDS", "60")))
