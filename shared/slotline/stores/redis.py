"""State in Redis or Valkey, shared by many processes and machines."""

from __future__ import annotations

import asyncio
import os
import threading
import time
import uuid
import weakref
from collections.abc import Callable, Sequence
from typing import Any, cast

import redis
import redis.asyncio

from slotline import _checks, settings
from slotline.errors import StoreError, StoreUnavailableError
from slotline.steps import run_blocking
from slotline.stores._connections import Connections
from slotline.stores._lines import BlockingLines
from slotline.stores._loop_wakeups import LoopWakeups
from slotline.stores._loops import LoopLinks
from slotline.stores._node_wakeups import NodeWakeups
from slotline.stores._redis_errors import translated
from slotline.stores._redis_wakeups import RedisWakeups
from slotline.stores._sending import Fleet, ask_blocking, sending
from slotline.stores._topology import ClusterTopology, MovingTopology, Topology
from slotline.stores._wires import Wires
from slotline.stores.base import Command, Reply, Store, SyncStore, undoing
from slotline.stores.keeper import Keeper
from slotline.stores.wakeups import Wakeups


class RedisStore(Store, Fleet):
    """A store on Redis >= 6.2 or Valkey, for any number of processes and machines.

    Nothing is connected before the first call. Each process, and each event loop in it, has clients of its own;
    a forked child makes new ones. Calls of one loop are coalesced into pipelines on at most a handful of
    connections, a server. A broken connection is retried with backoff, where Sentinels or a Cluster say that the
    data is by then; commands are idempotent, so a repeated one is harmless.

    Args:
        url: ``redis://``, ``rediss://`` or ``unix://`` URL; ``redis+sentinel://host:port,host:port/service/db``;
            ``redis+cluster://host:port,host:port``; or a client of redis-py for one server, whose options are taken
            over.
        prefix: The first part of every key.
        timeout: Seconds for one connect, read or write (default 5).
        retries: How often a call is repeated on a broken connection before it raises (default 3).
        max_connections: The most connections that this process's threads open together, to each server (default 50).

    Raises:
        InvalidOptionError: An argument cannot be used; an unreachable server shows at the first call, as
            ``StoreUnavailableError``.
    """

    shared = True

    def __init__(
        self,
        url: str | redis.Redis | redis.asyncio.Redis,
        *,
        prefix: str = "slotline",
        timeout: float = 5.0,
        retries: int = 3,
        max_connections: int = 50,
    ) -> None:
        self.timeout = _checks.seconds("timeout", timeout)
        self._connections = Connections(
            url,
            timeout=self.timeout,
            max_connections=_checks.whole_number("max_connections", max_connections),
        )
        self.name = self._connections.name
        self.prefix = _checks.key_prefix("prefix", prefix)
        self.retries = _checks.whole_number("retries", retries, at_least=0)
        self.sync = SyncRedisStore(self)
        self._lock = threading.Lock()
        self._fresh()
        _stores.add(self)

    def _fresh(self) -> None:
        """Forget everything that belongs to a process: at first, and in a forked child."""
        self._lock = threading.Lock()
        self.topology: Topology = self._connections.topology()
        if isinstance(self.topology, MovingTopology):
            self.topology.on_change = self._follow
        self._lines: dict[str, BlockingLines] = {}
        self._loops: dict[asyncio.AbstractEventLoop, LoopLinks] = {}
        self._wakeups: NodeWakeups | RedisWakeups | None = None
        self._keeper: Keeper | None = None

    def __repr__(self) -> str:
        return f"RedisStore({self.name!r}, prefix={self.prefix!r})"

    @property
    def scattered(self) -> bool:
        """Whether it is on a Redis Cluster."""
        return isinstance(self.topology, ClusterTopology)

    @property
    def wakeups(self) -> Wakeups:
        """This process's doorbells."""
        if self._wakeups is None:
            with self._lock:
                if self._wakeups is None:
                    if self.topology.moves:
                        self._wakeups = NodeWakeups(
                            *(self.name, self._new_channel(), self._dial, self.topology),
                            timeout=self.timeout,
                            retries=self.retries,
                        )
                    else:
                        self._wakeups = RedisWakeups(
                            self.name, self._new_channel(), self._connections.blocking, timeout=self.timeout
                        )
        return self._wakeups

    @property
    def loop_wakeups(self) -> Wakeups:
        """See :attr:`Store.loop_wakeups`."""
        return self.wakeups if self.topology.moves else self._links().wakeups

    def _listen_in(self, links: LoopLinks) -> LoopWakeups:
        def process() -> RedisWakeups:
            return cast("RedisWakeups", self.wakeups)

        return LoopWakeups(
            self.name,
            self._new_channel(),
            make=links.make_connection,
            tie=links.tie,
            process=process,
            timeout=self.timeout,
        )

    def _new_channel(self) -> str:
        return f"{self.prefix}:wake:{uuid.uuid4().hex}"

    @property
    def keeper(self) -> Keeper:
        """This process's heartbeat."""
        if self._keeper is None:
            with self._lock:
                if self._keeper is None:
                    self._keeper = Keeper(self.sync.execute_many, self._lane)
        return self._keeper

    def client(self) -> redis.Redis:
        """Return this process's blocking client, of any server that takes writes where there are several."""
        return self.blocking_lines(self._any_master()).client

    def listener(self, channel: str, heard: Callable[[bytes], None]) -> RedisWakeups:
        """Return what hears a channel, in a thread and over a connection of its own; see :meth:`Wakeups.join`."""
        made = RedisWakeups(
            f"{self.name}, {channel}",
            self._new_channel(),
            lambda: self._dial(self._any_master()),
            timeout=self.timeout,
            moved=True,
        )
        made.join(channel, heard)
        return made

    def _any_master(self) -> str:
        topology = self.topology
        if not topology.masters:
            try:
                topology.look(float("-inf"))
            except redis.ConnectionError as error:
                raise translated(self.name, error) from error
        return topology.any_master() or ""

    def blocking_lines(self, node: str) -> BlockingLines:
        """See :meth:`Fleet.blocking_lines`."""
        lines = self._lines.get(node)
        if lines is None:
            with self._lock:
                lines = self._lines.get(node)
                if lines is None:
                    limit = self._connections.max_connections
                    lines = self._lines[node] = BlockingLines(self._dial(node), limit, self.timeout)
        return lines

    def wires(self, node: str) -> Wires:
        """See :meth:`Fleet.wires`."""
        return self._links().wires(node)

    def _dial(self, node: str) -> redis.Redis:
        return self._connections.blocking(node, self.topology if self.topology.moves else None)

    def _lane(self, command: Command) -> str | None:
        """Return what travels together: no server's calls wait for another server."""
        if not self.topology.moves:
            return ""
        try:
            return self.topology.node(command)
        except StoreError:  # it is told when it is sent
            return None

    def _follow(self) -> None:
        """The servers that take writes have changed; clients of others stay, idle: they may come back."""
        wakeups = self._wakeups
        if isinstance(wakeups, NodeWakeups):
            wakeups.follow()

    async def execute(self, command: Command) -> Reply:
        """See :meth:`Store.execute`."""
        return await self._links().lane(self._lane(command)).submit(command)

    async def execute_many(self, commands: Sequence[Command]) -> list[Reply | Exception]:
        """See :meth:`Store.execute_many`."""
        links, lanes = self._links(), [self._lane(command) for command in commands]
        replies: dict[int, asyncio.Future[Any]] = {}
        for lane in dict.fromkeys(lanes):
            numbers = [number for number, its in enumerate(lanes) if its == lane]
            together = links.lane(lane).submit_all([commands[number] for number in numbers])
            replies.update(zip(numbers, together, strict=True))
        return await asyncio.gather(*(replies[number] for number in range(len(commands))), return_exceptions=True)

    def _links(self) -> LoopLinks:
        loop = asyncio.get_running_loop()
        links = self._loops.get(loop)
        if links is None:
            for ended in [other for other in list(self._loops) if other.is_closed()]:
                self._loops.pop(ended, None)  # without a word: its asynchronous generators were not closed first

            def make(max_connections: int, node: str) -> redis.asyncio.Redis:
                return self._connections.awaiting(max_connections, node, self.topology if self.topology.moves else None)

            def closed() -> None:
                self._loops.pop(loop, None)

            links = self._loops[loop] = LoopLinks(self, make, self._give_back, self._listen_in, closed)
        return links

    def _give_back(self, command: Command) -> None:
        # The caller's own release travels another way, and may have come before what it was to undo.
        undo = undoing(command)
        if undo is not None:
            self.settle(undo, settings.current().heartbeat_lease)

    def settle(self, command: Command, seconds: float) -> None:
        """See :meth:`Store.settle`."""
        self.keeper.later(command, seconds)

    async def close(self) -> None:
        """See :meth:`Store.close`."""
        links = self._loops.pop(asyncio.get_running_loop(), None)
        if links is not None:
            await links.close()
        await asyncio.get_running_loop().run_in_executor(None, self.sync.close)


class SyncRedisStore(SyncStore):
    """The blocking face of a :class:`RedisStore`; any number of threads may use it."""

    def __init__(self, store: RedisStore) -> None:
        self._store = store

    def execute(self, command: Command) -> Reply:
        """See :meth:`RedisStore.execute`."""
        return self._answer(ask_blocking(self._store, command))

    def execute_until(self, command: Command, until: float) -> Reply:
        """See :meth:`Store.execute_until`."""
        outcome = ask_blocking(self._store, command, until)
        if isinstance(outcome, StoreUnavailableError) and time.monotonic() >= until:
            raise TimeoutError(str(outcome)) from outcome
        return self._answer(outcome)

    def _answer(self, outcome: Any) -> Reply:
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def execute_many(self, commands: Sequence[Command]) -> list[Reply | Exception]:
        """See :meth:`RedisStore.execute_many`."""
        if not commands:
            return []
        outcomes = run_blocking(sending(self._store, commands))
        if all(isinstance(outcome, StoreUnavailableError) for outcome in outcomes):
            raise outcomes[0]
        return outcomes

    def close(self) -> None:
        """See :meth:`RedisStore.close`."""
        store = self._store
        lines, wakeups, keeper = store._lines, store._wakeups, store._keeper  # noqa: SLF001 - its other face
        store._lines, store._wakeups, store._keeper = {}, None, None  # noqa: SLF001 - its other face
        if keeper is not None:
            keeper.close()
        if wakeups is not None:
            wakeups.close()
        for each in lines.values():
            each.close()


_stores: weakref.WeakSet[RedisStore] = weakref.WeakSet()


def _after_fork() -> None:
    for store in list(_stores):
        store._fresh()  # noqa: SLF001 - this module's own


os.register_at_fork(after_in_child=_after_fork)
