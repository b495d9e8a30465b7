"""Messages over their rate wait in the room, and real ``taskiq worker`` processes take them at the rate's pace."""

from __future__ import annotations

import importlib
import json
import time
from collections.abc import Callable

import pytest
import redis

from slotline import Pool, RedisStore
from slotline.pools import Room
from tests.harness.waiting import await_until
from tests.harness.workers import TaskiqWorker

APP = """
import json, time
import redis
from taskiq_redis import ListQueueBroker, RedisAsyncResultBackend
from slotline import RedisStore
from taskiq_ext import PoolLimit, PoolLimitMiddleware

URL = "{url}"
history = redis.Redis.from_url(URL)
store = RedisStore(URL)
limits = PoolLimitMiddleware(store, pools={{"mail": PoolLimit(size=1, rate="10/s", burst=3)}})
broker = (
    ListQueueBroker(URL, queue_name="work", socket_timeout=None)
    .with_result_backend(RedisAsyncResultBackend(URL, result_ex_time=60, socket_timeout=None))
    .with_middlewares(limits)
)


def note(x):
    history.rpush("history", json.dumps([time.time(), x]))


@broker.task(pool="api", pool_rate="10/s")
async def call_api(x: int) -> int:
    note(x)
    return x


@broker.task(pool="mail")
def send_mail(x: int) -> int:
    note(x)
    return x
"""


# The heartbeat's lease is 30 s here: a worker that only looked through its lane now and then would be far slower.
@pytest.mark.leaves("keys", reason="the broker's own queue, and the history that the tasks write")
@pytest.mark.parametrize(("task", "least"), [("call_api", 0.7), ("send_mail", 0.5)])
async def test_parked_messages_run_once_each_at_the_rates_pace(
    task: str,
    least: float,
    app_module: Callable[[str], str],
    taskiq_worker: Callable[..., TaskiqWorker],
    redis_url: str,
    redis_client: redis.Redis,
) -> None:
    app = app_module(APP.format(url=redis_url))
    worker = taskiq_worker(f"{app}:broker", workers=2)
    module = importlib.import_module(app)
    await module.broker.startup()
    try:
        begun = time.monotonic()
        sent = [await getattr(module, task).kiq(x) for x in range(8)]
        results = [await one.wait_result(check_interval=0.02, timeout=30) for one in sent]
        took = time.monotonic() - begun
        assert [result.return_value for result in results] == list(range(8))
        info = await Pool("api" if task == "call_api" else "mail", 1, store=module.store).info()
        assert (info.used, info.waiting) == (0, 0)
    finally:
        await module.broker.shutdown()
        await module.store.close()
    noted = sorted(json.loads(event) for event in redis_client.lrange("history", 0, -1))
    assert sorted(x for _, x in noted) == list(range(8))
    assert noted[-1][0] - noted[0][0] >= least * 0.95
    assert took < 7
    assert "is parked" in worker.log


async def test_an_idle_room_is_called_for_the_first_message_over_a_rate_and_again_when_its_start_is_allowed(
    store: RedisStore, make_room: Callable[..., Room]
) -> None:
    calls: list[float] = []
    pool = Pool("p", None, rate="5/s", store=store)
    rooms = [make_room(lane, on_call=lambda: calls.append(time.monotonic())) for lane in ("a", "b")]
    for room in rooms:
        assert await room.take() is None
    await pool.release(await pool.acquire())
    order = [("a", b"1"), ("b", b"2"), ("a", b"3"), ("a", b"4")]
    for lane, message in order:
        await rooms[0].park(pool, message, lane=lane)
    begun, served = time.monotonic(), []

    async def all_served() -> bool:
        for room in rooms:
            if room.due and (one := await room.take()) is not None:
                served.append(one.message)
                await one.settle()
                await one.pool.release(one.slot)
        return len(served) == len(order)

    await await_until("all are served", all_served, timeout=6)
    assert served == [message for _, message in order]
    assert time.monotonic() - begun >= 0.6 * 0.95
    assert calls
