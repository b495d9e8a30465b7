"""Doorbells where writes go to several servers, or to another one after a failover."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait

import redis

from slotline.errors import StoreUnavailableError
from slotline.stores._hearing import PATIENT
from slotline.stores._redis_wakeups import RedisWakeups
from slotline.stores._topology import Topology
from slotline.stores.wakeups import Bell, Wakeups


class NodeWakeups(Wakeups):
    """Listens on every server that takes writes, with a connection and a thread each.

    A script passes over a waiter whose process does not listen, and it can count only those who listen on its own
    server, although a Cluster carries the message to all. So this process must be heard on each; what comes more than
    once rings a bell that has rung already.

    Args:
        name: What errors and logs call the store.
        channel: This process's channel.
        dial: Makes a client of a server.
        topology: Knows the servers.
        timeout: Seconds for an answer of a server.
        retries: How often a connection is tried before whoever waits is told.
    """

    def __init__(
        self,
        name: str,
        channel: str,
        dial: Callable[[str], redis.Redis],
        topology: Topology,
        *,
        timeout: float,
        retries: int,
    ) -> None:
        super().__init__()
        self.channel = channel
        self._name = name
        self._dial = dial
        self._topology = topology
        self.timeout, self.retries = timeout, retries
        self._lock = threading.Lock()
        self._ears: dict[str, _Ear] = {}
        self._closed = False

    def bell(self, token: str) -> Bell:
        bell = super().bell(token)
        self.follow()
        return bell

    def join(self, channel: str, heard: Callable[[bytes], None]) -> None:
        """See :meth:`Wakeups.join`."""
        super().join(channel, heard)
        self._changed()

    def quit(self, channel: str, heard: Callable[[bytes], None]) -> None:
        """See :meth:`Wakeups.quit`."""
        super().quit(channel, heard)
        self._changed()

    def _changed(self) -> None:
        for ear in list(self._ears.values()):
            ear.changed()

    def follow(self) -> None:
        """Listen where writes go now, if there is something to listen for, and nowhere else."""
        masters = self._topology.masters
        if masters == tuple(self._ears) and not any(ear.resting for ear in self._ears.values()):
            return
        with self._lock:
            if self._closed or not masters:
                return
            gone = [self._ears.pop(node) for node in list(self._ears) if node not in masters]
            wanted = self._bells or self._joined
            moved = bool(self._ears or gone)
            for node in masters:
                if node not in self._ears and wanted:
                    self._ears[node] = _Ear(self, node, moved=moved)
            self._ears = {node: self._ears[node] for node in masters if node in self._ears}
            ears = list(self._ears.values())
        for ear in gone:
            ear.part()
        if wanted:
            for ear in ears:
                ear.listening()

    def hasten(self) -> None:
        """See :meth:`Wakeups.hasten`."""
        for ear in list(self._ears.values()):
            ear.hasten()

    def listen_blocking(self, until: float | None = None) -> None:
        """Block until messages of every server reach this process, or of one, when others do not answer."""
        if not self._topology.masters:
            try:
                self._topology.look(float("-inf"))
            except redis.ConnectionError as error:
                raise StoreUnavailableError(self._name, str(error)) from error
        self.follow()
        heard = self._listening()
        if not heard:
            raise StoreUnavailableError(self._name, "it was closed")
        wait(heard, timeout=_left(until, PATIENT))
        if not _one(heard):
            wait(heard, timeout=_left(until))
        if not _one(heard):
            heard[0].result(_left(until))

    async def listen(self) -> None:
        """See :meth:`listen_blocking`."""
        self.follow()
        heard = self._listening()
        if not heard or not all(future.done() for future in heard) or not _one(heard):
            await asyncio.to_thread(self.listen_blocking)

    def _listening(self) -> list[Future[None]]:
        return [ear.listening() for ear in list(self._ears.values())]

    def look(self, since: float) -> None:
        """Find out where writes go: a connection has broken."""
        with contextlib.suppress(redis.ConnectionError):  # it is tried again with the connection
            self._topology.look(since)

    def connect(self, node: str) -> redis.Redis:
        """Return a new client of a server."""
        return self._dial(node)

    def close(self) -> None:
        """End the threads; whoever waits finds the store's next doorbells when it looks again."""
        with self._lock:
            self._closed = True
            ears, self._ears = list(self._ears.values()), {}
        for ear in ears:
            ear.close()


class _Ear(RedisWakeups):
    """What listens on one of the servers; the bells are the hub's.

    Args:
        hub: Whose it is.
        node: The server.
        moved: Whether it listens since writes have moved there, so that messages may have been missed.
    """

    def __init__(self, hub: NodeWakeups, node: str, *, moved: bool) -> None:
        name = f"{hub._name}, {node}"  # noqa: SLF001 - its maker
        super().__init__(
            name,
            hub.channel,
            lambda: hub.connect(node),
            timeout=hub.timeout,
            moved=moved,
            patience=hub.retries,
        )
        self._bells, self._joined = hub._bells, hub._joined  # noqa: SLF001 - its maker
        self.on_lost = lambda: hub.look(time.monotonic())

    @property
    def resting(self) -> bool:
        """Whether nobody has waited for so long that it listens no more."""
        return not self._runs


def _left(until: float | None, most: float | None = None) -> float | None:
    if until is None:
        return most
    left = max(0.0, until - time.monotonic())
    return left if most is None else min(most, left)


def _one(heard: list[Future[None]]) -> bool:
    return any(future.done() and future.exception() is None for future in heard)
