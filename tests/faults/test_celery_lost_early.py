"""A task whose slot is lost before the worker knows that it has begun is not left to run, or to begin."""

from __future__ import annotations

from pathlib import Path

import pytest

from slotline import SlotLostError
from tests.harness.processes import gone
from tests.harness.proxy import TcpProxy
from tests.harness.redis_server import RedisServer
from tests.harness.waiting import wait_until
from tests.integration.celery_apps import Deployment
from tests.integration.losing_slots import fences, one_after_the_other, pids

LEASE = 4.0
pytestmark = pytest.mark.leaves("keys", reason="the history that the tasks write")

STANDING_STILL = """
from celery.concurrency.asynpool import AsynPool, ResultHandler


def stand_still():
    history().set("celery-test:stands", 1)
    while not history().exists("celery-test:go"):
        time.sleep(0.02)


def before_it_is_written():
    hand_over = AsynPool.apply_async

    def apply_async(self, *args, **kwargs):
        job = hand_over(self, *args, **kwargs)
        stand_still()
        return job

    AsynPool.apply_async = apply_async


def before_its_answer_is_read():
    register = ResultHandler.register_with_event_loop

    def register_with_event_loop(self, hub):
        register(self, hub)
        read = self.handle_event

        def handle_event(*args):
            if self.cache:
                stand_still()
            return read(*args)

        self.handle_event = handle_event

    ResultHandler.register_with_event_loop = register_with_event_loop


if "STORE_URL" in os.environ:  # the worker that is to be cut off
    {when}()
"""


@pytest.mark.parametrize(
    ("when", "seconds"), [("before_it_is_written", 0.1), ("before_its_answer_is_read", 60)], ids=["unwritten", "unread"]
)
def test_a_worker_that_stands_still_and_is_cut_off_runs_nothing_beside_its_successor(
    tmp_path: Path, own_redis: RedisServer, when: str, seconds: float
) -> None:
    made = Deployment(tmp_path, own_redis, lease=LEASE, acks_late=True, extra=STANDING_STILL.format(when=when))
    beating, history = made.module.beating, made.history
    with TcpProxy(own_redis.port) as proxy, made.worker("prefork", concurrency=2, store=proxy.redis_url) as worker:
        first = beating.delay("early", seconds)
        wait_until("the worker stands still", lambda: history.exists("celery-test:stands"), 30)
        if when == "before_its_answer_is_read":
            wait_until("the first runs", lambda: fences(history, "early"), 30)
        children = worker.children()
        with made.worker("prefork", concurrency=2, args=("-Q", "other")):
            second = beating.apply_async(("early", 1.0), queue="other")
            wait_until("the second is parked", lambda: made.parked("beating:early") == 1, 20)
            proxy.stall()
            assert second.get(timeout=60) > 0
            if when == "before_its_answer_is_read":
                assert gone(pids(history, "early")[0])
            proxy.resume()
            history.set("celery-test:go", 1)
            if when == "before_it_is_written":
                assert first.get(timeout=40) > second.get(timeout=40)
                assert worker.children() == children, "nothing had begun that had to be killed"
            else:
                with pytest.raises(SlotLostError):
                    first.get(timeout=40)
            assert beating.delay("early", 0.1).get(timeout=60) > 0
            assert beating.delay("late", 0.1).get(timeout=60) > 0
    seen = fences(history, "early")
    assert one_after_the_other(seen), "two held the slot at once"
    assert len(set(seen)) == 3
    made.close()
