"""A long run: processes that all want the same keys at the same moments, under every fault at once."""

from __future__ import annotations

import os
import random
import signal
import time
from contextlib import ExitStack

import pytest

from tests.harness.waiting import wait_until
from tests.integration.cache_process import CacheProcess, most_at_once, runs

PROCESSES, CALLERS, LEASE = 3, 100, 2.0
FAULTS = [*["kill", "cut", "pause", "cut"] * 3, "flush", "restart"]
WITHOUT = {"flush": LEASE, "restart": LEASE + 2.0}
"""For so long after a server has lost its data, whoever comes anew may find no claim, or do without the server."""


@pytest.mark.soak
def test_under_all_faults_there_is_one_run_for_each_key_at_any_instant(own_redis, tmp_path):
    seconds = max(15, int(os.environ.get("SOAK_SECONDS", "60")))
    log, seed = tmp_path / "runs.log", int(os.environ.get("SOAK_SEED", str(random.randrange(10**6))))
    chance = random.Random(seed)
    options = {"callers": CALLERS, "cancelled": 5, "work": 0.4, "rounds": seconds, "cache": {"lock_timeout": LEASE}}
    died: dict[int, float] = {}
    lost: list[tuple[float, float]] = []
    with ExitStack() as stack:
        began = time.monotonic() + 5

        def start():
            left = max(1, seconds - int(max(0.0, time.monotonic() + 2 - began)))
            begin = began + seconds - left
            process = stack.enter_context(
                CacheProcess(own_redis.url, log, **{**options, "rounds": left, "from": begin})
            )
            process.begin()
            return process

        living = [start() for _ in range(PROCESSES)]
        while time.monotonic() < began + seconds - 5:
            time.sleep(chance.uniform(0.3, 1.5))  # the faults come at any time
            fault = chance.choice(FAULTS)
            if fault == "kill":
                doomed = living.pop(chance.randrange(PROCESSES))
                os.kill(doomed.pid, signal.SIGKILL)
                died[doomed.pid] = time.monotonic()
                living.append(start())
            elif fault == "cut":
                with own_redis.client() as client:
                    client.execute_command(f"CLIENT KILL TYPE {chance.choice(['pubsub', 'normal'])} SKIPME yes")
            elif fault in {"flush", "restart"}:
                since = time.monotonic()
                if fault == "restart":
                    own_redis.restart(keep_data=False)
                else:
                    with own_redis.client() as client:
                        client.flushall()
                lost.append((since, time.monotonic() + WITHOUT[fault]))
            else:
                own_redis.pause()
                time.sleep(chance.uniform(0.05, LEASE / 4))
                own_redis.resume()
        for process in living:
            outcome = process.outcome(timeout=120)
            assert outcome["errors"] == [], f"seed {seed}"
            assert (len(outcome["values"]) + outcome["cancelled"]) % CALLERS == 0, f"seed {seed}"
    found = [run for run in runs(log) if not any(since <= run.began <= until for since, until in lost)]
    assert len(found) > seconds / 5
    overlapping = [
        key
        for key in {run.key for run in found}
        if most_at_once([run for run in found if run.key == key], died=died) > 1
    ]
    assert overlapping == [], f"seed {seed}"
    with own_redis.client() as client:
        wait_until(
            "claims and waiters have gone", lambda: not [key for key in client.scan_iter() if key[-2:] != b":v"], 15
        )
