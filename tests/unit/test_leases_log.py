"""What a manager does is in the log, and its logger may be the user's own."""

from __future__ import annotations

import logging

from slotline.leases import LeasedExecutorManager
from tests.harness.waiting import wait_until


def test_the_given_logger_gets_the_lines(caplog):
    logger = logging.getLogger("my.app")
    with LeasedExecutorManager(max_pools=1, lease_grace_seconds=0, logger=logger) as manager:
        manager.sync.acquire(lease_seconds=0.01, owner="sleeper")
        wait_until("it was revoked", lambda: manager.leased_count == 0)
    assert any(record.name == "my.app" and "'sleeper'" in record.getMessage() for record in caplog.records)


def test_starts_stops_grants_and_releases_are_in_the_log(caplog):
    caplog.set_level(logging.DEBUG, "slotline.leases")
    with LeasedExecutorManager(max_pools=2, min_pools=2) as manager, manager.sync.acquire(owner="me", lease_seconds=7):
        pass
    for line in (
        "Started with 2 executors on the thread backend",
        "of 'me' was granted for 7 s",
        "of 'me' was released",
    ):
        assert line in caplog.text
    assert "Stopped" in caplog.text
