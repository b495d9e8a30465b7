"""A short visibility timeout of the Redis transport: what a living worker has in hand is delivered once."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self

import pytest
from celery import Celery

from celery_ext.freshness import Freshness, refresh, restore, take_over
from tests.harness.proxy import TcpProxy
from tests.harness.redis_server import RedisServer
from tests.harness.waiting import wait_until
from tests.harness.workers import all_ready
from tests.integration.celery_apps import Deployment

TIMEOUT = 3
LONG = 7.0


def deploy(directory: Path, server: RedisServer, broker: str | None = None) -> Deployment:
    transport = {"visibility_timeout": TIMEOUT}
    return Deployment(directory, server, broker=broker, acks_late=True, transport=transport)


@pytest.mark.lowest
def test_what_a_worker_has_in_hand_longer_than_the_visibility_timeout_runs_once(
    tmp_path: Path, own_redis: RedisServer
) -> None:
    with TcpProxy(own_redis.port) as proxy:
        made = deploy(tmp_path, own_redis, proxy.redis_url)
        app = made.module
        with made.worker("prefork", concurrency=4) as worker:
            assert app.free.delay(1).get(timeout=20) == 1  # it reads by now, and so notices
            proxy.cut()  # whatever the first connection had is gone
            wait_until("the worker has connected again", lambda: worker.log.count("Connected to") == 2, 20)
            running = app.free_late.delay("running", LONG)
            scheduled = app.free_late.apply_async(("scheduled", 0), countdown=LONG)
            first = app.one.delay("held", LONG)
            held = app.one.apply_async(("held", 0), pool_on_full="wait")
            sent = [running, scheduled, first, held]
            assert [result.get(timeout=LONG + 30) for result in sent] == ["running", "scheduled"] + ["one:held"] * 2
            wait_until("all is acknowledged", lambda: not made.history.zcard("unacked_index"), 10)
            assert made.list("started:running") == [running.id]
            assert made.list("started:scheduled") == [scheduled.id]
            assert made.list("started:held") == [first.id, held.id]
            assert not made.parked("one:held"), "nothing was delivered twice"
        made.close()


@pytest.mark.parametrize("pool", ["prefork", "solo"])
def test_a_task_that_outlives_the_visibility_timeout_while_its_worker_ends_runs_once(
    tmp_path: Path, own_redis: RedisServer, pool: str
) -> None:
    made = deploy(tmp_path, own_redis)
    options = {"concurrency": 1, "wait": False}
    with made.worker(pool, **options) as first, made.worker(pool, **options) as second:
        all_ready([first, second])
        sent = made.module.one.delay("ending", LONG)
        wait_until("it runs", lambda: made.list("started:ending"), 20)
        ending = first if sent.id in first.log else second
        assert ending.terminate(60) == 0
        assert sent.get(timeout=10) == "one:ending"
        assert made.list("started:ending") == [sent.id]
    made.close()


@pytest.mark.lowest
@pytest.mark.parametrize("pool", ["prefork", "threads", "gevent", "solo"])
def test_a_killed_workers_message_is_delivered_again_after_the_visibility_timeout(
    tmp_path: Path, own_redis: RedisServer, pool: str
) -> None:
    made = deploy(tmp_path, own_redis)
    with made.worker(pool, concurrency=1) as first:
        sent = made.module.free_late.delay("killed", 1.0)
        wait_until("it runs", lambda: made.list("started:killed"), 20)
        first.kill_all()
    with made.worker(pool, concurrency=1):
        assert sent.get(timeout=TIMEOUT + 30) == "killed"
    assert made.list("started:killed") == [sent.id] * 2
    made.close()


def test_a_message_that_was_acknowledged_meanwhile_is_not_revived(own_redis: RedisServer) -> None:
    app = Celery("unit", broker=own_redis.url, set_as_current=False)
    with app.connection_for_read() as connection:
        queue: Any = connection.SimpleQueue("fresh")
        for number in range(2):
            queue.put(number)
        first, second = queue.get(timeout=10), queue.get(timeout=10)
        channel, client = first.channel, own_redis.client()
        before = dict(client.zrange("unacked_index", 0, -1, withscores=True))
        client.zrem("unacked_index", first.delivery_tag)  # acknowledged in Redis, and not yet known here
        refresh(channel)
        after = dict(client.zrange("unacked_index", 0, -1, withscores=True))
        assert list(after) == [second.delivery_tag.encode()]
        assert after[second.delivery_tag.encode()] > before[second.delivery_tag.encode()]
        first.ack()
        second.ack()
        queue.close()
        client.close()
    app.close()


class Overdue:
    """Messages that a dead worker had in hand, on a channel of a living one."""

    def __init__(self, server: RedisServer, count: int, prefix: str = "") -> None:
        self.app = Celery("unit", broker=server.url, set_as_current=False)
        self.app.conf.broker_transport_options = {"visibility_timeout": 1, "global_keyprefix": prefix}
        self.connection, self.client = self.app.connection_for_read(), server.client()
        self.queue: Any = self.connection.SimpleQueue("fresh")
        for number in range(count):
            self.queue.put(number)
        (self.channel, *_) = [self.queue.get(timeout=10).channel for _ in range(count)]
        self.channel.qos._delivered.clear()
        self.index = f"{prefix}unacked_index"
        self.client.set(f"{prefix}unacked_mutex", "the dead worker's", ex=300)
        self.client.zadd(self.index, dict.fromkeys(self.tags(), 0))

    def tags(self) -> list[bytes]:
        return self.client.zrange(self.index, 0, -1)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.channel.qos._delivered.clear()
        self.queue.close()
        self.connection.close()
        self.client.flushall()
        self.client.close()
        self.app.close()


@pytest.mark.lowest
@pytest.mark.parametrize("prefix", ["", "all of it:"])
def test_what_a_worker_had_that_was_killed_while_it_looked_for_the_messages_of_others_comes_again(
    own_redis: RedisServer, prefix: str
) -> None:
    with Overdue(own_redis, 1, prefix) as found:
        overdue = restore(found.channel, frozenset())
        assert found.tags() == list(overdue), "a living worker may speak for it until the next look"
        restore(found.channel, overdue)
        assert found.tags() == []
        again = found.queue.get(timeout=10)
        assert again.payload == 0
        again.ack()


@pytest.mark.lowest
def test_what_another_worker_has_put_back_and_a_third_has_in_hand_is_left_to_that(own_redis: RedisServer) -> None:
    with Overdue(own_redis, 3) as found:
        overdue = restore(found.channel, frozenset())
        put_back = found.channel._do_restore_message

        def as_others_do(*args: Any) -> None:
            found.client.zadd(found.index, dict.fromkeys(found.tags()[1:], time.time()), xx=True)
            put_back(*args)

        found.channel._do_restore_message = as_others_do
        restore(found.channel, overdue)
        assert (len(found.tags()), found.client.hlen("unacked"), found.queue.qsize()) == (2, 2, 1)


@pytest.mark.lowest
@pytest.mark.parametrize(("refused", "left"), [(False, 1), (True, 0)])
def test_kombu_itself_puts_back_only_what_it_is_not_let(own_redis: RedisServer, refused: bool, left: int) -> None:
    with Overdue(own_redis, 1) as found:
        found.client.delete("unacked_mutex")
        take_over(found.channel, lambda: not refused)
        found.channel.connection.cycle.maybe_restore_messages()
        assert len(found.tags()) == left


def test_a_worker_takes_over_from_kombu_with_each_connection_and_as_long_as_it_may(
    own_redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Overdue(own_redis, 1) as found:
        found.client.delete("unacked_mutex")
        freshness = Freshness(SimpleNamespace(connection=found.connection))
        monkeypatch.setattr(freshness, "_thread", threading.current_thread())
        freshness.open()
        found.connection.default_channel.qos.restore_visible(num=10, interval=1)
        assert len(found.tags()) == 1
        freshness._refused = True
        found.connection.default_channel.qos.restore_visible(num=10, interval=1)
        assert found.tags() == []


@pytest.mark.lowest
def test_a_server_that_runs_no_scripts_is_left_to_kombu(own_redis: RedisServer) -> None:
    with Overdue(own_redis, 1) as found:
        found.client.delete("unacked_mutex")
        found.client.execute_command("ACL", "SETUSER", "default", "-eval")
        freshness = Freshness(SimpleNamespace(connection=found.connection, task_consumer=found.queue.consumer))
        freshness.open()
        try:
            wait_until("it is refused", lambda: freshness._refused, 20, 0.05)
        finally:
            freshness.close()
            found.client.execute_command("ACL", "SETUSER", "default", "+eval")
        found.channel.qos.restore_visible(num=10, interval=1)
        assert found.tags() == []


@pytest.mark.lowest
@pytest.mark.parametrize("speaks", [True, False])
def test_a_channel_that_closes_after_a_standstill_leaves_what_another_worker_has_by_now_to_that(
    own_redis: RedisServer, speaks: bool
) -> None:
    app = Celery("unit", broker=own_redis.url, set_as_current=False)
    app.conf.broker_transport_options = {"visibility_timeout": 1}
    ours, others = app.connection_for_read(), app.connection_for_read()
    ours_queue, others_queue = ours.SimpleQueue("fresh"), others.SimpleQueue("fresh")
    in_hand = take_over(ours.default_channel, lambda: True)
    ours_queue.put(0)
    message = ours_queue.get(timeout=10)
    client, overdue = own_redis.client(), frozenset[bytes]()

    def another_worker_takes_it() -> bool:
        nonlocal overdue
        overdue = restore(others.default_channel, overdue)
        return client.llen("fresh") == 1

    wait_until("it is another's", another_worker_takes_it, 10, 0.1)
    again = others_queue.get(timeout=10)
    assert again.delivery_tag == message.delivery_tag
    if speaks:  # it goes on before it ends
        in_hand.speak()
    ours.close()
    assert (client.llen("fresh"), client.hlen("unacked"), client.zcard("unacked_index")) == (0, 1, 1)
    again.ack()
    assert client.hlen("unacked") == 0
    others_queue.close()
    others.close()
    client.close()
    app.close()


@pytest.mark.lowest
def test_a_channel_that_closes_puts_back_at_once_what_is_its_own(own_redis: RedisServer) -> None:
    app = Celery("unit", broker=own_redis.url, set_as_current=False)
    app.conf.broker_transport_options = {"visibility_timeout": 60}
    ours, others = app.connection_for_read(), app.connection_for_read()
    ours_queue, others_queue = ours.SimpleQueue("fresh"), others.SimpleQueue("fresh")
    in_hand = take_over(ours.default_channel, lambda: True)
    ours_queue.put(0)
    ours_queue.get(timeout=10)
    in_hand.speak()
    ours.close()
    others_queue.get(timeout=10).ack()
    others_queue.close()
    others.close()
    app.close()
