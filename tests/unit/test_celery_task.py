"""What the task base class does in this process: direct calls, eager calls, hits on the sending side."""

from __future__ import annotations

import pickle
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from celery import Celery, chain, group
from celery.exceptions import Ignore, Reject, Retry, SoftTimeLimitExceeded

import celery_ext
from celery_ext.executors import TaskName
from celery_ext.slot import slot_of
from slotline.caches import BaseCacheAdapter, InMemoryCacheAdapter
from slotline.errors import StoreUnavailableError
from slotline.stores import MemoryStore


@pytest.fixture
def app() -> Iterator[Celery]:
    app = Celery("unit", broker="memory://", backend="cache+memory://", set_as_current=False)
    app.Task = celery_ext.Task
    app.conf.slotline_store = MemoryStore()
    app.conf.task_store_eager_result = False
    yield app
    app.close()


class Body:
    """A task's body that counts its runs and answers or raises what it is told to."""

    def __init__(self) -> None:
        self.runs: list[Any] = []
        self.raises: list[BaseException] = []
        self.threads: list[int] = []

    def __call__(self, *args: Any) -> Any:
        self.runs.append(args)
        self.threads.append(threading.get_ident())
        if self.raises:
            raise self.raises.pop(0)
        return sum(args)


@pytest.fixture
def body() -> Body:
    return Body()


@pytest.fixture
def add(app: Celery, body: Body) -> Callable[..., Any]:
    """Register ``add(left, right=1)`` with options and return it."""

    def register(**options: Any) -> Any:
        def add(left: int, right: int = 1) -> int:
            return body(left, right)  # type: ignore[no-any-return] # whatever the test wants

        return app.task(add, name="unit.add", shared=False, **options)

    return register


def test_a_direct_call_runs_the_body_every_time(add: Callable[..., Any], body: Body) -> None:
    task = add(cache_ttl=60, pool="p", pool_size=1)
    assert (task(1), task(1)) == (2, 2)
    assert len(body.runs) == 2


@pytest.mark.parametrize("settings", [{}, {"task_always_eager": True}])
def test_eager_calls_use_the_cache(app: Celery, add: Callable[..., Any], body: Body, settings: dict[str, Any]) -> None:
    app.conf.update(settings)
    task = add(cache_ttl=60)
    call = task.apply_async if settings else task.apply
    for arguments in (((1,), {}), ((1, 1), {}), ((), {"left": 1}), ((), {"right": 1, "left": 1})):
        result = call(*arguments)
        assert (result.get(), result.state) == (2, "SUCCESS")
    assert body.runs == [(1, 1)]
    assert call((2,)).get() == 3
    assert call((1,), headers={"slotline": {"cache": False}}).get() == 2
    assert body.runs == [(1, 1), (2, 1), (1, 1)]


def test_a_body_that_calls_its_own_task_means_the_plain_function(app: Celery) -> None:
    @app.task(name="unit.recursive", shared=False, cache_ttl=60)
    def countdown(number: int) -> int:
        return 0 if number == 0 else 1 + countdown(number - 1)

    assert countdown.apply((3,)).get() == 3
    assert celery_ext.config.runtime(app).cache.get_stats()["size"] == 1


def test_eager_chains_and_groups_use_the_cache(app: Celery, add: Callable[..., Any], body: Body) -> None:
    task = add(cache_ttl=60)
    for _ in range(2):
        assert chain(task.s(1), task.s(5)).apply().get() == 7
        assert group(task.s(1), task.s(2)).apply().get() == [2, 3]
    assert body.runs == [(1, 1), (2, 5), (2, 1)]


@pytest.mark.parametrize("error", [Ignore(), Reject("no"), SoftTimeLimitExceeded()])
def test_what_concerns_one_run_alone_is_never_kept(add: Callable[..., Any], body: Body, error: Exception) -> None:
    task = add(cache_ttl=60, cache_errors=(Exception,))
    body.raises = [error]
    task.apply((1,))
    assert task.apply((1,)).get() == 2
    assert len(body.runs) == 2


def test_a_retry_reaches_celery_and_only_the_last_outcome_is_kept(app: Celery, body: Body) -> None:
    @app.task(bind=True, name="unit.retrying", shared=False, cache_ttl=60, max_retries=3)
    def retrying(self: Any, number: int) -> Any:
        try:
            return body(number)
        except ValueError as error:
            raise self.retry(exc=error, countdown=0) from None

    body.raises = [ValueError(), ValueError()]
    assert retrying.apply((5,)).get() == 5
    assert retrying.apply((5,)).get() == 5
    assert len(body.runs) == 3


def test_autoretry_and_throws_work_as_without_the_cache(add: Callable[..., Any], body: Body) -> None:
    task = add(cache_ttl=60, autoretry_for=(ValueError,), retry_kwargs={"countdown": 0}, throws=(KeyError,))
    body.raises = [ValueError(), KeyError("expected")]
    result = task.apply((1,))
    assert result.state == "FAILURE"
    with pytest.raises(KeyError):
        result.get()
    assert task.apply((1,)).get() == 2
    assert len(body.runs) == 3


@pytest.mark.parametrize(
    ("kept", "raised", "runs"),
    [(True, KeyError, 1), (5.0, KeyError, 1), (KeyError, KeyError, 1), ((OSError,), KeyError, 2), (False, KeyError, 2)],
)
def test_errors_are_kept_as_the_option_says(
    add: Callable[..., Any], body: Body, kept: Any, raised: type[Exception], runs: int
) -> None:
    task = add(cache_ttl=60, cache_errors=kept)
    body.raises = [raised("one"), raised("two")]
    states = [task.apply((1,)).state for _ in range(2)]
    assert states == ["FAILURE", "FAILURE"]
    assert len(body.runs) == runs


def test_a_call_that_cannot_be_named_runs_without_the_cache(
    app: Celery, body: Body, caplog: pytest.LogCaptureFixture
) -> None:
    @app.task(name="unit.unkeyable", shared=False, cache_ttl=60, serializer="pickle")
    def unkeyable(thing: Any) -> int:
        return body(1)  # type: ignore[no-any-return] # a number

    assert [unkeyable.apply((object(),)).get() for _ in range(2)] == [1, 1]
    assert "is not cached" in caplog.text


def test_a_key_template_names_the_entry(app: Celery, add: Callable[..., Any], body: Body) -> None:
    task = add(cache_ttl=60, cache_key="sum-of-{left}", cache_tags=("left:{left}",))
    assert (task.apply((1, 1)).get(), task.apply((1, 5)).get()) == (2, 2)
    cache = celery_ext.config.runtime(app).cache
    assert cache.sync.get("sum-of-1") == 2
    assert cache.sync.invalidate_tag("left:1") == 1
    assert task.apply((1, 5)).get() == 6


def test_invalidate_forgets_one_call(add: Callable[..., Any], body: Body) -> None:
    task = add(cache_ttl=60)
    task.apply((1,))
    assert task.invalidate(left=1)
    assert not task.invalidate(1)
    task.apply((1,))
    assert len(body.runs) == 2


class Sent(Exception):  # noqa: N818 - it says that the call went to the broker
    """Raised instead of sending."""


@pytest.fixture
def hit(app: Celery, add: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> Any:
    """A task whose call with 1 is cached, in an app that cannot send."""
    task = add(cache_ttl=60)
    task.apply((1,))

    def send(*_: Any, **__: Any) -> None:
        raise Sent

    monkeypatch.setattr(app, "send_task", send)
    return task


def test_a_plain_call_is_answered_where_it_is_sent(hit: Any, app: Celery) -> None:
    result = hit.apply_async((1,), task_id="mine")
    assert (result.id, result.get(timeout=0), result.state, result.ready()) == ("mine", 2, "SUCCESS", True)
    assert app.AsyncResult("mine").get(timeout=1) == 2


@pytest.mark.parametrize(
    "call",
    [
        {"countdown": 1},
        {"link": "something"},
        {"link_error": "something"},
        {"chord": {}, "retries": 1},
        {"chain": ["something"]},
        {"cache": False},
    ],
)
def test_a_call_that_is_part_of_something_is_sent(hit: Any, call: dict[str, Any]) -> None:
    with pytest.raises(Sent):
        hit.apply_async((1,), **call)


def test_a_miss_and_a_cached_error_are_sent(hit: Any, app: Celery, body: Body) -> None:
    with pytest.raises(Sent):
        hit.delay(2)


def test_hits_are_stored_unless_told_otherwise(hit: Any, app: Celery) -> None:
    ignored = hit.apply_async((1,), ignore_result=True)
    assert ignored.ignored
    assert app.AsyncResult(ignored.id).state == "PENDING"


@pytest.mark.parametrize(("setting", "sent"), [("slotline_cache_on_send", True), ("slotline_cache_store_hits", False)])
def test_settings_turn_the_sending_side_off(app: Celery, hit: Any, setting: str, *, sent: bool) -> None:
    app.conf[setting] = False
    celery_ext.config._runtimes.pop(app)
    celery_ext.config.runtime(app)._cache = cache = InMemoryCacheAdapter()
    key = celery_ext.cache.entry_key(hit, hit.slotline_options, (1,), {})
    assert key is not None
    cache.sync.set(key, 2)
    if sent:
        with pytest.raises(Sent):
            hit.delay(1)
    else:
        result = hit.delay(1)
        assert result.get(timeout=0) == 2
        assert app.AsyncResult(result.id).state == "PENDING"


class OwnCache(BaseCacheAdapter):
    """What a user might bring: nothing but the six methods."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}
        self.away = False

    async def get_or_create(self, key: str, creator: Any, ttl_seconds: float | None = 3600) -> Any:
        if key not in self.values:
            value = creator()
            self.values[key] = await value if hasattr(value, "__await__") else value
        return self.values[key]

    async def get(self, key: str) -> Any:
        if self.away:
            raise StoreUnavailableError("own", "the test says so")
        return self.values.get(key)

    async def set(self, key: str, value: Any, ttl_seconds: float | None = 3600) -> None:
        self.values[key] = value

    async def invalidate(self, key: str) -> bool:
        return self.values.pop(key, None) is not None

    async def clear(self) -> None:
        self.values.clear()

    def get_stats(self) -> dict[str, Any]:
        return {}


def test_a_cache_of_the_users_own_serves_as_well(app: Celery, add: Callable[..., Any], body: Body) -> None:
    app.conf.slotline_cache = cache = OwnCache()
    task = add(cache_ttl=60, autoretry_for=(ValueError,), retry_kwargs={"countdown": 0})
    body.raises = [ValueError()]
    assert [task.apply((1,)).get() for _ in range(2)] == [2, 2]
    assert len(body.runs) == 2
    assert task.delay(1).get(timeout=0) == 2
    assert task.invalidate(1)
    assert cache.values == {}
    assert set(body.threads) == {threading.get_ident()}, "a body runs where Celery runs it"
    cache.sync.close()


def test_a_cache_that_is_away_does_not_stop_a_call(
    app: Celery, add: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    app.conf.slotline_cache = cache = OwnCache()
    task = add(cache_ttl=60)
    cache.away = True

    def send(*_: Any, **__: Any) -> None:
        raise Sent

    monkeypatch.setattr(app, "send_task", send)
    with pytest.raises(Sent):
        task.delay(1)
    cache.sync.close()


def test_options_of_a_call_travel_in_a_header_and_survive_a_retry(
    app: Celery, add: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    task = add(cache_ttl=60)
    sent: list[dict[str, Any]] = []
    monkeypatch.setattr(app, "send_task", lambda *_, **options: sent.append(options))
    task.apply_async((1,), cache_ttl=5, headers={"other": 1}, queue="q")
    assert sent[-1]["headers"] == {"other": 1, "slotline": {"cache_ttl": 5}}
    assert "cache_ttl" not in sent[-1]
    task.s(1).set(pool="p", pool_size=2).apply_async()
    assert sent[-1]["headers"] == {"slotline": {"pool": "p", "pool_size": 2}}
    task.apply_async((1,), headers={"slotline": {"cache_ttl": 5}}, cache_errors=True)
    assert sent[-1]["headers"] == {"slotline": {"cache_ttl": 5, "cache_errors": True}}


def test_a_task_without_a_slot_says_so(add: Callable[..., Any]) -> None:
    task = add()
    assert task.slot is None
    told = {"key": "k", "token": "t", "owner": "o", "fence": 3}
    slot = slot_of(type("Request", (), {"delivery_info": {"slotline": told}}))
    assert slot == celery_ext.TaskSlot(**told)


def test_a_task_is_found_by_its_place_in_another_process() -> None:
    name = TaskName(module_task.name, __name__, "module_task")
    assert pickle.loads(pickle.dumps(name)).find() is module_task


def test_leases_run_bodies_in_threads_with_their_request(app: Celery) -> None:
    app.conf.slotline_executors = {"io": {"backend": "thread", "max_pools": 1}}
    seen: list[Any] = []

    @app.task(bind=True, name="unit.leased", shared=False, executor="io", autoretry_for=(ValueError,), max_retries=2)
    def leased(self: Any, number: int) -> int:
        seen.append((threading.current_thread().name, self.request.id, self.request.retries))
        if self.request.retries < 1:
            raise ValueError
        return number

    leased.default_retry_delay = 0
    try:
        result = leased.apply((4,))
        assert result.get() == 4
        assert {task_id for _, task_id, _ in seen} == {result.id}
        assert all(thread.startswith("leasepool") for thread, _, _ in seen)
        assert [retries for *_, retries in seen] == [0, 1]
        assert leased(3) == 3 if seen.clear() else True
    finally:
        celery_ext.config.runtime(app).close()


def test_a_retry_is_an_error_of_its_own() -> None:
    assert Retry in celery_ext.cache.CONTROL_FLOW


_module_app = Celery("unit-module", set_as_current=False)
_module_app.Task = celery_ext.Task


@_module_app.task(shared=False, name="unit.module_task", lazy=False)
def module_task() -> None:
    """Do nothing."""
