"""Values that no cache can store: whoever asks gets them all the same, the log names each once, and nothing hangs."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import dataclass
from typing import Any

import pytest
from pydantic import BaseModel, model_serializer

from slotline.caches import RedisCacheAdapter, Serializer
from slotline.errors import SerializationError

SIGNED = Serializer(signing_key=b"sixteen bytes aa", allow_pickle=True)


class Unpicklable:
    def __reduce__(self):
        raise ZeroDivisionError


class Incomparable:
    def __eq__(self, other):
        raise ZeroDivisionError

    __hash__ = None


class Unprintable:
    def __repr__(self):
        raise ZeroDivisionError


class Unwritable(BaseModel):
    a: int = 1

    @model_serializer
    def write(self):
        raise ZeroDivisionError


@dataclass
class Node:
    next: Any = None


def cyclic_list():
    value: list[Any] = []
    value.append(value)
    return value


def cyclic_dict():
    value: dict[str, Any] = {}
    value["self"] = [value]
    return value


def cyclic_node():
    value = Node()
    value.next = value
    return value


def deep():
    value: list[Any] = []
    for _ in range(100_000):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("make", "returns", "serializer"),
    [
        (threading.Lock, None, SIGNED),
        (threading.Lock, threading.Lock, Serializer()),
        (lambda: (number for number in ()), None, SIGNED),
        (Unpicklable, None, SIGNED),
        (Unpicklable, Unpicklable, SIGNED),
        (Incomparable, Incomparable, Serializer()),
        (Unprintable, None, Serializer()),
        (Unwritable, Unwritable, Serializer()),
        (object, "a type that is nowhere", Serializer()),
        (object, "Nowhere", Serializer()),
        (cyclic_list, None, Serializer()),
        (cyclic_list, list[Any], Serializer()),
        (cyclic_dict, dict[str, Any], Serializer()),
        (cyclic_node, Node, Serializer()),
        (deep, None, SIGNED),
        (deep, list[Any], Serializer()),
        (lambda: "x" * 100_000, None, Serializer(max_value_bytes=50, compress_above=None)),
        (lambda: [bytes(range(256)) * 1000, memoryview(b"x")], None, SIGNED),
        (lambda: asyncio.sleep, Any, Serializer()),
    ],
)
async def test_it_reaches_everyone_who_waits_and_no_one_else(
    redis_url, redis_client, caplog, make, returns, serializer
):
    cache = RedisCacheAdapter(redis_url, serializer=serializer, cache_errors=True)
    made: list[Any] = []
    go = asyncio.Event()

    async def create():
        made.append(make())
        await go.wait()
        return made[-1]

    callers = [asyncio.create_task(cache.get_or_create("k", create, returns=returns)) for _ in range(3)]
    await asyncio.sleep(0)
    go.set()
    values = await asyncio.wait_for(asyncio.gather(*callers), 60)
    assert len(made) == 1
    assert all(value is made[0] for value in values)
    value = await asyncio.to_thread(cache.sync.get_or_create, "k", lambda: made[0], returns=returns)
    assert value is made[0]
    assert redis_client.keys() == []
    lines = [record.getMessage() for record in caplog.records if record.name == "slotline.caches"]
    assert len([line for line in lines if line.startswith("the value of 'k' is not stored: ")]) == len(lines) == 1
    with pytest.raises(SerializationError):
        await cache.set("k", made[0], returns=returns)
    await cache.close()


async def test_an_exception_that_no_other_process_can_read_is_told_by_name(redis_url):
    class StrangeError(Exception):
        def __init__(self):
            super().__init__(threading.Lock(), Unprintable())

        def __str__(self):
            raise ZeroDivisionError

    def fail():
        raise StrangeError

    one, two = (RedisCacheAdapter(redis_url, cache_errors=60) for _ in range(2))
    with pytest.raises(StrangeError):
        await one.get_or_create("k", fail)
    with pytest.raises(Exception, match="StrangeError"):
        await two.get_or_create("k", lambda: "made again")
    await one.close()
    await two.close()
