"""A long random run: processes that hold, wait, park and take are killed and replaced; the limit is never exceeded.

Their clocks are ten minutes apart.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from slotline import Pool, RedisStore
from tests.faults.pool_history import PoolHistory
from tests.harness.waiting import wait_until

SIZE, LEASE, PROCESSES = 3, 1.0, 4
CLOCKS = (-600, 0, 600)
"""By how many seconds a process's clock is wrong."""
WORKER = Path(__file__).with_name("pool_soak_worker.py")


def start(url: str, name: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, WORKER, url, str(SIZE), str(LEASE), name, str(random.choice(CLOCKS))],
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


def run(server, seconds: float) -> None:
    client = server.client()
    history = PoolHistory(client)
    processes = {f"w{number}": start(server.url, f"w{number}") for number in range(PROCESSES)}
    started, count = time.monotonic(), PROCESSES
    try:
        while time.monotonic() - started < seconds:
            time.sleep(random.uniform(0.1, 1.0))
            name = random.choice(sorted(processes))
            kill(processes.pop(name))
            history.gone(name)
            processes[f"w{count}"] = start(server.url, f"w{count}")
            count += 1
        client.set("drain", 1, ex=3600)
        store = RedisStore(server.url)
        pool = Pool("soak", SIZE, store=store)
        wait_until("everything parked is worked off", lambda: _parked(client) == 0, timeout=60)
    finally:
        for process in processes.values():
            kill(process)
    wait_until("no slot is left", lambda: pool.sync.size() == 0, timeout=4 * LEASE)
    store.sync.close()
    check(history, client.smembers("sent"), killed=count - PROCESSES)
    client.close()


def _parked(client) -> int:
    return sum(field.startswith(b"m:") for field in client.hkeys("slotline:{pool:soak}:state"))


def check(history: PoolHistory, sent: set[bytes], killed: int) -> None:
    """Nobody was inside beyond the limit, fences are unique, and no message was lost or ran twice at a time."""
    peak, ran = history.most_inside(), history.runs()
    never = {message for message in sent if message not in ran}
    print(f"peak {peak} of {SIZE}, {len(sent)} messages, {len(never)} of them never ran")
    assert peak == SIZE
    # A process that died between saying "sent" and parking has parked nothing: at most one a thread.
    assert len(never) <= 3 * (killed + PROCESSES)
    assert sum(times - 1 for times in ran.values()) <= 3 * killed


def test_a_short_run_with_kills_keeps_the_limit_and_every_message(own_redis):
    run(own_redis, 6.0)


@pytest.mark.soak
def test_a_long_run_with_kills_keeps_the_limit_and_every_message(own_redis):
    run(own_redis, float(os.environ.get("SOAK_SECONDS", "60")))
