"""Runs every example, one after the other: limits, caching and leased executors in Taskiq and in Celery, no server.

Run it with ``make demo`` or ``python examples/demo.py``.
"""

import subprocess
import sys
import time
from pathlib import Path

SHOWS = {
    "taskiq_limits": "Taskiq: at most so many at once, the others wait their turn",
    "taskiq_cache": "Taskiq: a stampede runs the task once",
    "taskiq_executor": "Taskiq: blocking work in a bounded pool",
    "celery_limits": "Celery: a real worker under a limit, without blocking its processes",
    "celery_cache": "Celery: cached results in a real worker",
    "celery_executor": "Celery: a task that leases a pool of processes",
}


def main() -> int:
    here = Path(__file__).parent
    failed = []
    for name, title in SHOWS.items():
        print(f"\n== {title}  (examples/{name}.py)\n", flush=True)
        started = time.perf_counter()
        if subprocess.run([sys.executable, here / f"{name}.py"], check=False).returncode != 0:
            failed.append(name)
        print(f"\n   {time.perf_counter() - started:.1f} s", flush=True)
    if failed:
        print(f"\nFailed: {', '.join(failed)}", file=sys.stderr)
        return 1
    print("\nAll of it ran without a server. The README says how to add it to your own application.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
