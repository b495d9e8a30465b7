"""What ran when: a history that a killed task leaves half-written, and what it says of a limit."""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

from tests.integration.celery_apps import Deployment

SOURCE = """
def trace(task, seconds):
    client = history()
    for kind, pause in (("start", seconds), ("end", 0)):
        at = "{}.{:06}".format(*client.time())
        client.rpush("celery-test:history", f"{kind} {task.request.id} {os.getpid()} {at}")
        time.sleep(pause)


@app.task(shared=False, name="app.traced", pool="traced", pool_size=2, bind=True, acks_late=True)
def traced(self, seconds):
    trace(self, seconds)


@app.task(shared=False, name="app.passing", bind=True, acks_late=True)
def passing(self, seconds):
    trace(self, seconds)
"""


class Run(NamedTuple):
    """One run of a task; ``end`` is the moment of the kill for one that was killed."""

    id: str
    pid: int
    start: float
    end: float


def now(made: Deployment) -> float:
    """Return the time of the history's clock."""
    seconds, microseconds = made.history.time()  # type: ignore[misc] # redis-py types both faces as one
    return float(seconds + microseconds / 1e6)


def runs(made: Deployment, killed: dict[int, float]) -> list[Run]:
    """Return every run, in the order of their starts.

    Args:
        made: Whose history.
        killed: When which processes were killed.
    """
    begun: dict[tuple[str, int], float] = {}
    ended: list[Run] = []
    for line in made.list("history"):
        kind, task, pid, at = line.split()
        if kind == "start":
            begun[task, int(pid)] = float(at)
        else:
            ended.append(Run(task, int(pid), begun.pop((task, int(pid))), float(at)))
    ended += [Run(task, pid, start, killed[pid]) for (task, pid), start in begun.items()]
    return sorted(ended, key=lambda run: run.start)


def most_at_once(found: list[Run]) -> int:
    """Return how many runs there were at the same moment at the most."""
    moments = sorted([(run.start, 1) for run in found] + [(run.end, -1) for run in found])
    live = most = 0
    for _, change in moments:
        live += change
        most = max(most, live)
    return most


def times_run(found: list[Run]) -> Counter[str]:
    """Return how often each task ran."""
    return Counter(run.id for run in found)
