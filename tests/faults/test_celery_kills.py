"""Parts of Celery workers are killed at every step of a message's way: nothing is lost, and nothing runs too often."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

import pytest

from tests.faults.dying import Kill, order
from tests.harness.processes import gone
from tests.harness.redis_server import RedisServer
from tests.harness.waiting import wait_until
from tests.harness.workers import CeleryWorker, all_ready
from tests.integration.celery_apps import Deployment
from tests.integration.losing_slots import ends, fences, one_after_the_other, pids, runs

pytestmark = pytest.mark.leaves("keys", reason="the history that the tasks write")

LEASE = 2.0
SOON = {"visibility_timeout": 3}
"""What a dead worker has not acknowledged comes again soon."""
RECOVERED = 30.0
"""Seconds after which everything must have run: twice the lease, the broker's own redelivery, and a busy machine."""

SOURCE = """
from tests.faults.dying import Places
from tests.integration.losing_slots import sign

places = Places(STORE)
places.prepare_celery()


def live(task, name):
    sign(history(), name, task.slot.fence, task.request.id)
    outlived = places.here("running", task.request.id)
    return beat(STORE, name, task.slot.fence, 60 if outlived else 0.2, task.request.id)


@app.task(shared=False, name="app.mortal", pool="{name}", pool_size=1, pool_slot_exp=None, bind=True)
def mortal(self, name):
    return live(self, name)


@app.task(
    shared=False, name="app.mortal_of_two", pool=["{name}", "zone"], pool_size=[1, 2], pool_slot_exp=None, bind=True
)
def mortal_of_two(self, name):
    return live(self, name)
"""


KILLS = {
    "admitted": Kill("worker", "admitted", (1, 1), (1, 1)),
    "parked": Kill("worker", "parked", (1, 1), (1, 1)),
    "taken": Kill("worker", "taken", (1, 1), (1, 1)),
    "running": Kill("worker", "running", (1, 0), (2, 1)),
    "orphaned": Kill("parent", "running", (1, 0), (2, 1)),
    "bereft": Kill("self", "running", (1, 0), (1, 0)),
    "ended": Kill("worker", "ended", (1, 1), (2, 2)),
}


class Crew:
    """Two workers of a deployment; whoever dies is replaced."""

    def __init__(self, made: Deployment, pool: str) -> None:
        self.made, self.pool = made, pool
        self._stack = ExitStack()
        self.workers = all_ready([self._hire(), self._hire()])

    def __enter__(self) -> Self:
        self._stack.__enter__()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stack.__exit__(*exc_info)

    def replace_the_dead(self) -> None:
        wait_until("a worker is dead", lambda: not all(worker.alive for worker in self.workers), RECOVERED)
        self.workers = [*(worker for worker in self.workers if worker.alive), *all_ready([self._hire()])]

    def _hire(self) -> CeleryWorker:
        worker = self.made.worker(self.pool, concurrency=2, args=("-l", "DEBUG"), wait=False)
        return self._stack.enter_context(worker)


def meet_its_fate(crew: Crew, name: str, kill: Kill, task: str) -> None:
    """Send a message that has somebody killed, and another one behind it; see what becomes of both."""
    made, send = crew.made, getattr(crew.made.module, task).apply_async
    victim, follower = f"{name}-victim", f"{name}-follower"
    if kill.place == "admitted":
        order(made.history, kill.place, victim)
        send((name,), task_id=victim)
        crew.replace_the_dead()
    else:
        with made.slot(name):
            if kill.place == "parked":
                order(made.history, kill.place, victim)
            send((name,), task_id=victim)
            if kill.place == "parked":
                crew.replace_the_dead()
            parked = f"{victim}] is parked"
            wait_until("it is acknowledged", lambda: any(parked in worker.log for worker in crew.workers), RECOVERED)
            if kill.place != "parked":
                order(made.history, kill.place, victim, kill.who)
        if kill.place != "parked" and kill.who != "self":
            crew.replace_the_dead()
    send((name,), task_id=follower)

    def outcome() -> tuple[int, int]:
        return runs(made.history, name)[victim], ends(made.history, name)[victim]

    expected = kill.late if made.module.app.conf.task_acks_late else kill.early
    wait_until("it has run as often as it must", lambda: outcome() >= expected, RECOVERED)
    wait_until("what came after it has run", lambda: ends(made.history, name)[follower] == 1, RECOVERED)
    for pool in (name, "zone"):
        made.wait_free(pool)
    wait_until("the room is empty", lambda: made.parked(name) == 0)
    assert outcome() == expected
    assert runs(made.history, name)[follower] == 1
    assert one_after_the_other(fences(made.history, name))
    if kill.who == "parent":
        assert gone(pids(made.history, name)[0])


def all_die_and_all_is_well(
    made: Deployment, pool: str = "prefork", task: str = "mortal", places: Sequence[str] = tuple(KILLS)
) -> None:
    with Crew(made, pool) as crew:
        for name in places:
            kill = KILLS[name]
            if pool != "prefork" and kill.who != "worker":
                continue  # there is but one process
            try:
                meet_its_fate(crew, name, kill, task)
            except AssertionError as failure:
                raise AssertionError(f"{name}: {kill}") from failure
    made.close()


@pytest.mark.parametrize("late", [True, pytest.param(False, marks=pytest.mark.soak)], ids=["acks_late", "acks_early"])
def test_whoever_is_killed_on_redis_costs_no_more_than_the_broker_allows(
    tmp_path: Path, own_redis: RedisServer, late: bool
) -> None:
    all_die_and_all_is_well(Deployment(tmp_path, own_redis, lease=LEASE, acks_late=late, transport=SOON, extra=SOURCE))


def test_a_killed_gevent_worker_costs_no_more_than_the_broker_allows(tmp_path: Path, own_redis: RedisServer) -> None:
    made = Deployment(tmp_path, own_redis, lease=LEASE, acks_late=True, transport=SOON, extra=SOURCE)
    all_die_and_all_is_well(made, "gevent")


def test_who_is_killed_with_slots_of_two_pools_gives_back_both(tmp_path: Path, own_redis: RedisServer) -> None:
    made = Deployment(tmp_path, own_redis, lease=LEASE, acks_late=True, transport=SOON, extra=SOURCE)
    all_die_and_all_is_well(made, task="mortal_of_two", places=("parked", "taken", "running"))


@pytest.mark.rabbitmq
@pytest.mark.parametrize("late", [pytest.param(True, marks=pytest.mark.soak), False], ids=["acks_late", "acks_early"])
def test_whoever_is_killed_on_rabbitmq_costs_no_more_than_the_broker_allows(
    tmp_path: Path, own_redis: RedisServer, amqp_url: str, amqp_name: Any, late: bool
) -> None:
    options: dict[str, Any] = {"broker": amqp_url, "queue": amqp_name("kills"), "acks_late": late}
    all_die_and_all_is_well(Deployment(tmp_path, own_redis, lease=LEASE, extra=SOURCE, **options))
