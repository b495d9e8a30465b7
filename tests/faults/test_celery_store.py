"""A store that refuses what would use memory, and what a limit asks of it when it holds up nobody."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from slotline import Pool, RedisStore, StoreUnavailableError
from tests.harness.redis_server import RedisServer
from tests.harness.waiting import wait_until
from tests.integration.celery_apps import Deployment


@pytest.mark.parametrize("policy", ["wait", "open", "fail"])
def test_a_store_that_is_out_of_memory_is_one_that_is_away(
    tmp_path: Path, own_redis: RedisServer, make_redis: Callable[..., RedisServer], policy: str
) -> None:
    store = make_redis()
    made = Deployment(tmp_path, own_redis, extra=f"app.conf.slotline_on_store_error = {policy!r}\n")
    with made.worker("prefork", concurrency=2, store=store.url) as worker, store.client() as client:
        assert made.module.die.delay("return").get(timeout=20) == "return"
        client.config_set("maxmemory", 1)
        sent = made.module.die.delay("once more")
        if policy == "fail":
            with pytest.raises(StoreUnavailableError):
                sent.get(timeout=30)
        else:
            if policy == "wait":
                worker.wait_log("is held until its limit can be asked", 30)
                assert len(made.list("die")) == 1
                client.config_set("maxmemory", 0)
            assert sent.get(timeout=30) == "once more"
        assert len(made.list("die")) == (1 if policy == "fail" else 2)
        client.config_set("maxmemory", 0)

        def limited() -> bool:
            return bool(made.module.die.delay("again").get(timeout=30, propagate=False) == "again")

        wait_until("the store is asked again", limited, 20)
        wait_until("its slot is free", lambda: in_use(store, "die") == 0, 20)
    made.close()


def test_a_limit_that_holds_up_no_greenlet_costs_at_most_two_calls_of_its_store_a_task(
    tmp_path: Path, own_redis: RedisServer, make_redis: Callable[..., RedisServer]
) -> None:
    store = make_redis()
    made = Deployment(tmp_path, own_redis, lease=600.0)

    def run(count: int) -> None:
        sent = [made.module.limited.apply_async((number, 0), pool_size=1000) for number in range(count)]
        assert len({result.get(timeout=60) for result in sent}) == count
        wait_until("all slots are free", lambda: in_use(store, "limited") == 0, 20)

    with made.worker("gevent", concurrency=20, store=store.url):
        run(20)
        with store.recording() as sent:
            run(200)
    counted = Counter(one.name for one in sent if one.name not in {"hello", "zcard"})
    assert set(counted) <= {"evalsha", "eval"}  # by which a script is called for the first time
    assert counted.total() <= 400, "fewer where a run leaves its slot to the next one of its worker"
    made.close()


def in_use(store: RedisServer, pool: str) -> int:
    """Return how many slots of a pool are in use, asked for by a command that no worker sends."""
    slots, *_ = Pool(pool, 1, store=RedisStore(store.url)).keys
    with store.client() as client:
        return int(client.zcard(slots))
