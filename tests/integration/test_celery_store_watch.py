"""When a store that was away is back for a Celery worker."""

from __future__ import annotations

import pytest

from celery_ext.store_watch import StoreWatch
from slotline import RedisStore, StoreUnavailableError
from slotline.pools import Room
from tests.harness.proxy import TcpProxy
from tests.harness.waiting import wait_until


def test_a_store_that_is_back_is_heard_again_too(redis_proxy: TcpProxy) -> None:
    """Or else the next question finds it away once more, and limited tasks run without their limits, or fail."""
    store = RedisStore(redis_proxy.redis_url, timeout=1.0, retries=0)
    room, first_answers = Room(store, ["q"]), list[object]()

    def ask() -> None:
        try:
            first_answers.append(watch.ask(room.sync.take))
        except StoreUnavailableError as error:
            first_answers.append(error)

    watch = StoreWatch(store, ask)
    assert watch.ask(room.sync.take) is None
    redis_proxy.refuse()
    wait_until("who listens is told", lambda: (heard := store.wakeups.listening()).done() and heard.exception())
    with pytest.raises(StoreUnavailableError):
        watch.ask(room.sync.take)
    redis_proxy.resume()
    wait_until("it is back", lambda: first_answers)
    assert first_answers == [None]
    watch.close()
    store.sync.close()
