"""A test that leaves something behind fails, with a text that names it, unless it says why it must."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.harness import leaks
from tests.harness.waiting import wait_until
from tests.harness.workers import ROOT


@pytest.fixture
def run(pytester, monkeypatch):
    """Run a test file under the harness in a process of its own and return its outcomes and output."""
    pytester.makeconftest((ROOT / "tests" / "conftest.py").read_text())
    pytester.makeini(
        "[pytest]\naddopts = -rs --strict-markers -p no:randomly -p no:cacheprovider -p no:anyio\n"
        "    -p no:hypothesispytest\n"
        "asyncio_mode = auto\nfilterwarnings = error\n"
        f"asyncio_default_fixture_loop_scope = function\npythonpath = {ROOT} {ROOT / 'shared'}\n"
    )
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{ROOT / 'shared'}")

    def run(source: str, *, patience: float = 0.1, **outcomes: int) -> str:
        monkeypatch.setenv("HARNESS_PATIENCE", str(patience))
        pytester.makepyfile(source)
        result = pytester.runpytest_subprocess(timeout=90)
        shown = result.stdout.str() + result.stderr.str()
        if outcomes:
            assert result.parseoutcomes() == outcomes, shown
        return shown

    return run


def test_clean_tests_pass(run):
    run(
        """
        import asyncio, subprocess, threading

        def test_thread():
            thread = threading.Thread(target=lambda: None); thread.start(); thread.join()

        def test_process():
            subprocess.run(["true"], check=True)

        async def test_default_executor():
            await asyncio.to_thread(lambda: None)

        def test_after_an_async_test():
            asyncio.run(asyncio.sleep(0))

        def test_keys(redis_client):
            redis_client.set("slotline:key", 1, ex=60)
            redis_client.sadd("_kombu.binding.celery", 1)
        """,
        passed=5,
    )


LEAVING = """
import asyncio, os, signal, subprocess, sys, threading

def test_key(redis_client):
    redis_client.set("slotline:for-ever", 1)

def test_key_in_the_tests_own_redis(own_redis):
    with own_redis.client() as client:
        client.set("slotline:own-for-ever", 1)
    own_redis.pause()

kept = []
def test_process(): kept.append(subprocess.Popen(["sleep", "77"]))
def test_after_process(): kept[0].kill(); kept[0].wait()

def test_orphan():
    script = "import subprocess; p = subprocess.Popen(['sleep', '66']); print(p.pid, flush=True); p.wait()"
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as child:
        kept.append(int(child.stdout.readline()))
        child.kill()
def test_after_orphan(): os.kill(kept[1], signal.SIGKILL)

end = threading.Event()
threads = [threading.Thread(target=end.wait, name="mine"),
           threading.Thread(target=end.wait, name="slotline-keeper", daemon=True),
           threading.Thread(target=end.wait, name="not-ours", daemon=True)]
def test_thread(): threads[0].start()
def test_daemon_of_slotline(): threads[1].start()
def test_daemon_of_others(): threads[2].start()
def test_after_threads(): end.set(); [thread.join() for thread in threads]

loops = []
def test_loop(): loops.append(asyncio.new_event_loop())
def test_after_loop(): loops[0].close()
"""


def test_what_a_test_leaves_is_its_error_and_is_named(run):
    text = run(LEAVING, passed=12, errors=7)
    said = {
        "test_key": "left 1 key(s) without a TTL in Redis: slotline:for-ever",
        "test_key_in_the_tests_own_redis": "left 1 key(s) without a TTL in Redis: slotline:own-for-ever",
        "test_process": "sleep 77",
        "test_orphan": "sleep 66",
        "test_thread": "left threads behind: <Thread(mine",
        "test_daemon_of_slotline": "left threads behind: <Thread(slotline-keeper",
        "test_loop": "left loops behind",
    }
    for name, words in said.items():
        _, _, report = text.partition(f"ERROR at teardown of {name} _")
        assert words in report.partition("ERROR at teardown")[0], name


def test_thread_that_is_ending_is_waited_for(run):
    source = """
        import threading, time
        def test_it(): threading.Thread(target=time.sleep, args=(0.3,)).start()
    """
    run(source, patience=10, passed=1)


def test_what_must_be_left_is_allowed_with_a_reason(run):
    source = """
        import pytest
        @pytest.mark.leaves("keys", "threads", reason="shows that it can be said")
        def test_it(redis_client): redis_client.set("slotline:for-ever", 1)
    """
    run(source, passed=1)


@pytest.mark.parametrize("mark", ['"keys"', 'reason="why"', '"keys", reason=" "', '"socks", reason="why"'])
def test_leaving_without_a_reason_or_a_known_kind_is_an_error(run, mark):
    text = run(f"import pytest\n@pytest.mark.leaves({mark})\ndef test_it(): pass")
    assert "leaves(" in text
    assert "passed" not in text


def test_test_that_needs_another_version_is_skipped_with_the_reason(run):
    source = """
        import pytest
        @pytest.mark.needs("pytest>=1000", reason="it is not made yet")
        def test_future(): assert False
        @pytest.mark.needs("pytest>=2", reason="it was made")
        def test_present(): pass
    """
    assert "needs pytest>=1000" in run(source, skipped=1, passed=1)
    text = run("import pytest\n@pytest.mark.needs('pytest>=2')\ndef test_it(): pass")
    assert "the reason is not optional" in text


def test_settings_do_not_outlive_a_test(run, monkeypatch):
    monkeypatch.setenv("SLOTLINE_PREFIX", "from-outside")
    source = """
        from slotline import settings
        def test_it(): assert settings.configure(prefix="mine").prefix == "mine"
        def test_next(): assert settings.current().prefix == "slotline"
    """
    run(source, passed=2)


def test_workers_log_is_shown_when_a_test_fails(run):
    source = """
        def test_it(app_module, celery_worker):
            name = app_module("from celery import Celery\\nprint('a word from the module')\\n"
                              "app = Celery(broker='memory://')")
            celery_worker(name, pool="solo")
            assert False
    """
    text = run(source, failed=1)
    assert "log of celery-" in text
    assert "a word from the module" in text


def test_servers_end_when_the_run_is_killed(tmp_path):
    script = (
        "import time\nfrom tests.harness.redis_server import RedisServer\n"
        "server = RedisServer()\nserver.start()\nprint(server.pid, flush=True)\ntime.sleep(60)\n"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, env=env, cwd=tmp_path) as run:
        server = psutil.Process(int(run.stdout.readline()))
        assert server.is_running()
        run.send_signal(signal.SIGKILL)
    wait_until("the server has ended", lambda: not server.is_running() or server.status() == "zombie")


def test_measure_counts_descriptors_and_threads():
    before = leaks.measure()
    with Path(os.devnull).open() as extra:
        assert leaks.measure().fds == before.fds + 1
        assert not extra.closed
    assert leaks.measure() == before


def test_a_test_whose_name_differs_in_each_process_is_an_error(run):
    text = run("import pytest\n@pytest.mark.parametrize('x', [object()], ids=repr)\ndef test_it(x): pass")
    assert "tried again by its name" in text
    assert "passed" not in text
