"""A long random run: processes that hold, wait, park and take are killed and replaced; the limit is never exceeded."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from slotline import Pool, RedisStore
from tests.harness.waiting import wait_until

SIZE, LEASE, PROCESSES = 3, 1.0, 4
WORKER = Path(__file__).with_name("pool_soak_worker.py")


def start(url: str, name: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, WORKER, url, str(SIZE), str(LEASE), name],
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
    processes = {f"w{number}": start(server.url, f"w{number}") for number in range(PROCESSES)}
    started, count = time.monotonic(), PROCESSES
    try:
        while time.monotonic() - started < seconds:
            time.sleep(random.uniform(0.1, 1.0))
            name = random.choice(sorted(processes))
            kill(processes.pop(name))
            client.xadd("history", {"what": "killed", "fence": 0, "process": name, "message": ""})
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
    check(client)
    client.close()


def _parked(client) -> int:
    return sum(field.startswith(b"m:") for field in client.hkeys("slotline:{pool:soak}:state"))


def check(client) -> None:
    """Nobody was inside beyond the limit, fences are unique, and no message was lost or ran twice at a time."""
    inside: dict[bytes, bytes] = {}
    fences: set[bytes] = set()
    ran: dict[bytes, int] = {}
    peak = 0
    for _, entry in client.xrange("history"):
        what, fence = entry[b"what"], entry[b"fence"]
        if what == b"enter":
            assert fence not in fences, "a fence was given twice"
            fences.add(fence)
            inside[fence] = entry[b"process"]
            peak = max(peak, len(inside))
            assert len(inside) <= SIZE, f"{len(inside)} inside at once: {inside}"
            if entry[b"message"]:
                ran[entry[b"message"]] = ran.get(entry[b"message"], 0) + 1
        elif what == b"leave":
            inside.pop(fence, None)
        else:
            inside = {fence: process for fence, process in inside.items() if process != entry[b"process"]}
    sent = client.smembers("sent")
    never = {message for message in sent if message not in ran}
    print(f"{len(fences)} holds, peak {peak} of {SIZE}, {len(sent)} messages, {len(never)} of them never ran")
    assert peak == SIZE
    # A process that died between saying "sent" and parking has parked nothing: at most one a thread.
    assert len(never) <= 3 * sum(entry[b"what"] == b"killed" for _, entry in client.xrange("history")) + 3 * PROCESSES
    again = sum(times - 1 for times in ran.values())
    assert again <= 3 * sum(entry[b"what"] == b"killed" for _, entry in client.xrange("history"))


@pytest.mark.leaves("keys", reason="the history that the run is checked by")
def test_a_short_run_with_kills_keeps_the_limit_and_every_message(own_redis):
    run(own_redis, 6.0)


@pytest.mark.soak
@pytest.mark.leaves("keys", reason="the history that the run is checked by")
def test_a_long_run_with_kills_keeps_the_limit_and_every_message(own_redis):
    run(own_redis, float(os.environ.get("SOAK_SECONDS", "60")))
