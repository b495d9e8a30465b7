"""What is left after many leases: nothing, by count."""

from __future__ import annotations

import asyncio
import os
import time

import pytest

from slotline.errors import LeaseError
from slotline.leases import LeasedExecutorManager, WorkGrinder
from tests.harness.leaks import measure
from tests.harness.waiting import await_until
from tests.integration.billiard_tasks import square


def held():
    """Return how many descriptors and threads this process has, and what is in /dev/shm but for semaphores."""
    now = measure()
    return now.fds, now.threads, {name for name in now.shm if not name.startswith("sem.")}


@pytest.mark.parametrize("backend", ["thread", "process", "billiard"])
async def test_a_thousand_leases_leave_no_thread_no_descriptor_and_no_shared_memory(backend):
    async def life(count):
        options = {"backend": backend, "max_pools": 2, "workers_per_pool": 1, "lease_grace_seconds": 0}
        async with LeasedExecutorManager(**options) as manager:
            for number in range(count):
                async with await manager.acquire(owner=f"caller:{number}") as lease:
                    assert await lease.run(square, number) == number * number
                    if number % 250 == 100:
                        running = lease.executor.submit(time.sleep, 0.5 if backend == "thread" else 600)
                        await await_until("it runs", running.running)
                        await lease.revoke()
                    elif number % 100 == 50 and backend != "thread":
                        with pytest.raises(Exception, match="lost"):
                            await lease.run(os._exit, 1)
                    elif number % 100 == 70:
                        with pytest.raises(LeaseError):
                            lease.executor.shutdown()
            manager.notify_scale_changed()
            async with WorkGrinder(executor_manager=manager, batch_size_threshold=10) as grinder:
                await asyncio.gather(*(grinder.submit(square, number) for number in range(100)))

    await life(110)  # what libraries keep for good is there now
    fds, threads, segments = held()
    await life(1000)

    def as_before():
        now = held()
        return now[0] <= fds and now[1] <= threads and now[2] <= segments

    await await_until(f"all is as before: {fds} descriptors, {threads} threads, {segments}", as_before, timeout=20)
