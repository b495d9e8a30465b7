"""Single flight in one process: across event loops and threads, with cancellation, failures and recursion."""

from __future__ import annotations

import asyncio
import functools
import gc
import os
import threading

import pytest

from slotline.caches import InMemoryCacheAdapter
from slotline.errors import AsyncCreatorError, CacheRecursionError, CreatorFailedError
from tests.harness.waiting import await_until, wait_until


class Runs:
    """A creator that counts its runs, in both forms."""

    def __init__(self, *outcomes):
        self.outcomes = outcomes
        self.count = 0

    def __call__(self):
        self.count += 1
        outcome = self.outcomes[min(self.count, len(self.outcomes)) - 1] if self.outcomes else self.count
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    async def later(self):
        await asyncio.sleep(0)
        return self()


async def obtain(face, cache, key, creator, *args, **options):
    if face == "async":
        return await cache.get_or_create(key, creator, *args, **options)
    return await asyncio.to_thread(cache.sync.get_or_create, key, creator, *args, **options)


@pytest.fixture(params=["async", "sync"])
def face(request):
    return request.param


async def settled(cache):
    await await_until("no run is under way", lambda: not cache._flights.live)


# -- single flight ----------------------------------------------------------------------------------------------------


async def test_a_thousand_callers_share_one_run():
    cache, runs = InMemoryCacheAdapter(), Runs()

    async def create():
        await asyncio.sleep(0.05)
        return runs()

    values = await asyncio.gather(*(cache.get_or_create("k", create) for _ in range(1000)))
    assert values == [1] * 1000
    stats = cache.get_stats()
    assert (stats["misses"], stats["coalesced"], stats["hits"]) == (1, 999, 0)


def test_threads_and_event_loops_share_one_run():
    cache, runs = InMemoryCacheAdapter(), Runs()
    started, go = threading.Event(), threading.Event()
    values = []

    def create():
        started.set()
        assert go.wait(20)
        return runs()

    def in_thread():
        values.append(cache.sync.get_or_create("k", create))

    def in_loop():
        async def gathered():
            return await asyncio.gather(*(cache.get_or_create("k", runs.later) for _ in range(5)))

        values.extend(asyncio.run(gathered()))

    first = threading.Thread(target=in_thread)
    first.start()
    assert started.wait(20)
    others = [threading.Thread(target=target) for target in (in_thread, in_loop, in_thread, in_loop)]
    for thread in others:
        thread.start()
    wait_until("all of them wait", lambda: cache.get_stats()["coalesced"] == 12)
    go.set()
    for thread in [first, *others]:
        thread.join()
    assert values == [1] * 13
    assert runs.count == 1


def test_a_thread_waits_for_a_run_in_an_event_loop():
    cache, runs = InMemoryCacheAdapter(), Runs()
    values = []

    async def main():
        started = asyncio.Event()

        async def create():
            started.set()
            await await_until("the thread waits", lambda: cache.get_stats()["coalesced"] == 1)
            return runs()

        task = asyncio.create_task(cache.get_or_create("k", create))
        await started.wait()
        values.append(await asyncio.to_thread(cache.sync.get_or_create, "k", runs))
        values.append(await task)

    asyncio.run(main())
    assert values == [1, 1]


def test_the_end_of_the_loop_that_flies_hands_the_run_to_whoever_waits():
    cache = InMemoryCacheAdapter()
    started = threading.Event()
    values = []

    async def never():
        started.set()
        await asyncio.Event().wait()

    async def leader():
        caller = asyncio.create_task(cache.get_or_create("k", never))
        await await_until("a thread waits", lambda: cache.get_stats()["coalesced"] == 1)
        caller.cancel()

    loop = threading.Thread(target=lambda: asyncio.run(leader()))
    loop.start()
    assert started.wait(20)
    waiter = threading.Thread(target=lambda: values.append(cache.sync.get_or_create("k", lambda: "mine")))
    waiter.start()
    for thread in (loop, waiter):
        thread.join()
    assert values == ["mine"]


@pytest.mark.filterwarnings("ignore:coroutine:RuntimeWarning")
def test_a_loop_that_was_closed_over_its_run_holds_nobody_up():
    cache = InMemoryCacheAdapter()
    loop = asyncio.new_event_loop()

    async def begin():
        task = asyncio.create_task(cache.get_or_create("k", lambda: asyncio.sleep(1000)))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        task.cancel()

    loop.run_until_complete(begin())
    left = list(asyncio.all_tasks(loop))
    loop.close()
    assert cache.sync.get_or_create("k", lambda: "mine") == "mine"
    for task in left:  # they can never end: their loop is closed
        task._log_destroy_pending = False
    del left, task
    cache._tasks.clear()
    gc.collect()


async def test_a_value_is_stored_even_when_nobody_waits_any_more():
    cache = InMemoryCacheAdapter()
    started, go = asyncio.Event(), asyncio.Event()

    async def create():
        started.set()
        await go.wait()
        return "made"

    caller = asyncio.create_task(cache.get_or_create("k", create))
    await started.wait()
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    go.set()
    await settled(cache)
    assert await cache.get("k") == "made"


async def test_every_waiter_gets_the_failure_with_a_traceback_of_its_own_length():
    cache, error = InMemoryCacheAdapter(), ValueError("no")

    async def fail():
        await asyncio.sleep(0.01)
        raise error

    outcomes = await asyncio.gather(*(cache.get_or_create("k", fail) for _ in range(50)), return_exceptions=True)
    assert all(outcome is error for outcome in outcomes)
    depth, frame = 0, error.__traceback__
    while frame is not None:
        depth, frame = depth + 1, frame.tb_next
    assert depth < 12
    assert cache.get_stats()["errors"] == 1


async def test_an_error_of_ones_own_is_not_shared_and_the_next_one_runs_its_own_creator():
    class RetryError(Exception):
        pass

    cache = InMemoryCacheAdapter()
    started, go = asyncio.Event(), asyncio.Event()

    async def retrying():
        started.set()
        await go.wait()
        raise RetryError

    first = asyncio.create_task(cache.get_or_create("k", retrying, own_errors=(RetryError,)))
    await started.wait()
    others = [asyncio.create_task(cache.get_or_create("k", lambda: "made")) for _ in range(3)]
    thread = asyncio.create_task(asyncio.to_thread(cache.sync.get_or_create, "k", lambda: "made"))
    await await_until("all of them wait", lambda: cache.get_stats()["coalesced"] == 4)
    go.set()
    with pytest.raises(RetryError):
        await first
    assert await asyncio.gather(*others, thread) == ["made"] * 4


def test_a_thread_that_is_interrupted_hands_its_run_to_whoever_waits():
    cache = InMemoryCacheAdapter()
    started, go = threading.Event(), threading.Event()
    values = []

    def interrupted():
        started.set()
        assert go.wait(20)
        raise SystemExit

    def first():
        with pytest.raises(SystemExit):
            cache.sync.get_or_create("k", interrupted)

    threads = [threading.Thread(target=first)]
    threads[0].start()
    assert started.wait(20)
    threads.append(threading.Thread(target=lambda: values.append(cache.sync.get_or_create("k", lambda: "mine"))))
    threads[1].start()
    wait_until("the other waits", lambda: cache.get_stats()["coalesced"] == 1)
    go.set()
    for thread in threads:
        thread.join()
    assert values == ["mine"]


def test_a_creator_that_has_to_be_awaited_is_refused_to_a_blocking_caller():
    cache = InMemoryCacheAdapter()

    async def create(): ...

    for creator in (create, functools.partial(create), lambda: asyncio.sleep(0)):
        with pytest.raises(AsyncCreatorError, match="await get_or_create"):
            cache.sync.get_or_create("k", creator)
    assert cache.sync.get_or_create("k", lambda: 1) == 1


async def test_a_blocking_call_in_the_loop_that_makes_the_value_is_refused():
    cache = InMemoryCacheAdapter()
    task = asyncio.create_task(cache.get_or_create("k", lambda: asyncio.sleep(0.05, "made")))
    await asyncio.sleep(0)
    with pytest.raises(CacheRecursionError):
        cache.sync.get_or_create("k", lambda: 1)
    assert await task == "made"


async def test_a_creator_that_returns_its_own_coroutine_is_refused():
    async def endless():
        return endless()

    with pytest.raises(TypeError, match="awaitable of an awaitable"):
        await InMemoryCacheAdapter().get_or_create("k", endless)


async def test_a_creator_that_cancels_itself_fails():
    async def create():
        raise asyncio.CancelledError

    with pytest.raises(CreatorFailedError, match="cancelled itself"):
        await InMemoryCacheAdapter().get_or_create("k", create)


async def test_a_creator_that_cancels_its_task_each_time_is_not_run_for_ever():
    runs = Runs()

    async def create():
        asyncio.current_task().cancel()
        runs()
        await asyncio.sleep(10)

    with pytest.raises(CreatorFailedError, match="each of 5 runs was cancelled"):
        await asyncio.wait_for(InMemoryCacheAdapter().get_or_create("k", create), 60)
    assert runs.count == 5


def test_a_forked_child_does_not_wait_for_the_runs_of_its_parent():
    cache = InMemoryCacheAdapter()
    started, go = threading.Event(), threading.Event()

    def create():
        started.set()
        go.wait(30)
        return 1

    thread = threading.Thread(target=cache.sync.get_or_create, args=("k", create))
    thread.start()
    assert started.wait(20)
    pid = os.fork()
    if pid == 0:
        os._exit(0 if cache.sync.get_or_create("k", lambda: "child") == "child" else 1)
    go.set()
    thread.join()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
