"""What a connection brings, to coroutines and to threads, from servers that answer in every way that a server can."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from slotline import Pool, RedisStore, StoreError, StoreUnavailableError
from slotline.stores import Command, _resp
from tests.harness.fixtures_faces import Call
from tests.harness.waiting import await_until

Words = list[bytes]
Answer = Callable[[Words, int], bytes | None]
"""Makes the answer to a command, by the number of its connection, from 0; ``None`` closes the connection."""


class Teller:
    """A server that tells what a test says, and +OK to everything in a greeting."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.writers: list[asyncio.StreamWriter] = []
        self.heard: list[tuple[int, bytes]] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        number, read = len(self.writers), _resp.PlainReader(StoreError)
        self.writers.append(writer)
        try:
            while data := await reader.read(65536):
                read.feed(data)
                while (words := read.gets()) is not _resp.MORE:
                    answer = b"+OK\r\n" if words[0] == b"CLIENT" else self.answer(words, number)
                    if words[0] != b"CLIENT":
                        self.heard.append((number, words[-1]))
                    if answer is None:
                        return
                    writer.write(answer)
        finally:
            writer.close()


@pytest.fixture(params=["hiredis", "plain"])
async def told(request, monkeypatch, call) -> AsyncIterator[Callable[[Answer], Awaitable[tuple[Teller, Asking]]]]:
    """A store on a server that answers so."""
    if request.param == "plain":
        monkeypatch.setattr(_resp, "Reader", None)
    async with AsyncExitStack() as stack:

        async def start(answer: Answer, **options: float) -> tuple[Teller, Asking]:
            teller = Teller(answer)
            server = await asyncio.start_server(teller.serve, "127.0.0.1", 0)
            stack.push_async_callback(server.wait_closed)
            stack.callback(server.close)
            store = RedisStore(f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}", **options)
            stack.push_async_callback(store.close)
            return teller, Asking(call, store)

        yield start


def echoed(words: Words) -> bytes:
    return b"$%d\r\n%b\r\n" % (len(words[-1]), words[-1])


def echo(text: str) -> Command:
    return Command("ECHO", (), (text,))


class Asking:
    """Asks a store, with one of its faces."""

    def __init__(self, call: Call, store: RedisStore) -> None:
        self._call, self._store = call, store

    async def each(self, *texts: str) -> list[bytes]:
        return await asyncio.gather(*(self._call(self._store, "execute", echo(text)) for text in texts))

    async def together(self, *texts: str) -> list[bytes | Exception]:
        try:
            return await self._call(self._store, "execute_many", [echo(text) for text in texts])
        except StoreUnavailableError as error:
            return [error] * len(texts)


async def test_replies_of_every_kind_are_read_from_the_smallest_pieces(told):
    replies = {
        b"text": (b"+fine\r\n", b"fine"),
        b"number": (b":-17\r\n", -17),
        b"bytes": (b"$5\r\na\r\n\xffb\r\n", b"a\r\n\xffb"),
        b"nothing": (b"$0\r\n\r\n", b""),
        b"none": (b"$-1\r\n", None),
        b"no list": (b"*-1\r\n", None),
        b"list": (b"*3\r\n:1\r\n*2\r\n$1\r\nx\r\n*0\r\n$-1\r\n", [1, [b"x", []], None]),
    }
    teller, ask = await told(lambda words, _: b"")
    calls = {name: asyncio.create_task(ask.each(name.decode())) for name in replies}
    for name, (raw, _) in replies.items():
        await await_until("it is asked", lambda name=name: name in [text for _, text in teller.heard])
        number = next(number for number, text in teller.heard if text == name)
        for at in range(len(raw)):
            teller.writers[number].write(raw[at : at + 1])
            await asyncio.sleep(0)
    assert {name: await call for name, call in calls.items()} == {name: [value] for name, (_, value) in replies.items()}


async def test_an_error_is_that_callers_alone_whatever_bytes_it_has(told):
    def answer(words: Words, number: int) -> bytes:
        return b"-ERR no \xff such thing\r\n" if words[-1] == b"b" else echoed(words)

    _, ask = await told(answer)
    found = await ask.together(*"abc")
    assert [found[0], found[2]] == [b"a", b"c"]
    assert isinstance(found[1], StoreError)
    assert not isinstance(found[1], StoreUnavailableError)


@pytest.mark.parametrize("extra", [b"+wrong\r\n", b"nonsense\r\n"], ids=["a reply", "nonsense"])
async def test_what_comes_with_an_answer_and_was_not_asked_for_is_nobodys_answer(told, extra):
    _, ask = await told(lambda words, number: echoed(words) + (extra if (number, words[-1]) == (0, b"spoilt") else b""))
    assert await ask.each("first") == [b"first"]
    assert await ask.each("spoilt") == [b"spoilt"]
    assert await ask.each("a", "b", "c") == [b"a", b"b", b"c"]


@pytest.mark.parametrize("extra", [b"+wrong\r\n", b"$3\r\nwro", b"nonsense\r\n"], ids=["a reply", "a part", "nonsense"])
@pytest.mark.parametrize("call", ["async"], indirect=True)  # a thread's connection is looked at after a second
async def test_a_connection_that_says_something_while_nobody_asks_is_used_no_more(told, extra):
    teller, ask = await told(lambda words, _: echoed(words))
    assert await ask.each("first") == [b"first"]
    teller.writers[0].write(extra)
    await await_until("it is cut", teller.writers[0].is_closing)
    assert await ask.each("a", "b", "c") == [b"a", b"b", b"c"]
    assert {number for number, text in teller.heard if text != b"first"} == {1, 2}


@pytest.mark.parametrize("answered", [0, 1, 2])
async def test_a_connection_that_ends_within_a_batch_has_all_of_it_repeated(told, answered):
    teller, ask = await told(
        lambda words, number: None if number == 0 and words[-1] == b"%d" % answered else echoed(words)
    )
    assert await ask.each("first") == [b"first"]
    assert await ask.together(*"012") == [b"0", b"1", b"2"]
    assert [text for number, text in teller.heard if number == 1] == [b"0", b"1", b"2"]


async def test_a_server_that_loads_its_data_is_asked_again_over_a_new_connection(told):
    teller, ask = await told(
        lambda words, number: b"-LOADING Redis is loading the dataset in memory\r\n" if number == 0 else echoed(words)
    )
    assert await ask.each("a") == [b"a"]
    assert len(teller.writers) == 2


async def test_a_server_that_answers_a_part_and_falls_silent_is_given_up_in_time(told):
    teller, ask = await told(lambda words, _: b"" if words[-1] == b"1" else echoed(words), timeout=0.3, retries=0)
    assert await ask.each("first") == [b"first"]
    found = await ask.together(*"012")
    assert [type(each) for each in found] == [StoreUnavailableError] * 3
    assert await ask.each("next") == [b"next"]
    assert [text for number, text in teller.heard if number == 1] == [b"next"]


async def test_what_is_answered_too_late_is_nobodys_answer(told):
    teller, ask = await told(
        lambda words, number: b"" if number == 0 and words[-1] == b"late" else echoed(words), timeout=0.3
    )
    assert await ask.each("first") == [b"first"]
    late = asyncio.create_task(ask.each("late"))
    await await_until("it is asked again", lambda: (1, b"late") in teller.heard)
    teller.writers[0].write(b"$4\r\nlate\r\n")
    assert await ask.each("a", "b") == [b"a", b"b"]
    assert await late == [b"late"]


async def test_large_values_go_and_come_whole(redis_url):
    store = RedisStore(redis_url)
    values = [bytes([at]) * (at * 4_000_000 + 1) for at in range(4)]
    found = await asyncio.gather(*(store.execute(Command("ECHO", (), (value,))) for value in values))
    assert [value == each for value, each in zip(values, found, strict=True)] == [True] * 4
    await store.close()


@asynccontextmanager
async def encrypted(port: int) -> AsyncIterator[int]:
    """Serve TLS in front of a server on ``port``."""

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        back, there = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(pump(reader, there), pump(back, writer), return_exceptions=True)
        for each in (writer, there):
            each.close()

    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(CERTIFICATE)
    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    yield server.sockets[0].getsockname()[1]
    server.close()
    await server.wait_closed()


CERTIFICATE = Path(__file__).parent.parent / "harness" / "localhost.pem"


async def test_everything_goes_over_tls(redis_server, redis_client):
    async with encrypted(redis_server.port) as port:
        store = RedisStore(f"rediss://127.0.0.1:{port}/0?ssl_ca_certs={CERTIFICATE}&client_name=tls-test")
        texts = [f"{at}" for at in range(50)]
        assert await asyncio.gather(*(store.execute(echo(text)) for text in texts)) == [text.encode() for text in texts]
        large = b"x" * 3_000_000
        assert await store.execute(Command("ECHO", (), (large,))) == large
        mine = [client for client in redis_client.client_list() if client["name"] == "tls-test"]
        assert 1 <= len(mine) <= 2
        for client in mine:
            redis_client.client_kill(client["addr"])
        assert await asyncio.gather(*(store.execute(echo(text)) for text in texts)) == [text.encode() for text in texts]
        await store.close()


async def test_doorbells_are_heard_over_tls(redis_server, call):
    async with encrypted(redis_server.port) as port:
        store = RedisStore(f"rediss://127.0.0.1:{port}/0?ssl_ca_certs={CERTIFICATE}")
        pool = Pool("p", 1, store=store)
        slot = await call(pool, "acquire")

        async def use() -> None:
            async with call.using(pool.slot(timeout=60)):
                await asyncio.sleep(0)

        async def all_wait() -> bool:
            return (await pool.info()).waiting == len(users)

        users = [asyncio.create_task(use()) for _ in range(5)]
        await await_until("all stand in line", all_wait)
        await call(pool, "release", slot)
        await asyncio.gather(*users)
        await store.close()
