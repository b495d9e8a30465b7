"""A program that owns an executor; the tests kill it in every way. Run as ``billiard_owner.py MODE DIRECTORY``."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path

from slotline.workers import BilliardExecutor
from tests.integration import billiard_tasks as tasks


def report(directory, executor, extra=()):
    launcher = executor._supervisor().crew.process.pid
    pids = [os.getpid(), launcher, *executor.worker_pids(), *extra]
    (directory / "pids.part").write_text(" ".join(map(str, pids)))
    (directory / "pids.part").rename(directory / "pids")


def busy(directory, executor):
    executor.submit(tasks.start_children, str(directory / "children"), 120)
    while not (directory / "children").exists():
        time.sleep(0.01)
    report(directory, executor, map(int, (directory / "children").read_text().split()))


def main():
    mode, directory = sys.argv[1], Path(sys.argv[2])
    if mode == "thread":
        # The executor is made in a thread that ends; the workers must outlive it.
        holder = []
        thread = threading.Thread(target=lambda: holder.append(BilliardExecutor(2)))
        thread.start()
        thread.join()
        executor = holder[0]
        first = executor.submit(tasks.pid).result(60)
        time.sleep(0.5)
        assert first in executor.worker_pids()
        busy(directory, executor)
        time.sleep(120)
    executor = BilliardExecutor(2)
    if mode == "busy":
        busy(directory, executor)
        time.sleep(120)
    elif mode == "forked":
        # A fork holds copies of every descriptor and lives on for a while.
        executor.submit(tasks.pid).result(60)
        if os.fork() == 0:
            time.sleep(6)
            os._exit(0)
        busy(directory, executor)
        time.sleep(120)
    elif mode == "starting":
        (directory / "pids").write_text(f"{os.getpid()} {executor._supervisor().crew.process.pid}")
        time.sleep(120)
    elif mode == "exit":
        # No shutdown: the interpreter's exit finishes the work.
        executor.apply_async(tasks.touch_and_sleep, (str(directory / "done"), 0.3))
        report(directory, executor)
    elif mode == "raise":
        executor.submit(tasks.touch_and_sleep, str(directory / "done"), 0.3)
        report(directory, executor)
        raise SystemExit(3)
    elif mode == "sigterm":
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
        report(directory, executor)
        time.sleep(120)


if __name__ == "__main__":
    main()
