"""Fixtures that give a test a Redis."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import redis

from tests.harness import checks
from tests.harness.proxy import TcpProxy
from tests.harness.redis_server import RedisServer


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


@pytest.fixture
def redis_proxy(redis_server: RedisServer) -> Iterator[TcpProxy]:
    """A proxy in front of the run's Redis; ``redis_proxy.redis_url`` leads through it."""
    with TcpProxy(redis_server.port) as proxy:
        yield proxy
