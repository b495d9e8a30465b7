"""The proxy passes, delays, stalls, refuses and cuts."""

from __future__ import annotations

import socket
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from tests.harness.proxy import TcpProxy
from tests.harness.waiting import wait_until


@pytest.fixture
def through(redis_proxy):
    client = redis.Redis.from_url(redis_proxy.redis_url, socket_timeout=5, retry=Retry(NoBackoff(), 0))
    with client:
        client.ping()
        yield client


def test_what_is_sent_arrives_both_ways(through, redis_client):
    big = b"x" * 3_000_000
    through.set("key", big, ex=60)
    assert redis_client.get("key") == big
    assert through.get("key") == big


def test_delay_holds_back_both_directions_and_keeps_the_order(redis_proxy, through):
    redis_proxy.delay(0.75)
    started = time.monotonic()
    with through.pipeline(transaction=False) as pipeline:
        for number in range(50):
            pipeline.echo(str(number))
        assert pipeline.execute() == [str(number).encode() for number in range(50)]
    assert 1.5 <= time.monotonic() - started < 10
    redis_proxy.resume()
    started = time.monotonic()
    through.ping()
    assert time.monotonic() - started < 1.5


def test_stalled_proxy_accepts_but_nothing_is_answered_until_resumed(redis_proxy, through, redis_client):
    redis_proxy.stall()
    before = redis_proxy.accepted
    with ThreadPoolExecutor() as threads:
        late = threads.submit(through.set, "key", "value", ex=60)
        another = redis.Redis.from_url(redis_proxy.redis_url, socket_timeout=0.2, retry=Retry(NoBackoff(), 0))
        with another, pytest.raises(redis.TimeoutError):
            another.ping()
        wait_until("the new connection was accepted", lambda: redis_proxy.accepted > before)
        assert not late.done()
        assert redis_client.get("key") is None
        redis_proxy.resume()
        assert late.result(5)
    assert redis_client.get("key") == b"value"


def test_cut_resets_open_connections_and_serves_new_ones(redis_proxy, through):
    with socket.create_connection((redis_proxy.host, redis_proxy.port)) as plain:
        plain.sendall(b"PING\r\n")
        assert plain.recv(100) == b"+PONG\r\n"
        assert redis_proxy.open_links == 2
        redis_proxy.cut()
        assert redis_proxy.open_links == 0
        with pytest.raises(ConnectionResetError):
            plain.recv(100)
    assert through.ping()


def test_refusing_proxy_listens_again_on_the_same_port(redis_proxy, through):
    port = redis_proxy.port
    redis_proxy.refuse()
    for _ in range(2):
        with pytest.raises(redis.ConnectionError):
            through.ping()
    redis_proxy.resume()
    assert redis_proxy.port == port
    assert through.ping()


def test_answer_that_matches_is_withheld_although_the_server_has_acted(redis_proxy, through, redis_client):
    cut = redis_proxy.cut_after("to_client", lambda seen: b":1\r\n" in seen)
    through.set("key", 0, ex=60)
    with pytest.raises(redis.ConnectionError):
        through.incr("key")
    assert cut.happened.is_set()
    assert redis_client.get("key") == b"1"
    assert through.incr("key") == 2, "the cut happens once"


def test_request_that_matches_is_served_but_its_answer_is_withheld(redis_proxy, through, redis_client):
    cut = redis_proxy.cut_after("to_server", lambda seen: b"INCR" in seen)
    assert through.get("key") is None
    with pytest.raises(redis.ConnectionError):
        through.incr("key")
    assert cut.happened.is_set()
    assert redis_client.get("key") == b"1"
    redis_client.delete("key")


@pytest.mark.parametrize("silently", [False, True])
@pytest.mark.parametrize("before", [True, False])
def test_a_connection_breaks_at_one_request_before_or_after_the_server_has_acted(
    redis_proxy, redis_client, before, silently
):
    through = redis.Redis.from_url(redis_proxy.redis_url, socket_timeout=1, retry=Retry(NoBackoff(), 0))
    with through:
        through.set("key", 0, ex=60)
        cut = redis_proxy.break_at(b"INCR", before=before, silently=silently)
        assert through.get("key") == b"0"
        with pytest.raises(redis.TimeoutError if silently else redis.ConnectionError):
            through.incr("key")
        assert cut.happened.is_set()
        assert redis_client.get("key") == (b"0" if before else b"1")
        assert through.incr("key") == (1 if before else 2), "another connection is served"
        if before and silently:  # as from a network that has healed
            redis_proxy.resume()
            wait_until("the first request arrives late", lambda: redis_client.get("key") == b"2")


def test_request_cut_after_some_bytes_never_reaches_the_server_whole(redis_proxy, through, redis_client):
    redis_proxy.cut_after("to_server", 10)
    with pytest.raises(redis.ConnectionError):
        through.set("key", "value", ex=60)
    assert redis_client.get("key") is None
    assert through.set("key", "value", ex=60)


def test_answer_cut_after_some_bytes_arrives_in_part(redis_proxy, through, redis_client):
    redis_client.set("key", "x" * 1000, ex=60)
    redis_proxy.cut_after("to_client", 100)
    with pytest.raises(redis.ConnectionError):
        through.get("key")
    assert through.get("key") == b"x" * 1000


def test_server_that_is_down_looks_like_a_lost_connection(own_redis):
    with TcpProxy(own_redis.port) as proxy:
        own_redis.kill()
        client = redis.Redis.from_url(proxy.redis_url, retry=Retry(NoBackoff(), 0))
        with client, pytest.raises(redis.ConnectionError):
            client.ping()
        own_redis.start()
        with redis.Redis.from_url(proxy.redis_url) as client:
            assert client.ping()
