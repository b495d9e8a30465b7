"""What a worker's own handlers refuse, and what cannot be sent to a child, costs neither a process nor a slot."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.harness.redis_server import RedisServer
from tests.harness.waiting import wait_until
from tests.integration.celery_apps import Deployment

REFUSING = """
from celery import bootsteps

def refuse(request):
    if "Taken" in type(request.message).__name__ and request.args[0] == "refused":
        history().rpush("celery-test:handled", request.id)
        if not history().exists("celery-test:healed"):
            raise LookupError("refused by a handler of the user's")

class Refusing(bootsteps.StartStopStep):
    requires = ("celery.worker.consumer.tasks:Tasks",)

    def start(self, consumer):
        consumer.on_task_message.add(refuse)

app.steps["consumer"].add(Refusing)
"""
SPOILING = """
from celery.signals import task_received

@task_received.connect(weak=False)
def spoil(request, **_):
    if request.args and request.args[0] == "unsendable":
        request.request_dict["unsendable"] = lambda: None
"""
OTHERS = 20


@pytest.mark.parametrize("kind", ["prefork", "threads"])
def test_a_parked_message_that_a_handler_refuses_is_tried_now_and_then(
    tmp_path: Path, own_redis: RedisServer, kind: str
) -> None:
    made = Deployment(tmp_path, own_redis, lease=3.0, extra=REFUSING)
    one = made.module.one
    with made.worker(kind, concurrency=1) as worker:
        with made.slot("one:refused"):
            sent = one.delay("refused", 0)
            wait_until("it is parked", lambda: made.parked("one:refused") == 1, 20)
        wait_until("it was refused", lambda: made.list("handled"), 20)
        made.wait_free("one:refused")
        for _ in range(OTHERS):
            assert one.delay("other", 0).get(timeout=20) == "one:other"
        assert len(made.list("handled")) < OTHERS
        assert worker.log.count("cannot be handled") < OTHERS
        made.history.set("celery-test:healed", 1, ex=60)
        assert sent.get(timeout=20) == "one:refused"
        wait_until("it has left the room", lambda: made.parked("one:refused") == 0, 20)
    made.close()


@pytest.mark.lowest
def test_what_cannot_be_sent_to_a_child_fails_and_costs_no_process(tmp_path: Path, own_redis: RedisServer) -> None:
    made = Deployment(tmp_path, own_redis, extra=SPOILING)
    one = made.module.one
    with made.worker("prefork", concurrency=1):
        with made.slot("one:unsendable"):
            parked = one.delay("unsendable", 0)
            wait_until("it is parked", lambda: made.parked("one:unsendable") == 1, 20)
        for sent in (parked, one.delay("unsendable", 0), made.module.slow_add.delay("unsendable")):
            with pytest.raises(Exception, match="pickle"):
                sent.get(timeout=20)
        assert one.delay("other", 0).get(timeout=20) == "one:other"
        made.wait_free("one:unsendable")
        wait_until("none has stayed in the room", lambda: made.parked("one:unsendable") == 0, 20)
    assert made.list("started:unsendable") == []
    made.close()
