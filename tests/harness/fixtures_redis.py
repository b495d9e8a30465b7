"""Fixtures that give a test a Redis."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from typing import TypeVar

import pytest
import redis

from tests.harness import checks
from tests.harness.proxy import TcpProxy
from tests.harness.redis_cluster import RedisCluster, RedisSentinels, answers
from tests.harness.redis_server import RedisServer

Many = TypeVar("Many", RedisCluster, RedisSentinels)


@pytest.fixture(scope="session")
def _session_redis() -> Iterator[RedisServer]:
    with RedisServer() as server:
        checks.permanent.add(server.pid)
        yield server


@pytest.fixture
def redis_server(_session_redis: RedisServer, request: pytest.FixtureRequest) -> Iterator[RedisServer]:
    """The run's Redis, emptied; a test must neither kill nor pause it (``own_redis`` is for that)."""
    with _session_redis.client() as client:
        client.flushall()
        yield _session_redis
        checks.check_keys(request.node, client)


@pytest.fixture
def redis_url(redis_server: RedisServer) -> str:
    """The URL of an empty Redis."""
    return redis_server.url


@pytest.fixture
def redis_client(redis_server: RedisServer) -> Iterator[redis.Redis]:
    """A blocking client of the same Redis, to look behind the curtain."""
    with redis_server.client() as client:
        yield client


@pytest.fixture
def make_redis(request: pytest.FixtureRequest) -> Iterator[Callable[..., RedisServer]]:
    """A function that starts a Redis of the test's own: ``make_redis(keep_data=True)``."""
    made: list[RedisServer] = []

    def start(*, keep_data: bool = False, options: tuple[str, ...] = ()) -> RedisServer:
        server = RedisServer(keep_data=keep_data, options=options)
        made.append(server)
        server.start()
        return server

    yield start
    try:
        for server in made:
            if server.running:
                server.resume()
                with server.client() as client:
                    checks.check_keys(request.node, client)
    finally:
        for server in made:
            server.close()


@pytest.fixture
def own_redis(make_redis: Callable[..., RedisServer]) -> RedisServer:
    """A Redis of the test's own, which it may stop, kill, pause and restart."""
    return make_redis()


@pytest.fixture(scope="module")
def module_redis() -> Iterator[RedisServer]:
    """A Redis of the module's own: workers that serve all its tests may use it as their broker."""
    with RedisServer() as server:
        yield server


@pytest.fixture
def redis_proxy(redis_server: RedisServer) -> Iterator[TcpProxy]:
    """A proxy in front of the run's Redis; ``redis_proxy.redis_url`` leads through it."""
    with TcpProxy(redis_server.port) as proxy:
        yield proxy


def _started(servers: Many, stack: ExitStack) -> Many:
    """Start servers that know one another; a binary that cannot is a skipped test, and on CI an error."""
    try:
        return stack.enter_context(servers)
    except RuntimeError as error:
        missing = f"NO {type(servers).__name__}: this redis-server cannot be part of one ({str(error)[-300:]})"
        if os.environ.get("CI", "").lower() in {"1", "true", "yes"}:
            raise RuntimeError(f"{missing}; with CI set, such tests must not be skipped") from error
        pytest.skip(missing)


@pytest.fixture(scope="session")
def _session_cluster() -> Iterator[RedisCluster]:
    with ExitStack() as stack:
        cluster = _started(RedisCluster(), stack)
        checks.permanent.update(server.pid for server in cluster.servers)
        yield cluster


@pytest.fixture
def redis_cluster(_session_cluster: RedisCluster, request: pytest.FixtureRequest) -> Iterator[RedisCluster]:
    """The run's Cluster of three masters, emptied; a test must neither kill nor pause one."""
    _session_cluster.flush()
    yield _session_cluster
    for server in _session_cluster.masters:
        with server.client() as client:
            checks.check_keys(request.node, client)


@pytest.fixture
def own_cluster(request: pytest.FixtureRequest) -> Iterator[RedisCluster]:
    """A Cluster of the test's own, three masters with a replica each, which it may kill."""
    with ExitStack() as stack:
        cluster = _started(RedisCluster(replicas=True), stack)
        yield cluster
        _check_masters(request, cluster.servers)


@pytest.fixture
def own_sentinels(request: pytest.FixtureRequest) -> Iterator[RedisSentinels]:
    """A master, its replica and three Sentinels of the test's own, which it may kill."""
    with ExitStack() as stack:
        sentinels = _started(RedisSentinels(), stack)
        yield sentinels
        _check_masters(request, (sentinels.first, sentinels.second))


def _check_masters(request: pytest.FixtureRequest, servers: Iterable[RedisServer]) -> None:
    for server in servers:
        # What a paused one has is elsewhere by now.
        if answers(server):
            with server.client() as client:
                if client.execute_command("ROLE")[0] == b"master":
                    checks.check_keys(request.node, client)
