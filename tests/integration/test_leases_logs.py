"""Log records of worker processes on their way to their owner."""

from __future__ import annotations

import logging
import logging.handlers
import os

import pytest

from slotline.leases import LeasedExecutorManager, ProcessLoggingConfig
from tests.harness.waiting import await_until


def processes(**options):
    return LeasedExecutorManager(
        **{"backend": "process", "max_pools": 1, "workers_per_pool": 1, "lease_grace_seconds": 0, **options}
    )


def log_and_return(level, text, **extra):
    logging.getLogger("worker.code").log(level, text, extra=extra)
    return os.getpid()


def log_a_failure():
    try:
        divmod(1, 0)
    except ZeroDivisionError:
        logging.getLogger("worker.code").exception("it failed")


async def test_records_of_workers_reach_the_logger_of_their_own_name(caplog):
    caplog.set_level(logging.DEBUG)
    async with processes(forward_process_logs=True, process_log_level="INFO") as manager:
        lease = await manager.acquire()
        pid = await lease.run(log_and_return, logging.INFO, "from afar %s")
        await lease.run(log_and_return, logging.DEBUG, "too quiet")
        await lease.run(log_a_failure)
        await await_until("all came", lambda: "it failed" in caplog.text)
    (record,) = [record for record in caplog.records if "from afar" in record.getMessage()]
    assert (record.name, record.levelname, record.process) == ("worker.code", "INFO", pid)
    assert "too quiet" not in caplog.text
    assert "ZeroDivisionError" in caplog.text


async def test_records_of_workers_reach_the_target_logger_with_their_extras(caplog):
    config = ProcessLoggingConfig(enabled=True, level=logging.DEBUG, target_logger=logging.getLogger("my.workers"))
    logging.getLogger("my.workers").setLevel(logging.INFO)
    async with processes(process_logging=config) as manager, await manager.acquire() as lease:
        await lease.run(log_and_return, logging.DEBUG, "below the target's level")
        await lease.run(log_and_return, logging.WARNING, "with extras", colour="red")
        await await_until("it came", lambda: "with extras" in caplog.text)
    (record,) = [record for record in caplog.records if record.getMessage() == "with extras"]
    assert record.colour == "red"
    assert "below" not in caplog.text


async def test_a_record_that_is_too_large_is_cut_and_not_lost(caplog):
    async with processes(forward_process_logs=True) as manager, await manager.acquire() as lease:
        await lease.run(log_and_return, logging.WARNING, "long " + "x" * 2_000_000)
        await await_until("it came", lambda: "the record was too large" in caplog.text)


async def test_the_last_records_are_in_when_the_manager_has_stopped(caplog):
    async with processes(forward_process_logs=True) as manager, await manager.acquire() as lease:
        for number in range(200):
            lease.executor.submit(log_and_return, logging.WARNING, f"record {number}.")
    assert all(f"record {number}." in caplog.text for number in range(200))


async def test_killing_a_worker_while_it_logs_leaves_forwarding_in_order(caplog):
    async with processes(forward_process_logs=True, workers_per_pool=2) as manager:
        lease = await manager.acquire()
        futures = [lease.executor.submit(log_and_return, logging.WARNING, "y" * 50_000) for _ in range(200)]
        futures[0].result(30)
        await lease.revoke()
        async with await manager.acquire() as second:
            await second.run(log_and_return, logging.WARNING, "still here")
            await await_until("it came", lambda: "still here" in caplog.text)


async def test_nothing_is_forwarded_unless_that_is_asked_for(caplog):
    for options in ({}, {"process_logging": ProcessLoggingConfig(level="DEBUG")}):
        async with processes(**options) as manager, await manager.acquire() as lease:
            await lease.run(log_and_return, logging.CRITICAL, "unheard")
    assert "unheard" not in caplog.text


async def test_the_short_form_names_a_target_logger_too():
    target, arrived = logging.getLogger("apart"), logging.handlers.BufferingHandler(100)
    target.addHandler(arrived)
    options = {"forward_process_logs": True, "process_log_target_logger": target, "process_log_level": logging.WARNING}
    async with processes(**options) as manager, await manager.acquire() as lease:
        await lease.run(log_and_return, logging.INFO, "too quiet")
        await lease.run(log_and_return, logging.WARNING, "loud enough")
    target.removeHandler(arrived)
    assert [record.getMessage() for record in arrived.buffer] == ["loud enough"]


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
@pytest.mark.parametrize("form", ["short", "config"])
@pytest.mark.parametrize("clear", [True, False])
async def test_handlers_that_a_fork_has_copied_are_removed_unless_that_is_not_wanted(form, clear, tmp_path):
    if form == "short":
        options = {"forward_process_logs": True, "clear_process_log_handlers": clear}
    else:
        options = {"process_logging": ProcessLoggingConfig(enabled=True, clear_child_handlers=clear)}
    handler = logging.FileHandler(tmp_path / "log")
    logging.getLogger().addHandler(handler)
    try:
        async with processes(**options, mp_context="fork") as manager, await manager.acquire() as lease:
            await lease.run(log_and_return, logging.WARNING, "once or twice")
    finally:
        logging.getLogger().removeHandler(handler)
        handler.close()
    assert (tmp_path / "log").read_text().count("once or twice") == (1 if clear else 2)
