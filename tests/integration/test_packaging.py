"""The built distribution holds what it must, and works where only it and its dependencies are installed."""

from __future__ import annotations

import importlib
import tarfile
import zipfile
from email.parser import HeaderParser
from pathlib import Path

import pytest

from tests.harness.clean_env import CleanEnvironment, build
from tests.harness.workers import ROOT

PACKAGES = {
    "slotline": ROOT / "shared" / "slotline",
    "taskiq_ext": ROOT / "taskiq_ext",
    "celery_ext": ROOT / "celery_ext",
}


@pytest.fixture(scope="session")
def wheel(tmp_path_factory):
    return build("wheel", tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="session")
def contents(wheel):
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


@pytest.fixture(scope="session")
def install(wheel, tmp_path_factory):
    """A function that installs the wheel with the given extras, once for each choice."""
    made = {}

    def install(*extras, also=()):
        key = (extras, also)
        if key not in made:
            directory = tmp_path_factory.mktemp("-".join(("env", *extras)))
            made[key] = CleanEnvironment(directory / "venv", wheel, extras, also)
        return made[key]

    return install


def test_wheel_holds_every_file_of_the_three_packages_and_nothing_else(contents):
    expected = {
        f"{name}/{path.relative_to(directory)}"
        for name, directory in PACKAGES.items()
        for path in directory.rglob("*")
        if path.is_file() and path.suffix in {".py", ".lua", ".typed"}
    }
    assert {name for name in contents if ".dist-info/" not in name} == expected


def test_wheel_holds_scripts_and_type_markers(contents):
    assert {f"{package}/py.typed" for package in PACKAGES} <= contents
    assert "slotline/stores/scripts/pool_acquire.lua" in contents


def test_metadata_names_the_extras_the_licence_and_the_interpreters(wheel, contents):
    (path,) = (name for name in contents if name.endswith(".dist-info/METADATA"))
    with zipfile.ZipFile(wheel) as archive:
        metadata = HeaderParser().parsestr(archive.read(path).decode())
    assert {"redis", "taskiq", "celery", "metrics", "otel", "all", "dev"} <= set(metadata.get_all("Provides-Extra"))
    assert metadata["Requires-Python"] == ">=3.11"
    assert metadata["License-Expression"] == "MIT"
    assert metadata.get_payload().startswith("# Slotline")
    assert any(name.endswith("/LICENSE") for name in contents)


def test_source_distribution_builds_the_same_wheel(contents, tmp_path):
    sdist = build("sdist", tmp_path / "sdist")
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path / "tree", filter="data")
    (tree,) = (tmp_path / "tree").iterdir()
    for part in ("README.md", "LICENSE", "Makefile", "tests/conftest.py", "shared/slotline/py.typed"):
        assert (tree / part).is_file(), part
    with zipfile.ZipFile(build("wheel", tmp_path / "again", root=tree)) as again:
        assert set(again.namelist()) == contents


POOL = """
import asyncio, sys, pathlib, slotline
assert pathlib.Path(slotline.__file__).is_relative_to(sys.prefix), slotline.__file__
pool = slotline.Pool("things", 1, store=slotline.MemoryStore())
with pool:
    try:
        with pool:
            raise SystemExit("two holders of one slot")
    except slotline.PoolFullError as full:
        print(full)
async def main():
    async with pool:
        print(await pool.size())
asyncio.run(main())
for framework in ("redis", "taskiq", "celery", "billiard"):
    try:
        __import__(framework)
    except ImportError:
        continue
    raise SystemExit(framework + " is installed here")
"""


def test_pool_works_with_nothing_but_the_required_dependencies(install, tmp_path):
    printed = install().run("-W", "error", "-c", POOL, cwd=tmp_path).splitlines()
    assert printed[0].startswith("Pool 'things' is full")
    assert printed[1:] == ["1"]


def test_wheel_installs_only_what_it_asks_for(install):
    assert install().names == {"pydantic", "pydantic-core", "annotated-types", "typing-extensions", "typing-inspection"}


TASKIQ = """
import asyncio, sys, pathlib, taskiq_ext
from taskiq import InMemoryBroker
from taskiq_ext import CacheMiddleware
assert pathlib.Path(taskiq_ext.__file__).is_relative_to(sys.prefix), taskiq_ext.__file__
broker = InMemoryBroker().with_middlewares(CacheMiddleware())
runs = []

@broker.task(cache_ttl=60)
async def double(n: int) -> int:
    runs.append(n)
    return n * 2

async def main():
    await broker.startup()
    for _ in range(2):
        task = await double.kiq(21)
        print((await task.wait_result(timeout=5)).return_value)
    await broker.shutdown()
    print("runs", runs)

asyncio.run(main())
assert "celery" not in sys.modules
"""


def test_taskiq_extra_is_enough_to_cache_a_task(install, tmp_path):
    environment = install("taskiq")
    assert not environment.names & {"celery", "kombu", "redis"}
    assert environment.run("-c", TASKIQ, cwd=tmp_path).splitlines() == ["42", "42", "runs [21]"]


CELERY = """
import sys, pathlib, celery_ext
from celery import Celery
assert pathlib.Path(celery_ext.__file__).is_relative_to(sys.prefix), celery_ext.__file__
app = Celery("shop", task_cls=celery_ext.Task, broker="memory://", backend="cache+memory://")
app.conf.task_always_eager = True
runs = []

@app.task(cache_ttl=60)
def double(n):
    runs.append(n)
    return n * 2

print(double.delay(21).get(), double.delay(21).get(), "runs", runs)
assert "taskiq" not in sys.modules
"""


def test_celery_extra_is_enough_to_cache_a_task(install, tmp_path):
    environment = install("celery")
    assert not environment.names & {"taskiq", "redis"}
    assert environment.run("-c", CELERY, cwd=tmp_path).strip() == "42 42 runs [21]"


TASKIQ_APP = """
    import os
    import taskiq_ext
    from taskiq_ext import PoolLimitMiddleware
    from taskiq_redis import RedisAsyncResultBackend, RedisStreamBroker

    URL = os.environ["REDIS_URL"]
    # redis-py 8 on Python 3.11 loses cancellations when it has a socket timeout, and then this broker never stops.
    broker = (
        RedisStreamBroker(URL, queue_name="taskiq-wheel", socket_timeout=None)
        .with_result_backend(RedisAsyncResultBackend(URL, result_ex_time=60))
        .with_middlewares(PoolLimitMiddleware())
    )

    @broker.task(pool="things", pool_size=1, pool_on_full="wait")
    async def where() -> str:
        return taskiq_ext.__file__
"""


async def test_wheel_limits_a_task_in_a_real_taskiq_worker(install, app_module, taskiq_worker, redis_url, monkeypatch):
    environment = install("taskiq", "redis", also=("taskiq-redis",))
    monkeypatch.setenv("REDIS_URL", redis_url)
    name = app_module(TASKIQ_APP)
    taskiq_worker(f"{name}:broker", python=environment.python, env={"SLOTLINE_REDIS_URL": redis_url})
    broker = (module := importlib.import_module(name)).broker
    await broker.startup()
    try:
        tasks = [await module.where.kiq() for _ in range(3)]
        results = [await task.wait_result(timeout=20) for task in tasks]
    finally:
        await broker.shutdown()
    for result in results:
        assert Path(result.return_value).is_relative_to(environment.directory), result


CELERY_APP = """
    import os
    import celery_ext
    from celery import Celery

    URL = os.environ["REDIS_URL"]
    app = Celery("wheel", task_cls=celery_ext.Task, broker=URL, backend=URL)
    app.conf.task_default_queue = "celery-wheel"
    app.conf.broker_connection_retry_on_startup = True

    @app.task(pool="things", pool_size=1, pool_on_full="wait")
    def where():
        return celery_ext.__file__
"""


def test_wheel_limits_a_task_in_a_real_celery_worker(install, app_module, celery_worker, redis_url, monkeypatch):
    environment = install("celery", "redis")
    monkeypatch.setenv("REDIS_URL", redis_url)
    name = app_module(CELERY_APP)
    celery_worker(name, python=environment.python, env={"SLOTLINE_REDIS_URL": redis_url})
    module = importlib.import_module(name)
    with module.app:
        results = [module.where.delay() for _ in range(3)]
        places = [Path(result.get(timeout=20)) for result in results]
    assert all(place.is_relative_to(environment.directory) for place in places), places


REDIS = """
import sys
from slotline import Pool, RedisStore
store = RedisStore(sys.argv[1])
with Pool("things", 1, store=store) as slot:
    print(Pool("things", 1, store=store).sync.size())
store.sync.close()
"""


def test_redis_extra_is_enough_for_a_pool_on_redis(install, tmp_path, redis_url):
    environment = install("redis")
    assert not environment.names & {"taskiq", "celery"}
    assert environment.run("-c", REDIS, redis_url, cwd=tmp_path).strip() == "1"
