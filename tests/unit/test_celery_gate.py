"""The gate's decisions, with a worker that is only pretended and slots in memory."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery
from celery.utils.log import get_logger
from celery.worker import state
from kombu.asynchronous.semaphore import LaxBoundedSemaphore

import celery_ext
from celery_ext.gate import Gate
from slotline.errors import InvalidOptionError, PoolFullError, PoolTimeoutError
from slotline.pools import demand as demand_module
from slotline.stores import MemoryStore

pytestmark = pytest.mark.lowest
celery_logger = get_logger(__name__)


class Timer:
    """Calls nothing by itself."""

    def __init__(self) -> None:
        self.entries: list[tuple[Callable[..., Any], tuple[Any, ...]]] = []

    def call_after(self, seconds: float, function: Callable[..., Any], args: tuple[Any, ...] = ()) -> None:
        self.entries.append((function, args))

    def fire(self) -> None:
        entries, self.entries = self.entries, []
        for function, args in entries:
            function(*args)


class Qos:
    held = 0

    def increment_eventually(self) -> None:
        self.held += 1

    def decrement_eventually(self) -> None:
        self.held -= 1


class Pool:
    uses_semaphore = True


class Hub:
    def add_reader(self, descriptor: int, callback: Callable[..., None]) -> None:
        pass


class Consumer:
    controller: Worker

    def __init__(self, on_task_request: Any) -> None:
        self.on_task_request, self.timer, self.qos, self.pool, self.hub = on_task_request, Timer(), Qos(), Pool(), Hub()
        self.task_buckets: dict[str, Any] = {}

    def call_soon(self, function: Callable[[], None]) -> None:
        function()

    def add_task_queue(self, queue: str) -> None:
        pass

    cancel_task_queue = add_task_queue


class Worker:
    """A prefork worker with ``processes`` processes; what it runs ends when the test says so."""

    def __init__(self, app: Celery, processes: int) -> None:
        self.app = app
        self.ran: list[Request] = []
        self.semaphore = LaxBoundedSemaphore(processes)
        self._quick_acquire, self._quick_release = self.semaphore.acquire, self.semaphore.release
        self.consumer = Consumer(self._process_task_sem)
        self.consumer.controller = self
        self.gate = Gate(self, self.consumer)

    def _process_task_sem(self, request: Request) -> Any:
        return self._quick_acquire(self._process_task, request)

    def _process_task(self, request: Request) -> None:
        self.ran.append(request)

    def receive(self, request: Request) -> Request:
        state.task_reserved(request)
        self.consumer.on_task_request(request)
        return request

    def finish(self, request: Request) -> None:
        self._quick_release()
        request.on_success((0, None, 0.0))


class Request:
    """A request for a task, with the parts of Celery's that the gate uses."""

    numbers = iter(range(10**9))

    def __init__(self, task: Any, *args: Any, options: Any = None) -> None:
        self.task, self.args, self.kwargs = task, args, {}
        self.id, self.name = f"id-{next(self.numbers)}", task.name
        self.request_dict = {} if options is None else {"slotline": options}
        self.delivery_info: dict[str, Any] = {}
        self.message = self.chord = None
        self.expires = self.worker_pid = None
        self._already_revoked = self.acknowledged = False
        self.events: list[str] = []
        self.error: BaseException | None = None

    def revoked(self) -> bool:
        if self.id in state.revoked:
            self._already_revoked = True
        return self._already_revoked

    def acknowledge(self) -> None:
        self.acknowledged = True

    def send_event(self, name: str, **_: Any) -> None:
        self.events.append(name)

    def on_success(self, result: Any) -> None:
        self.acknowledge()

    def __str__(self) -> str:
        return self.id

    def on_failure(self, info: Any, **_: Any) -> None:
        celery_logger.error("as Celery does", exc_info=info.exc_info)
        self.error = getattr(info.exception, "exc", info.exception)
        state.task_ready(self)

    def on_accepted(self, pid: int, time_accepted: float) -> None:
        self.worker_pid = pid

    def on_timeout(self, soft: Any, timeout: Any) -> None:
        pass


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def app(store: MemoryStore) -> Iterator[Celery]:
    app = Celery("unit", broker="memory://", backend="cache+memory://", set_as_current=False)
    app.Task = celery_ext.Task
    app.conf.slotline_store = store
    app.task(lambda_like, name="unit.two", pool="two", pool_size=2, shared=False)
    app.task(one_argument, name="unit.keyed", pool="key:{key}", pool_size=1, shared=False)
    app.task(lambda_like, name="unit.free", shared=False)
    app.finalize()
    yield app
    state.reset_state()
    app.close()


def lambda_like() -> None:
    """Do nothing."""


def one_argument(key: str) -> None:
    """Do nothing."""


@pytest.fixture
def make_worker(app: Celery) -> Iterator[Callable[..., Worker]]:
    made: list[Worker] = []

    def make(processes: int = 100) -> Worker:
        made.append(Worker(app, processes))
        return made[-1]

    yield make
    for worker in made:
        worker.gate.close()


def test_what_is_delivered_again_gets_no_slot_that_another_run_has_left(app, make_worker):
    worker, asked = make_worker(), []
    worker.gate._running.relay.take = lambda _, owner: asked.append(owner)
    for again in (False, True):
        request = Request(app.tasks["unit.two"])
        request.delivery_info["redelivered"] = again
        worker.receive(request)
    assert (len(worker.ran), asked) == (2, [f"unit.two[{worker.ran[0].id}]"])


def test_what_has_no_limit_goes_on_at_once(app: Celery, make_worker: Callable[..., Worker]) -> None:
    worker = make_worker(2)
    request = worker.receive(Request(app.tasks["unit.free"]))
    assert worker.ran == [request]
    assert worker.gate.counts() == {"running": {}, "held": {}}


def test_held_requests_run_in_the_order_in_which_they_came(app: Celery, make_worker: Callable[..., Worker]) -> None:
    worker = make_worker(10)
    sent = [worker.receive(Request(app.tasks["unit.two"])) for _ in range(6)]
    assert worker.ran == sent[:2]
    assert worker.gate.counts() == {"running": {"two": 2}, "held": {"two": 4}}
    assert worker.consumer.qos.held == 4, "a held message lets the broker deliver another one"
    assert not any(request in state.reserved_requests for request in sent[2:])
    assert worker.semaphore.value == 8, "nobody who is held keeps a process"
    for position in range(6):
        worker.finish(sent[position])
        assert worker.ran == sent[: position + 3]
    assert worker.gate.counts() == {"running": {}, "held": {}}
    assert worker.consumer.qos.held == 0
    assert worker.semaphore.value == 10
    assert sent[5].delivery_info["slotline"]["fence"] > sent[0].delivery_info["slotline"]["fence"]


def test_thousands_of_held_requests_are_no_recursion(app: Celery, make_worker: Callable[..., Worker]) -> None:
    worker = make_worker(1)
    blocking = worker.receive(Request(app.tasks["unit.free"]))
    sent = [worker.receive(Request(app.tasks["unit.two"])) for _ in range(3000)]
    worker.finish(blocking)
    while len(worker.ran) < 3001:
        worker.finish(worker.ran[-1])
    assert worker.ran == [blocking, *sent]


def test_a_slot_is_not_taken_before_a_process_is_free(app: Celery, make_worker: Callable[..., Worker]) -> None:
    worker = make_worker(1)
    blocking = worker.receive(Request(app.tasks["unit.free"]))
    worker.receive(Request(app.tasks["unit.two"]))
    assert worker.gate.counts()["running"] == {}
    worker.finish(blocking)
    assert worker.gate.counts()["running"] == {"two": 1}


def test_a_granted_request_is_the_next_to_get_a_process(app: Celery, make_worker: Callable[..., Worker]) -> None:
    worker = make_worker(2)
    first = worker.receive(Request(app.tasks["unit.keyed"], "a"))
    held = worker.receive(Request(app.tasks["unit.keyed"], "a"))
    busy = worker.receive(Request(app.tasks["unit.free"]))
    late = worker.receive(Request(app.tasks["unit.free"]))
    first.on_success((0, None, 0.0))  # the slot is free, its process not yet
    worker._quick_release()
    assert worker.ran == [first, busy, held]
    worker.finish(busy)
    assert worker.ran == [first, busy, held, late]


@pytest.mark.parametrize(
    ("options", "error"), [({"pool_on_full": "fail"}, PoolFullError), ({"pool_timeout": 0}, PoolTimeoutError)]
)
def test_a_full_pool_refuses_who_does_not_wait(
    app: Celery,
    make_worker: Callable[..., Worker],
    caplog: pytest.LogCaptureFixture,
    options: dict[str, Any],
    error: type[Exception],
) -> None:
    caplog.set_level("INFO")
    worker = make_worker()
    first = worker.receive(Request(app.tasks["unit.keyed"], "a"))
    refused = worker.receive(Request(app.tasks["unit.keyed"], "a", options=options))
    assert worker.ran == [first]
    assert type(refused.error) is error
    assert refused.acknowledged
    assert f"{refused.id} does not run: {refused.error}" in caplog.text
    assert "Traceback" not in caplog.text
    assert worker.semaphore.value == 99


def test_a_dropped_request_is_acknowledged_without_a_result(app: Celery, make_worker: Callable[..., Worker]) -> None:
    worker = make_worker()
    worker.receive(Request(app.tasks["unit.keyed"], "a"))
    dropped = worker.receive(Request(app.tasks["unit.keyed"], "a", options={"pool_on_full": "drop"}))
    assert dropped.acknowledged
    assert dropped.error is None
    assert dropped.events == ["task-rejected"]


@pytest.mark.parametrize(("driver", "warns"), [("redis", False), ("amqp", True)])
def test_a_fixed_prefetch_count_is_warned_about_where_there_are_quorum_queues(
    app: Celery, make_worker: Callable[..., Worker], caplog: pytest.LogCaptureFixture, driver: str, warns: bool
) -> None:
    worker = make_worker()
    worker.consumer.qos_global = False
    worker.consumer.connection = SimpleNamespace(transport=SimpleNamespace(driver_type=driver))
    for _ in range(2):
        worker.receive(Request(app.tasks["unit.keyed"], "a"))
    assert worker.gate.counts()["held"] == {"key:a": 1}
    assert ("quorum queues" in caplog.text) is warns


def test_who_does_not_wait_does_not_overtake_who_does(app: Celery, make_worker: Callable[..., Worker]) -> None:
    worker = make_worker()
    worker.receive(Request(app.tasks["unit.two"]))
    worker.receive(Request(app.tasks["unit.two"]))
    worker.receive(Request(app.tasks["unit.two"]))
    hasty = worker.receive(Request(app.tasks["unit.two"], options={"pool_on_full": "fail", "pool_size": 3}))
    assert type(hasty.error) is PoolFullError


def test_a_request_whose_time_to_wait_is_over_fails(app: Celery, make_worker: Callable[..., Worker]) -> None:
    worker = make_worker()
    first = worker.receive(Request(app.tasks["unit.keyed"], "a"))
    late = worker.receive(Request(app.tasks["unit.keyed"], "a", options={"pool_timeout": 0.01}))
    behind = worker.receive(Request(app.tasks["unit.keyed"], "a"))
    time.sleep(0.02)
    worker.consumer.timer.fire()
    assert type(late.error) is PoolTimeoutError
    assert worker.consumer.qos.held == 1
    worker.finish(first)
    assert worker.ran == [first, behind]


def test_a_revoked_request_leaves_the_line(app: Celery, make_worker: Callable[..., Worker]) -> None:
    worker = make_worker()
    first, revoked, behind = (worker.receive(Request(app.tasks["unit.keyed"], "a")) for _ in range(3))
    state.revoked.add(revoked.id)
    worker.consumer.timer.fire()
    assert worker.gate.counts()["held"] == {"key:a": 1}
    worker.finish(first)
    assert worker.ran == [first, behind]


def test_nobody_looks_again_when_nothing_is_held(app: Celery, make_worker: Callable[..., Worker]) -> None:
    worker = make_worker()
    first, second = (worker.receive(Request(app.tasks["unit.keyed"], "a")) for _ in range(2))
    assert len(worker.consumer.timer.entries) == 1
    worker.finish(first)
    worker.finish(second)
    worker.consumer.timer.fire()
    assert worker.consumer.timer.entries == []


def test_what_is_let_go_is_neither_acknowledged_nor_run_and_keeps_no_slot(
    app: Celery, make_worker: Callable[..., Worker]
) -> None:
    worker = make_worker(1)
    first = worker.receive(Request(app.tasks["unit.keyed"], "a"))
    held = worker.receive(Request(app.tasks["unit.keyed"], "a"))
    worker._quick_release()
    blocking = worker.receive(Request(app.tasks["unit.free"]))
    first.on_success((0, None, 0.0))  # the held one has its slot now, and waits for a process
    worker.gate.let_go()
    worker.finish(blocking)
    assert worker.ran == [first, blocking]
    assert not held.acknowledged
    worker.gate.open()
    again = worker.receive(Request(app.tasks["unit.keyed"], "a"))
    assert worker.ran[-1] is again


def test_bad_options_in_a_message_are_its_result(app: Celery, make_worker: Callable[..., Worker]) -> None:
    worker = make_worker()
    request = worker.receive(Request(app.tasks["unit.free"], options={"pool_size": 0}))
    assert "pool_size=0" in str(request.error)
    assert request.acknowledged
    assert worker.semaphore.value == 100


def test_nothing_is_parked_in_the_memory_of_one_process(app: Celery, make_worker: Callable[..., Worker]) -> None:
    request = make_worker().receive(Request(app.tasks["unit.keyed"], "a", options={"pool_on_full": "park"}))
    assert "pool_on_full='park'" in str(request.error)
    app.task(lambda_like, name="unit.parked", pool="p", pool_size=1, pool_on_full="park", shared=False)
    with pytest.raises(InvalidOptionError, match="a store that processes share"):
        make_worker()


def test_only_so_many_pool_objects_are_kept(
    app: Celery, make_worker: Callable[..., Worker], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demand_module, "_KEPT", 3)
    worker = make_worker()
    for key in range(10):
        worker.receive(Request(app.tasks["unit.keyed"], key))
    assert len(worker.gate._limits._made) == 3
    for request in list(worker.ran):
        worker.finish(request)
    assert worker.gate.counts() == {"running": {}, "held": {}}
