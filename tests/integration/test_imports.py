"""Each package imports without the frameworks that it does not need, and importing starts nothing."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.harness.workers import ROOT

BLOCKER = """
import importlib, importlib.abc, pkgutil, sys, threading, os

class Blocker(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in BLOCKED:
            raise ModuleNotFoundError(f"{name} is blocked", name=name)

BLOCKED = set(sys.argv[2].split(","))
sys.meta_path.insert(0, Blocker())
top = importlib.import_module(sys.argv[1])
"""

EVERY_MODULE = """
SKIPPED = set(filter(None, sys.argv[3].split(",")))
names = [module.name for module in pkgutil.walk_packages(top.__path__, top.__name__ + ".")]
assert len(names) > 5, names
for name in names:
    if not any(name == skipped or name.startswith(skipped + ".") for skipped in SKIPPED):
        importlib.import_module(name)
"""

USE_A_POOL = """
with top.Pool("things", 1, store=top.MemoryStore()) as slot:
    print(slot.token)
"""

NOTHING_RUNS = """
import asyncio, multiprocessing
assert threading.enumerate() == [threading.main_thread()], threading.enumerate()
assert multiprocessing.active_children() == []
assert asyncio.get_event_loop_policy()._local._loop is None
sockets = [fd for fd in os.listdir("/proc/self/fd") if "socket" in os.path.realpath("/proc/self/fd/" + fd)]
assert not sockets, sockets
"""

FEW_NEED = """
loaded = {"slotline.leases.manager", "slotline.stores.memory"} & set(sys.modules)
assert not loaded, loaded
"""

ALL = (
    "taskiq",
    "taskiq_redis",
    "celery",
    "kombu",
    "billiard",
    "redis",
    "hiredis",
    "prometheus_client",
    "opentelemetry",
)


def run(code, package, *, without, skipping=(), flags=("-W", "error")):
    done = subprocess.run(
        [sys.executable, *flags, "-c", BLOCKER + code, package, ",".join(without), ",".join(skipping)],
        cwd=ROOT / "shared", env={**os.environ, "PYTHONPATH": str(ROOT)}, stdin=subprocess.DEVNULL,
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_pool_in_memory_needs_no_framework_and_no_redis():
    assert run(USE_A_POOL, "slotline", without=ALL).strip()


def test_no_module_of_the_core_needs_a_queue_framework():
    run(EVERY_MODULE, "slotline", without=("taskiq", "celery", "kombu", "taskiq_ext", "celery_ext"))


def test_taskiq_extension_needs_neither_celery_nor_redis_nor_billiard():
    run(EVERY_MODULE, "taskiq_ext", without=("celery", "kombu", "redis", "billiard", "celery_ext"))


def test_celery_extension_needs_neither_taskiq_nor_redis():
    run(EVERY_MODULE, "celery_ext", without=("taskiq", "redis", "taskiq_ext"), flags=())


@pytest.mark.parametrize("package", ["slotline", "taskiq_ext", "celery_ext"])
def test_importing_starts_no_thread_no_process_no_loop_and_opens_no_connection(package):
    run(EVERY_MODULE + NOTHING_RUNS, package, without=("nothing",), flags=())


def test_a_celery_worker_starts_without_what_only_some_applications_use():
    run(FEW_NEED, "celery_ext", without=("nothing",), flags=())


def test_redis_store_without_the_extra_says_what_is_missing():
    code = """
try:
    top.RedisStore("redis://127.0.0.1:1")
except ImportError as error:
    print(error)
"""
    assert "redis" in run(code, "slotline", without=("redis",))
