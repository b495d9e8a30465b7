"""Worker processes of both queues can be started, watched, killed, and never stay behind."""

from __future__ import annotations

import importlib
import os
import signal

import psutil
import pytest

from tests.harness.processes import gone
from tests.harness.waiting import await_until, wait_until
from tests.harness.workers import CeleryWorker, TaskiqWorker

TASKIQ_APP = """
    import os
    from taskiq_redis import RedisAsyncResultBackend, RedisStreamBroker

    URL = {url!r}
    # redis-py 8 on Python 3.11 loses cancellations when it has a socket timeout, and then this broker never stops.
    broker = RedisStreamBroker(URL, queue_name="taskiq-harness", socket_timeout=None).with_result_backend(
        RedisAsyncResultBackend(URL, result_ex_time=60)
    )

    @broker.task
    async def whoami() -> int:
        return os.getpid()
"""

CELERY_APP = """
    import os, time
    from celery import Celery

    app = Celery("harness", broker={url!r}, backend={url!r})
    app.conf.task_default_queue = "celery-harness"
    app.conf.broker_connection_retry_on_startup = True

    @app.task
    def whoami():
        return os.getpid()

    @app.task
    def nap(seconds):
        print("napping", flush=True)
        time.sleep(seconds)
"""


async def test_taskiq_worker_runs_tasks_of_a_module_that_the_test_wrote(app_module, redis_url, taskiq_worker):
    name = app_module(TASKIQ_APP.format(url=redis_url))
    module = importlib.import_module(name)
    worker = taskiq_worker(f"{name}:broker", workers=2)
    await module.broker.startup()
    try:
        task = await module.whoami.kiq()
        result = await task.wait_result(timeout=20)
    finally:
        await module.broker.shutdown()
    assert result.return_value in worker.children()
    assert len(worker.children()) == 2


async def test_killed_taskiq_child_is_replaced(app_module, redis_url, taskiq_worker):
    name = app_module(TASKIQ_APP.format(url=redis_url))
    worker = taskiq_worker(f"{name}:broker", workers=1)
    (first,) = worker.children()
    assert worker.kill_child() == first
    await await_until("another child runs", lambda: worker.children() not in ([], [first]), timeout=20)
    assert worker.alive


def test_terminated_taskiq_worker_ends_by_itself(app_module, redis_url, taskiq_worker):
    worker = taskiq_worker(f"{app_module(TASKIQ_APP.format(url=redis_url))}:broker")
    worker.terminate()
    wait_until("all processes have ended", lambda: not worker.processes(), timeout=20)
    assert "Shutting down the broker." in worker.log


@pytest.mark.parametrize("pool", ["prefork", "threads", "solo", "gevent"])
def test_celery_worker_runs_tasks_in_every_pool(pool, app_module, redis_url, celery_worker):
    name = app_module(CELERY_APP.format(url=redis_url))
    worker = celery_worker(name, pool=pool)
    module = importlib.import_module(name)
    with module.app:
        runner = module.whoami.delay().get(timeout=20)
    assert runner in (worker.children() if pool == "prefork" else [worker.pid])


def test_killed_celery_worker_leaves_nothing(app_module, redis_url, tmp_path):
    with CeleryWorker(app_module(CELERY_APP.format(url=redis_url)), tmp_path, pool="prefork") as worker:
        family = [worker.pid, *worker.children()]
        assert len(family) == 3
        worker.kill()
        assert worker.returncode == -signal.SIGKILL
    assert gone(*family)


def test_paused_worker_stands_still_until_it_is_resumed(app_module, redis_url, celery_worker):
    worker = celery_worker(app_module(CELERY_APP.format(url=redis_url)), pool="solo")
    worker.pause()
    wait_until("the process is stopped", lambda: psutil.Process(worker.pid).status() == "stopped")
    worker.resume()
    wait_until("the process runs", lambda: psutil.Process(worker.pid).status() != "stopped")


def test_worker_that_cannot_start_fails_with_its_log(app_module, tmp_path):
    name = app_module("raise RuntimeError('no such luck')")
    with pytest.raises(AssertionError, match=r"before it was ready(.|\n)*no such luck"):
        CeleryWorker(name, tmp_path).start()
    with pytest.raises(AssertionError, match=r"(.|\n)*no such luck"):
        TaskiqWorker(f"{name}:broker", tmp_path, ready_timeout=10).start()


def test_worker_sees_slotline_and_the_extensions(app_module, tmp_path):
    name = app_module("import slotline, taskiq_ext, celery_ext, os\nraise RuntimeError('all imported')")
    with pytest.raises(AssertionError, match="all imported"):
        CeleryWorker(name, tmp_path).start()


def test_processes_that_left_the_session_are_ended_too(app_module, redis_url, celery_worker):
    source = """
        import subprocess, sys
        away = "import os, time; os.setsid(); print('away', flush=True); time.sleep(60)"
        subprocess.Popen([sys.executable, "-c", away])
    """
    name = app_module(CELERY_APP.format(url=redis_url).rstrip() + source.replace("\n        ", "\n    "))
    worker = celery_worker(name, pool="solo")
    worker.wait_log("away")
    stray = [process for process in worker.processes() if os.getsid(process.pid) != worker.pid]
    assert len(stray) == 1
    worker.close()
    wait_until("the stray process has ended", lambda: not stray[0].is_running())
