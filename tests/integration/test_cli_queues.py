"""The operator's commands as subcommands of ``taskiq`` and ``celery``, beside real workers with parked tasks."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
from celery import chord
from celery.exceptions import ChordError, TaskRevokedError

from slotline import MessagePurgedError, Pool, RedisStore
from slotline.pools import Room
from taskiq_ext.command import SlotlineCommand
from tests.harness.waiting import await_until, wait_until

TASKIQ_APP = """
    from taskiq_redis import ListQueueBroker, RedisAsyncResultBackend
    from slotline import RedisStore
    from taskiq_ext import PoolLimitMiddleware

    URL = {url!r}
    broker = (
        ListQueueBroker(URL, queue_name="cli-taskiq")
        .with_result_backend(RedisAsyncResultBackend(URL, result_ex_time=60))
        .with_middlewares(PoolLimitMiddleware(RedisStore(URL, prefix="mine")))
    )

    @broker.task(pool="one", pool_size=1)
    async def echo(number: int) -> int:
        return number

"""
CELERY_APP = """
    from celery import Celery

    app = Celery("cli", broker={url!r}, backend={url!r}, task_cls="celery_ext:Task", set_as_current=False)
    app.conf.slotline_redis_url = {url!r}
    app.conf.slotline_prefix = "mine"
    app.conf.result_expires = 60

    @app.task(pool="one", pool_size=1, shared=False)
    def echo(number):
        return number

    @app.task(shared=False)
    def total(numbers):
        return sum(numbers)
"""
EMBEDDED = """
    from celery import Celery
    from taskiq import InMemoryBroker
    from taskiq_ext import PoolLimitMiddleware

    app = Celery("embedded", broker="memory://", set_as_current=False)
    broker = InMemoryBroker().with_middlewares(PoolLimitMiddleware())
"""


@pytest.fixture
def shell(tmp_path: Path):
    """Run a command in the applications' directory; returns its exit status and what it wrote."""

    def run(*argv: str) -> tuple[int, str, str]:
        command = [sys.executable, "-m", *argv]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
        return done.returncode, done.stdout, done.stderr

    return run


@pytest.fixture
def pool(redis_url: str):
    """The pool of the applications, whose only slot is taken."""
    store = RedisStore(redis_url, prefix="mine")
    pool = Pool("one", 1, store=store)
    held = pool.sync.acquire(owner="the test")
    yield pool
    pool.sync.release(held)
    store.sync.close()


def watch(shell, *command: str, task_id: str) -> None:
    """Look at three parked tasks, and let them run by making the pool larger."""

    def ask(*argv: str):
        status, out, err = shell(*command, *argv, "--json")
        assert status == 0, err
        return json.loads(out)

    (row,) = ask("pools")
    assert (row["pool"], row["limit"], row["used"], row["waiting"]) == ("one", 1, 1, 3)
    (answer,) = ask("explain", task_id)
    assert (answer["state"], answer["ahead"], answer["holders"]) == ("waiting", 2, ["the test"])
    assert task_id in answer["owner"]
    assert ask("resize", "one", "2")["before"] == 1


@pytest.mark.leaves("keys", reason="the broker's queue")
async def test_taskiq_has_the_commands_on_the_store_of_its_broker(
    app_module, taskiq_worker, redis_url, pool, shell
) -> None:
    name = app_module(TASKIQ_APP.format(url=redis_url))
    taskiq_worker(f"{name}:broker", workers=1)
    module = importlib.import_module(name)
    await module.broker.startup()
    sent = []
    for waiting in range(3):  # one after the other: a worker takes several messages at once, in any order
        sent.append(await module.echo.kiq(waiting))
        await await_until("it is parked", lambda: pool.sync.info().waiting == len(sent), 30)
    watch(shell, "taskiq", "slotline", f"{name}:broker", task_id=sent[2].task_id)
    assert [(await task.wait_result(timeout=30)).return_value for task in sent] == [0, 1, 2]
    await module.broker.shutdown()
    await module.broker.middlewares[0].store.close()


@pytest.mark.leaves("keys", reason="the broker's bindings")
def test_celery_has_the_commands_on_the_store_of_its_app(app_module, celery_worker, redis_url, pool, shell) -> None:
    name = app_module(CELERY_APP.format(url=redis_url))
    celery_worker(name, pool="threads")
    module = importlib.import_module(name)
    sent = [module.echo.delay(number) for number in range(3)]
    wait_until("all are parked", lambda: pool.sync.info().waiting == 3, 30)
    watch(shell, "celery", "-A", name, "slotline", task_id=sent[2].id)
    assert [result.get(timeout=30) for result in sent] == [0, 1, 2]
    module.app.close()


@pytest.mark.leaves("keys", reason="the broker's queue")
async def test_taskiq_gives_what_it_purges_an_error_as_its_result(
    app_module, taskiq_worker, redis_url, pool, shell
) -> None:
    name = app_module(TASKIQ_APP.format(url=redis_url))
    taskiq_worker(f"{name}:broker", workers=1)
    module = importlib.import_module(name)
    await module.broker.startup()
    sent = [await module.echo.kiq(number) for number in range(3)]
    await await_until("all are parked", lambda: pool.sync.info().waiting == 3, 30)
    room = Room(pool.store, ["of nobody"])
    room.sync.park(pool, b"another's", lane="of nobody")
    status, out, err = shell("taskiq", "slotline", f"{name}:broker", "purge", "one", "--yes", "--json")
    assert (status, json.loads(out)) == (0, {"pool": "one", "removed": 3, "stay": 1}), err
    for task in sent:
        result = await task.wait_result(timeout=30)
        assert isinstance(result.error, MessagePurgedError)
        assert result.error.key == "one"
    assert pool.sync.purge() == 1
    await module.broker.shutdown()
    await module.broker.middlewares[0].store.close()


@pytest.mark.leaves("keys", reason="the broker's bindings")
def test_celery_revokes_what_it_purges_and_a_chord_fails(app_module, celery_worker, redis_url, pool, shell) -> None:
    name = app_module(CELERY_APP.format(url=redis_url))
    celery_worker(name, pool="threads")
    module = importlib.import_module(name)
    plain = module.echo.delay(0)
    total = chord([module.echo.s(number) for number in range(2)], module.total.s()).apply_async()
    wait_until("all are parked", lambda: pool.sync.info().waiting == 3, 30)
    room = Room(pool.store, ["of nobody"])
    room.sync.park(pool, b"another's", lane="of nobody")
    status, out, err = shell("celery", "-A", name, "slotline", "purge", "one", "--yes", "--json")
    assert (status, json.loads(out)) == (0, {"pool": "one", "removed": 3, "stay": 1}), err
    with pytest.raises(TaskRevokedError, match="removed while it was parked for pool 'one', and has not run"):
        plain.get(timeout=30)
    assert plain.state == "REVOKED"
    wait_until("the chord has failed", lambda: total.state == "FAILURE", 30)
    assert isinstance(total.result, ChordError)
    assert "removed while it was parked" in str(total.result)
    assert pool.sync.purge() == 1
    module.app.close()


def test_an_embedded_store_is_refused_with_the_setting_that_names_a_server(app_module, shell) -> None:
    name = app_module(EMBEDDED)
    for command, setting in (
        (("taskiq", "slotline", f"{name}:broker", "pools"), "PoolLimitMiddleware(RedisStore(url))"),
        (("celery", "-A", name, "slotline", "pools"), "slotline_redis_url"),
        (("slotline", "pools"), "SLOTLINE_REDIS_URL"),
    ):
        status, out, err = shell(*command)
        assert (status, out) == (1, "")
        assert "in each process's own memory here; name a server:" in err
        assert setting in err


@pytest.mark.parametrize(
    ("argv", "problem"),
    [
        (["{name}:nothing", "pools"], "cannot be imported"),
        (["nowhere:broker", "pools"], "cannot be imported"),
        (["{name}:app", "pools"], "must be a broker, and is of <class 'celery.app.base.Celery'>"),
        (["pools"], "usage: taskiq slotline MODULE:BROKER"),
        ([], "usage: taskiq slotline MODULE:BROKER"),
    ],
)
def test_taskiq_says_what_is_wrong_with_the_broker_that_is_named(app_module, capsys, argv, problem) -> None:
    name = app_module(EMBEDDED)
    assert SlotlineCommand().exec([part.format(name=name) for part in argv]) == 2
    assert problem in capsys.readouterr().err


def test_help_is_there_without_a_broker(capsys) -> None:
    assert SlotlineCommand().exec(["--help"]) == 0
    assert "usage: taskiq slotline MODULE:BROKER" in capsys.readouterr().out
