"""Caches of the user's own, whose creators would run in some other thread."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any

from slotline.caches import BaseCacheAdapter


def get_or_create_here(cache: BaseCacheAdapter, key: str, body: Callable[[], Any], **options: Any) -> Any:
    """Ask a cache for a value, and run ``body`` in the calling thread if it wants one.

    The blocking face of a cache that has only coroutines runs creators in a thread of its own. A task's body belongs
    to the thread that Celery gave it: its request, its signals and what its libraries keep for each thread are there.

    Args:
        cache: The cache.
        key: The entry's name.
        body: Makes the value.
        **options: Further arguments of the cache's ``get_or_create``.
    """
    inbox: SimpleQueue[Future[Any]] = SimpleQueue()
    answer: Future[Any] = Future()

    def create() -> Any:
        wanted: Future[Any] = Future()
        inbox.put(wanted)
        return wanted.result()

    def ask() -> None:
        _settle(answer, lambda: cache.sync.get_or_create(key, create, **options))
        inbox.put(answer)

    threading.Thread(target=ask, name="slotline-cache-call", daemon=True).start()
    while True:
        wanted = inbox.get()
        if wanted is answer:
            return answer.result()
        _settle(wanted, body)


def _settle(future: Future[Any], call: Callable[[], Any]) -> None:
    try:
        future.set_result(call())
    except BaseException as error:  # noqa: BLE001 - it reaches the caller through the cache
        future.set_exception(error)
