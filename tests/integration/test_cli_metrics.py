"""The state of all pools for Prometheus, as the operator's commands show it."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator

import pytest

from slotline import Pool, RedisStore
from slotline.cli import main
from tests.harness.ports import free_port
from tests.harness.waiting import wait_until

CELERY_APP = """
    from celery import Celery

    app = Celery("cli", broker={url!r}, task_cls="celery_ext:Task", set_as_current=False)
    app.conf.slotline_redis_url = {url!r}
    app.conf.slotline_pools = {{"declared": 4}}

    @app.task(pool="task:{{tenant}}", pool_size=1, shared=False)
    def echo(tenant):
        return tenant
"""


def test_pools_are_shown_under_the_names_that_are_given(store, run):
    with Pool("cli:acme", 2, store=store), Pool("cli:wayne", 3, store=store), Pool("unknown-42", 1, store=store):
        status, out, err = run("metrics", "--name", "cli:{tenant}")
        facts = json.loads(run("--json", "metrics", "--name", "cli:{tenant}")[1])
    assert (status, err) == (0, "")
    assert 'slotline_pool_slots{pool="cli:{tenant}",state="used"} 2.0' in out
    assert 'slotline_pool_limit{pool="cli:{tenant}"} 5.0' in out
    assert 'slotline_pool_slots{pool="other",state="used"} 1.0' in out
    assert "acme" not in out
    assert "42" not in out
    assert {"pool": "cli:{tenant}", "used": 2, "waiting": 0, "limit": 5} in facts


def test_pools_that_only_have_a_rate_have_no_limit(store, run):
    with Pool("cli-rated", None, rate="100/s", store=store):
        out = run("metrics", "--name", "cli-rated")[1]
    assert 'slotline_pool_slots{pool="cli-rated",state="used"} 1.0' in out
    assert 'slotline_pool_limit{pool="cli-rated"}' not in out


@pytest.mark.parametrize("name", ["a{", "{0}"])
def test_a_name_that_is_no_template_is_refused(run, name):
    status, _, err = run("metrics", "--name", name)
    assert status == 2
    assert "--name=" in err


def test_a_library_that_is_missing_is_named_with_its_extra(run, monkeypatch):
    monkeypatch.setattr("slotline.metrics.exporter.find_spec", lambda _: None)
    status, _, err = run("metrics")
    assert status == 1
    assert "slotline[metrics]" in err
    assert run("--json", "metrics")[0] == 0


def test_a_port_that_is_taken_is_said(run):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        status, _, err = run("metrics", "--port", str(taken.getsockname()[1]))
    assert status == 1
    assert "nothing can be served" in err


def test_a_port_that_there_cannot_be_is_said(run):
    status, _, err = run("metrics", "--port", "70000")
    assert status == 1
    assert "nothing can be served" in err


INTERRUPTIBLE = """
import signal, sys
from slotline.cli import main
signal.signal(signal.SIGINT, signal.default_int_handler)  # what a shell starts in the background ignores it
sys.exit(main())
"""


@contextlib.contextmanager
def killed(process: subprocess.Popen[str]) -> Iterator[None]:
    """Leave no process behind, however the test ends."""
    try:
        yield
    finally:
        process.kill()


def test_it_serves_until_it_is_interrupted(redis_url, store):
    port = free_port()
    arguments = ["--redis-url", redis_url, "metrics", "--port", str(port), "--name", "served"]
    command = [sys.executable, "-c", INTERRUPTIBLE, *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as serving, killed(serving):
        assert serving.stdout is not None
        assert serving.stdout.readline() == f"Serving http://127.0.0.1:{port}/metrics\n"

        def shown() -> str:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
                return answer.read().decode()

        with Pool("served", 1, store=store):
            wait_until("it is in use", lambda: 'slotline_pool_slots{pool="served",state="used"} 1.0' in shown())
        wait_until("it is free", lambda: 'slotline_pool_slots{pool="served",state="used"} 0.0' in shown())
        serving.send_signal(signal.SIGINT)
        assert serving.wait(10) == 130


def test_celery_calls_pools_by_what_the_tasks_of_the_app_declare(app_module, redis_url, store, tmp_path):
    name = app_module(CELERY_APP.format(url=redis_url))
    with Pool("task:acme", 1, store=store), Pool("declared", 4, store=store):
        command = [sys.executable, "-m", "celery", "-A", name, "slotline", "metrics"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert 'slotline_pool_slots{pool="task:{tenant}",state="used"} 1.0' in done.stdout
    assert 'slotline_pool_limit{pool="declared"} 4.0' in done.stdout


def test_a_store_in_one_process_has_nothing_to_show(capsys):
    assert main(["metrics"]) == 1
    assert "SLOTLINE_REDIS_URL" in capsys.readouterr().err


@pytest.fixture
def store(redis_url):
    made = RedisStore(redis_url)
    yield made
    made.sync.close()
