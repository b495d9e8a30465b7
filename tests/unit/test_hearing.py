"""What is read from the connection of the doorbells, whatever pieces it comes in."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import redis
from redis.exceptions import NoPermissionError, ResponseError

from slotline.stores import _resp
from slotline.stores._hearing import Hearing


class Deaf(Hearing):
    """Hears what a test feeds it."""

    def __init__(self, **options: int) -> None:
        super().__init__("a server", "mine", timeout=5.0, **options)
        self.rung: list[tuple[str, bytes]] = []
        self.started = 0

    def _start(self) -> None:
        self.started += 1

    def _resubscribe(self) -> None: ...

    def ring(self, token: str, payload: bytes) -> bool:
        self.rung.append((token, payload))
        return True


Frame = Callable[..., bytes]


@pytest.fixture(params=["hiredis", "plain"])
def hub(request, monkeypatch) -> Deaf:
    if request.param == "plain":
        monkeypatch.setattr(_resp, "Reader", None)
    hub = Deaf()
    hub.listening()
    assert b"SUBSCRIBE" in hub._open(ResponseError)
    return hub


@pytest.fixture(params=["RESP2", "RESP3"])
def frame(request) -> Frame:
    """How a server of this protocol says something unasked."""

    def made(*words: bytes | int) -> bytes:
        said = [b":%d\r\n" % word if isinstance(word, int) else b"$%d\r\n%b\r\n" % (len(word), word) for word in words]
        return (b">" if request.param == "RESP3" else b"*") + b"%d\r\n" % len(words) + b"".join(said)

    return made


def test_messages_are_whole_wherever_they_were_split(hub, frame):
    raw = (
        frame(b"subscribe", b"mine", 1)
        + frame(b"message", b"mine", b"a 7 3000 12")
        + b"+PONG\r\n"
        + frame(b"message", b"mine", b"b ")
        + frame(b"message", b"mine", b"c \r\n$3\r\n")
    )
    told = [("a", b"7 3000 12"), ("b", b""), ("c", b"\r\n$3\r\n")]
    for at in range(1, len(raw)):
        hub.rung.clear()
        hub._open(ResponseError)
        assert hub._receive(raw[:at]) + hub._receive(raw[at:]) == b""
        assert hub.rung == told
    hub.rung.clear()
    hub._open(ResponseError)
    for at in range(len(raw)):
        hub._receive(raw[at : at + 1])
    assert hub.rung == told


def test_all_messages_of_one_read_are_told(hub, frame):
    hub._receive(frame(b"subscribe", b"mine", 1))
    hub._receive(b"".join(frame(b"message", b"mine", b"%d x" % at) for at in range(500)))
    assert hub.rung == [(str(at), b"x") for at in range(500)]


def test_messages_of_other_channels_go_to_whoever_joined_them(hub, frame):
    heard: list[bytes] = []
    hub.join("shared", heard.append)
    hub._receive(frame(b"subscribe", b"mine", 1) + frame(b"message", b"shared", b"a b") + frame(b"message", b"?", b"c"))
    assert heard == [b"a b"]
    assert hub.rung == []


def test_it_is_heard_when_all_its_channels_are_confirmed(hub, frame):
    hub.join("shared", lambda _: None)
    assert b"shared" in hub._receive(frame(b"subscribe", b"mine", 1)), "it joined while this was under way"
    assert not hub.listening().done()
    hub._receive(frame(b"subscribe", b"mine", 1))
    assert not hub.listening().done()
    assert hub._receive(frame(b"subscribe", b"shared", 2)) == b""
    assert hub.listening().done()


def test_a_channel_that_everybody_has_left_is_left(hub, frame):
    def heard(message: bytes) -> None: ...

    hub.join("shared", heard)
    hub._open(ResponseError)
    hub._receive(frame(b"subscribe", b"mine", 1) + frame(b"subscribe", b"shared", 2))
    hub.quit("shared", heard)
    words = hub._receive(frame(b"message", b"mine", b"+"))
    assert b"UNSUBSCRIBE\r\n$6\r\nshared\r\n" in words
    hub._receive(frame(b"unsubscribe", b"shared", 1) + frame(b"subscribe", b"mine", 1))
    assert hub.listening().done()


def test_an_error_ends_the_connection_with_what_the_server_said(hub):
    hub._open(NoPermissionError)
    with pytest.raises(NoPermissionError):
        hub._receive(b"-NOPERM this user has no permissions to access one of the channels\r\n")


@pytest.mark.parametrize("raw", [b"", b"nonsense\r\n"], ids=["nothing more", "nonsense"])
def test_what_is_no_message_ends_the_connection(hub, raw):
    with pytest.raises(redis.ConnectionError):
        hub._receive(raw)


def test_a_new_connection_begins_without_what_is_left_of_the_last(hub, frame):
    hub._receive(frame(b"subscribe", b"mine", 1) + frame(b"message", b"mine", b"lost 1")[:-4])
    assert hub._lost(ConnectionError("gone")) < 1
    hub._open(ResponseError)
    hub._receive(frame(b"subscribe", b"mine", 1) + frame(b"message", b"mine", b"a 1"))
    assert hub.rung == [("a", b"1")]


def test_a_server_that_is_asked_and_says_only_a_part_of_its_answer_is_given_up(hub, frame):
    hub._receive(frame(b"subscribe", b"mine", 1))
    assert b"PING" in hub._silent()
    hub._receive(b"+PO")
    hub._asked_at -= 5.0
    with pytest.raises(TimeoutError):
        hub._receive(b"N")


def test_a_server_that_stays_silent_when_it_is_asked_is_given_up(hub, frame):
    with pytest.raises(TimeoutError):
        hub._silent()  # it has not confirmed the subscription
    hub._receive(frame(b"subscribe", b"mine", 1))
    hub.bell("token")
    assert b"PING" in hub._silent()
    hub._receive(b"+PONG\r\n")
    assert b"PING" in hub._silent()
    with pytest.raises(TimeoutError):
        hub._silent()


def test_who_waits_is_told_when_there_is_no_connection_and_when_there_is_one_again(frame, caplog):
    hub = Deaf(patience=8)
    nudged: list[None] = []
    hub.bell("token").on_ring(lambda: nudged.append(None))
    assert [hub._lost(OSError("refused")) <= 1 for _ in range(8)] == [True] * 8
    assert not hub.listening().done()
    assert hub._lost(OSError("refused")) == 1
    assert "OSError: refused" in str(hub.listening().exception())
    assert len(nudged) == 1
    hub._open(ResponseError)
    hub._receive(frame(b"subscribe", b"mine", 1))
    assert hub.listening().result() is None
    assert len(nudged) == 2
    assert hub.started == 1
    assert [record.levelname for record in caplog.records] == ["WARNING"]


def test_doorbells_that_could_not_begin_to_listen_begin_with_the_next_who_waits(monkeypatch):
    hub = Deaf()

    def no_thread() -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(hub, "_start", no_thread)
        with pytest.raises(RuntimeError):
            hub.listening()
    hub.listening()
    assert hub.started == 1
