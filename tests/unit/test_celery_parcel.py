"""What the waiting room keeps of a message: all of it, and the same bytes for each of its deliveries."""

from __future__ import annotations

import zlib
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest
from kombu.message import Message

from celery_ext.parcel import TakenMessage, pack
from slotline.errors import StoreUnavailableError

pytestmark = pytest.mark.lowest


def delivery(body: Any = '[[1], {}, {"chain": null}]', **changes: Any) -> Message:
    """Return a message as a broker delivers it."""
    fields: dict[str, Any] = {
        "content_type": "application/json",
        "content_encoding": "utf-8",
        "headers": {"id": "1", "task": "t", "retries": 0, "eta": None, "other": {"deep": [1, "é"]}},
        "properties": {"correlation_id": "1", "priority": 3, "delivery_tag": "a", "delivery_info": {"exchange": ""}},
        "delivery_info": {"exchange": "", "routing_key": "celery", "redelivered": False, "consumer_tag": "c1"},
        "delivery_tag": "a",
    }
    return Message(body=body, **{**fields, **changes})


class Slot:
    token = "token"
    key = "pool"


class Taken:
    """What the room gives out, with a note of what becomes of it."""

    lane, slot = "lane", Slot()

    def __init__(self, message: bytes) -> None:
        self.message = message
        self.became: list[str] = []
        self.away = False
        self.sync = self.pool = self

    def settle(self) -> None:
        self._become("settled")

    def give_back(self) -> None:
        self._become("given back")

    def release(self, slot: Slot) -> None:
        self._become("released")

    def _become(self, what: str) -> None:
        if self.away:
            raise StoreUnavailableError("store", "the test says so")
        self.became.append(what)


def taken(message: Message | None = None) -> tuple[TakenMessage, Taken, list[TakenMessage]]:
    claim, ended = Taken(pack(message or delivery())), []
    return TakenMessage(claim, {"application/json"}, ended.append), claim, ended  # type: ignore[arg-type] # a stand-in


def test_two_deliveries_of_one_message_are_the_same_bytes() -> None:
    again = delivery(
        delivery_tag="b",
        headers={**delivery().headers, "x-delivery-count": 1},
        properties={"priority": 3, "correlation_id": "1", "delivery_tag": "b", "delivery_info": {"exchange": ""}},
        delivery_info={"exchange": "", "routing_key": "celery", "redelivered": True, "consumer_tag": "c2"},
    )
    assert pack(again) == pack(delivery())


@pytest.mark.parametrize(
    "changes",
    [
        {"headers": {**delivery().headers, "retries": 1}},
        {"body": "[[2], {}, {}]"},
        {"delivery_info": {"exchange": "", "routing_key": "other"}},
    ],
)
def test_a_retry_or_another_message_has_other_bytes(changes: dict[str, Any]) -> None:
    assert pack(delivery(**changes)) != pack(delivery())


@pytest.mark.parametrize("body", ['[["é"], {}, {}]', b"\x80\x04\x00\xff\n{", b"", "", memoryview(b"abc\n")])
def test_a_message_comes_out_as_it_went_in(body: Any) -> None:
    sent = delivery(body, headers={"id": "1", "when": datetime(2030, 1, 2, tzinfo=UTC), "none": None})
    message, _, _ = taken(sent)
    assert message.body == bytes(body) if isinstance(body, memoryview) else message.body == body
    assert message.headers == sent.headers
    assert (message.content_type, message.content_encoding) == (sent.content_type, sent.content_encoding)
    assert {name: message.properties[name] for name in ("correlation_id", "priority")} == {
        "correlation_id": "1",
        "priority": 3,
    }
    assert message.delivery_info == {"exchange": "", "routing_key": "celery", "redelivered": False}


def test_a_compressed_body_is_not_decompressed_twice() -> None:
    sent = delivery(zlib.compress(b"[[1], {}, {}]"), headers={"id": "1", "compression": "application/x-gzip"})
    message, _, _ = taken(sent)
    assert message.body == b"[[1], {}, {}]"
    assert not message.errors


@pytest.mark.parametrize(
    ("how", "started", "became"),
    [
        ("ack", True, ["settled"]),
        ("ack", False, ["settled", "released"]),
        ("reject", True, ["settled"]),
        ("requeue", True, ["given back"]),
        ("requeue", False, ["given back"]),
    ],
)
def test_acknowledging_it_settles_it_in_the_room_once(how: str, became: list[str], *, started: bool) -> None:
    message, claim, ended = taken()
    message.started = started
    getattr(message, how)()
    assert (claim.became, ended, message.acknowledged) == (became, [message], True)
    message.ack()
    message.requeue()
    assert claim.became == became


@pytest.mark.parametrize(
    ("end", "became"),
    [
        (lambda request: request.acknowledge(), "settled"),
        (lambda request: request.reject(), "settled"),
        (lambda request: request.reject(requeue=True), "given back"),
    ],
    ids=["acknowledged", "rejected", "requeued"],
)
def test_what_is_decided_of_its_run_is_known_before_the_event_loop_does_it(end: Any, became: str) -> None:
    message, claim, ended = taken()
    told: list[Any] = []
    request = SimpleNamespace(acknowledge=lambda: told.append("acknowledged"), reject=told.append)
    message.begin(request)
    assert message.decided is None
    end(request)
    assert (len(told), claim.became, ended) == (1, [], [])
    assert message.decided is not None
    message.decided()
    assert (claim.became, ended) == ([became], [message])


def test_a_store_that_is_away_does_not_disturb_the_worker() -> None:
    message, claim, ended = taken()
    claim.away = True
    message.reject_log_error(None, (), requeue=True)
    assert ended == [message]
