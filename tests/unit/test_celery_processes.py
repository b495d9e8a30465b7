"""A worker hands over no more tasks than its pool has processes, whatever the pool says of those that it replaces."""

from __future__ import annotations

import inspect
from itertools import count
from types import SimpleNamespace
from typing import Any

import pytest
from billiard import pool as billiard_pool
from kombu.asynchronous.semaphore import LaxBoundedSemaphore

from celery_ext.processes import Processes

PROCESSES = 2


class Job:
    _worker_lost: tuple[float, int] | None = None

    def __init__(self) -> None:
        self.ended = False

    def ready(self) -> bool:
        return self.ended


class Prefork:
    """A worker and its pool, which says that a process is free as billiard's does."""

    def __init__(self) -> None:
        self._cache: dict[int, Job] = {}
        self._processes = PROCESSES
        self.numbers = count()
        self.most = 0
        self.semaphore = LaxBoundedSemaphore(PROCESSES)
        self._quick_acquire, self._quick_release = self.semaphore.acquire, self.semaphore.release
        self.processes = Processes(self, SimpleNamespace(on_task_request=self._process_task_sem, pool=self))

    @property
    def _pool(self) -> Prefork:
        return self

    def _process_task_sem(self, name: str) -> Any:
        return self._quick_acquire(self.run, name)

    def run(self, name: str) -> None:
        self._cache[next(self.numbers)] = Job()
        self.most = max(self.most, len(self._cache))

    def end(self) -> None:
        """The task that runs longest ends, in a process that ends with it."""
        self.semaphore.release()  # with the result, before the job is forgotten
        number = min(self._cache)
        self._cache.pop(number).ended = True
        self.semaphore.release()  # when the process has been replaced

    def lose(self) -> Job:
        """A process dies; what it has run is known to be lost later, without another word of a process."""
        job = self._cache[min(self._cache)]
        job._worker_lost = (0.0, 9)
        self.semaphore.release()
        return job


def test_a_process_that_is_replaced_counts_once() -> None:
    worker = Prefork()
    for number in range(20):
        worker._process_task_sem(f"task {number}")
    while worker._cache:
        worker.end()
    assert next(worker.numbers) == 20
    assert worker.most <= PROCESSES + 2, "one that was found twice, and one that has just ended"
    assert (worker.semaphore.value, len(worker.semaphore._waiting)) == (PROCESSES, 0)


@pytest.mark.parametrize("way", ["find", "find_first", "take"])
def test_no_process_is_found_that_there_is_not(way: str) -> None:
    worker, found = Prefork(), []
    for number in range(PROCESSES + 1):
        worker.run(f"task {number}")
    if way == "take":
        assert not worker.processes.take()
        return
    getattr(worker.processes, way)(found.append, "late")
    assert found == []
    worker._cache.clear()
    worker.semaphore.release()
    assert found == ["late"]


def test_whoever_was_found_none_stays_the_first_to_get_one() -> None:
    worker, found = Prefork(), []
    for number in range(PROCESSES + 1):
        worker.run(f"task {number}")
    for name in ("first", "second", "third"):
        worker.semaphore.value = 0
        worker.processes.find(found.append, name)
    worker.semaphore.release()
    worker._cache.clear()
    for _ in range(3):
        worker.semaphore.release()
    assert found == ["first", "second", "third"]


def test_what_is_lost_with_its_process_takes_none() -> None:
    worker = Prefork()
    for number in range(5):
        worker._process_task_sem(f"task {number}")
    lost = worker.lose()
    assert sum(job is not lost for job in worker._cache.values()) == PROCESSES
    worker.semaphore.release()
    assert len(worker._cache) == PROCESSES + 2, "the next one has begun beside one that is just ending"


def test_a_pool_of_another_make_is_believed() -> None:
    worker, found = Prefork(), []
    del worker._cache, worker._processes
    worker.processes.find(found.append, "task")
    assert found == ["task"]


@pytest.mark.lowest
def test_billiards_pool_has_what_it_needs() -> None:
    source = inspect.getsource(billiard_pool.Pool)
    assert "self._cache = {}" in source
    assert "self._processes = " in source
    assert "_worker_lost" in vars(billiard_pool.ApplyResult)
