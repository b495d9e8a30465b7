"""A TCP proxy that can delay, stall, refuse and cut, in front of any server."""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any, Literal, Self, TypeAlias, TypeVar

from tests.harness.ports import free_port

T = TypeVar("T")

Direction: TypeAlias = Literal["to_server", "to_client"]
Match: TypeAlias = int | Callable[[bytes], bool]
"""A number of bytes, or a predicate on all bytes that one connection has carried since the cut was armed."""


class Cut:
    """A cut that has been armed.

    Attributes:
        happened: Set once a connection was cut.
    """

    def __init__(self, direction: Direction, match: Match, *, early: bool = False, silent: bool = False) -> None:
        self.direction, self.match = direction, match
        self.early, self.silent = early, silent
        self.happened = threading.Event()

    def passes(self, seen: bytes) -> int | None:
        """Return how many of the bytes seen so far may pass before the cut, or ``None`` while it is not reached."""
        if callable(self.match):
            return len(seen) if self.match(seen) else None
        return self.match if len(seen) >= self.match else None


class TcpProxy:
    """Forward connections to a server, from a thread of its own; use it as a context manager.

    Args:
        port: The server's port.
        host: The server's host.
    """

    def __init__(self, port: int, host: str = "127.0.0.1") -> None:
        self.target = (host, port)
        self.host, self.port = "127.0.0.1", 0
        self.delay_seconds = 0.0
        self.accepted = 0
        self.armed: Cut | None = None
        self.links: set[_Link] = set()
        self.gate = asyncio.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="harness-proxy", daemon=True)
        self._server: asyncio.Server | None = None
        self._closed = False

    def __enter__(self) -> Self:
        self._thread.start()
        self.resume()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    @property
    def redis_url(self) -> str:
        """The URL of a Redis behind this proxy."""
        return f"redis://{self.host}:{self.port}/0"

    def delay(self, seconds: float) -> None:
        """Deliver every byte ``seconds`` later, in both directions."""
        self.delay_seconds = seconds

    def stall(self) -> None:
        """Accept connections but forward nothing from now on; what arrives is kept for :meth:`resume`."""
        self._run(self._shut_gate())

    def cut(self) -> None:
        """Reset all connections; new ones are served."""
        self._run(self._cut())

    def refuse(self) -> None:
        """Reset all connections and stop listening, so that connecting is refused."""
        self._run(self._refuse())

    def resume(self) -> None:
        """Serve again: listen, forward what was stalled, without delay; a cut that was armed is forgotten."""
        self._run(self._resume())

    def cut_after(self, direction: Direction, match: Match, *, silently: bool = False) -> Cut:
        """Reset one connection when enough was carried on it; once.

        Args:
            direction: ``"to_client"``: the answer that matches is withheld (given a number, that many bytes of it
                still pass). ``"to_server"``: given a number, that many bytes of the request still pass; given a
                predicate, the request that matches is forwarded and the next answer is awaited and withheld, so the
                server has acted and the client cannot know.
            match: See :data:`Match`; counted from now on, for each connection on its own.
            silently: See :meth:`break_at`.
        """
        cut = Cut(direction, match, silent=silently)
        self._run(self._arm(cut))
        return cut

    def break_at(self, words: bytes, *, before: bool, silently: bool) -> Cut:
        """Break one connection at the request that holds ``words``; once.

        Args:
            words: What the request holds, such as the name of a command or the digest of a script.
            before: Whether the request is withheld, too; else the server acts, and its answer is withheld.
            silently: Whether nothing is carried on it any more, in either direction, until :meth:`resume`; else the
                connection is reset.
        """
        cut = Cut("to_server", lambda seen: words in seen, early=before, silent=silently)
        self._run(self._arm(cut))
        return cut

    @property
    def open_links(self) -> int:
        """How many connections are open now."""
        return len(self.links)

    def close(self) -> None:
        """Reset all connections and end the thread."""
        if self._closed:
            return
        self._closed = True
        self._run(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    async def _start_server(self) -> None:
        if self._server is None:
            self._server = await asyncio.start_server(self._serve, self.host, self.port or free_port())
            self.port = self._server.sockets[0].getsockname()[1]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        link = _Link(self, writer)
        self.links.add(link)
        try:
            await link.run(reader)
        finally:
            self.links.discard(link)

    async def _shut_gate(self) -> None:
        self.gate.clear()

    async def _arm(self, cut: Cut | None) -> None:
        self.armed = cut
        for link in self.links:
            link.forget()

    async def _cut(self) -> None:
        ending = [link.reset() for link in tuple(self.links)]
        await asyncio.gather(*ending, return_exceptions=True)

    async def _refuse(self) -> None:
        server, self._server = self._server, None
        if server is not None:
            # asyncio forgets the socket of one who was accepted a moment before its server closes.
            for listening in server.sockets:
                self._loop.remove_reader(listening.fileno())
            await asyncio.sleep(0)
            server.close()
        await self._cut()

    async def _end(self) -> None:
        await self._refuse()
        # Whoever has just been accepted has no link yet, and one that was ending may have been kept from it.
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for transport in list(self._loop._transports.values()):  # type: ignore[attr-defined] # every transport is there
            transport.abort()
        await asyncio.sleep(0)  # their sockets are closed in the loop's next round

    async def _resume(self) -> None:
        self.delay_seconds = 0.0
        await self._arm(None)
        self.gate.set()
        for link in self.links:
            link.gate.set()
        await self._start_server()


class _Link:
    """One connection through the proxy: two pumps that end together."""

    def __init__(self, proxy: TcpProxy, client: asyncio.StreamWriter) -> None:
        self.proxy = proxy
        self.writers = [client]
        self.task = asyncio.current_task()
        self.pumps: list[asyncio.Task[None]] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.forget()

    def forget(self) -> None:
        self.seen: dict[Direction, bytes] = {"to_server": b"", "to_client": b""}
        self.withhold = False

    async def run(self, client_reader: asyncio.StreamReader) -> None:
        try:
            server_reader, server_writer = await asyncio.open_connection(*self.proxy.target)
            self.writers.append(server_writer)
            self.pumps = [
                asyncio.create_task(self._pump("to_server", client_reader, server_writer)),
                asyncio.create_task(self._pump("to_client", server_reader, self.writers[0])),
            ]
            await asyncio.wait(self.pumps, return_when=asyncio.FIRST_COMPLETED)
        except (OSError, asyncio.CancelledError):  # a reset ends this task, and a server that is down looks like one
            self._linger_not()
        finally:
            for pump in self.pumps:
                pump.cancel()
            await asyncio.gather(*self.pumps, return_exceptions=True)
            for writer in self.writers:
                writer.close()

    async def reset(self) -> None:
        assert self.task is not None
        self.task.cancel()
        await asyncio.wait([self.task])

    def _linger_not(self) -> None:
        """Make closing a reset: the peers see ``ECONNRESET`` and not an orderly end."""
        for writer in self.writers:
            raw = writer.get_extra_info("socket")
            if raw is not None and not writer.is_closing():
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                writer.transport.abort()

    async def _pump(self, direction: Direction, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        due: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()
        delivery = asyncio.create_task(self._deliver(direction, due, writer))
        try:
            while chunk := await reader.read(65536):
                due.put_nowait((time.monotonic() + self.proxy.delay_seconds, chunk))
            due.put_nowait((0.0, b""))
            await delivery
        except OSError:
            self._linger_not()
        finally:
            delivery.cancel()
            await asyncio.gather(delivery, return_exceptions=True)

    async def _deliver(
        self, direction: Direction, due: asyncio.Queue[tuple[float, bytes]], writer: asyncio.StreamWriter
    ) -> None:
        while True:
            at, chunk = await due.get()
            await asyncio.sleep(at - time.monotonic())
            await self.proxy.gate.wait()
            await self.gate.wait()
            if not chunk:
                return
            passing, cut = self._judge(direction, chunk)
            writer.write(passing)
            await writer.drain()
            if cut is None:
                continue
            if not cut.silent:
                self._linger_not()
                return
            self.gate.clear()
            await self.gate.wait()
            writer.write(chunk[len(passing) :])
            await writer.drain()

    def _judge(self, direction: Direction, chunk: bytes) -> tuple[bytes, Cut | None]:
        """Return the part of a chunk that may pass, and the cut if the connection is cut then."""
        cut = self.proxy.armed
        if cut is not None and self.withhold and direction == "to_client":
            return b"", self._done(cut)
        if cut is None or self.withhold or direction != cut.direction:
            return chunk, None
        before = len(self.seen[direction])
        self.seen[direction] += chunk
        passes = cut.passes(self.seen[direction])
        if passes is None:
            return chunk, None
        if not callable(cut.match):
            return chunk[: max(0, passes - before)], self._done(cut)
        if cut.early or direction == "to_client":
            return b"", self._done(cut)
        self.withhold = True
        return chunk, None

    def _done(self, cut: Cut) -> Cut:
        self.proxy.armed = None
        self.withhold = False
        cut.happened.set()
        return cut
