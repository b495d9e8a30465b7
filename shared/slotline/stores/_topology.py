"""Which server answers for a command: the one there is, the master of the moment, or the owner of a hash slot."""

from __future__ import annotations

import logging
import random
import threading
import time
from abc import abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import redis
from redis.crc import REDIS_CLUSTER_HASH_SLOTS, key_slot

from slotline.errors import StoreError
from slotline.stores._redis_errors import Redirection, address
from slotline.stores.base import Command
from slotline.stores.url import Servers

logger = logging.getLogger("slotline.stores")

Dial = Callable[[str], Any]
"""Makes a blocking client of a server that is asked for the others, ``"host:port"``."""


class Topology:
    """One server, which stays where it is.

    Attributes:
        moves: Whether another server may answer for the same command later.
        masters: The servers that take writes, ``"host:port"``; none while they are not known.
    """

    moves = False
    masters: tuple[str, ...] = ("",)

    def node(self, command: Command) -> str | None:  # noqa: ARG002 - others look at it
        """Return the server for a command; ``None`` while it is not known.

        Raises:
            StoreError: The command's keys are not on one server.
        """
        return ""

    def any_master(self) -> str | None:
        """Return one of the servers that take writes, ``None`` while none is known."""
        return random.choice(self.masters) if self.masters else None  # noqa: S311 - spreads the load

    def look(self, since: float) -> None:
        """Find out who answers now, unless that was done after ``since`` (monotonic); blocking."""

    def confirm(self, node: str) -> None:
        """Raise redis-py's ``ConnectionError`` if ``node`` takes writes no more; asked at each new connection."""

    def moved(self, error: Redirection) -> None:
        """Take notice of a server's word that another one has a hash slot."""

    def outgoing(self, command: Command, node: str) -> Command:  # noqa: ARG002 - others look at it
        """Return the command as ``node`` understands it."""
        return command

    def incoming(self, command: Command, node: str, reply: Any) -> Any:  # noqa: ARG002 - others look at it
        """Return the reply of ``node`` as whoever sent the command understands it."""
        return reply


class MovingTopology(Topology):
    """Servers that take over from one another, as other servers know.

    Args:
        seeds: The servers that are asked at first.
        dial: Connects to one of them.
    """

    moves = True

    def __init__(self, seeds: tuple[str, ...], dial: Dial) -> None:
        self.masters = ()
        self.on_change: Callable[[], None] | None = None
        self._dial = dial
        self._lock = threading.Lock()
        self._known = list(seeds)
        random.shuffle(self._known)
        self._looked = float("-inf")

    def look(self, since: float) -> None:
        """Ask one server after the other, those last that have not answered lately.

        Raises:
            redis.ConnectionError: None of them knows.
        """
        with self._lock:
            if self._looked > since:
                return
            before = self.masters
            with self._asking(self._read) as found:
                self._looked = time.monotonic()
                self.masters = found
        if self.masters != before:
            if before:
                logger.info("writes go to %s now", ", ".join(self.masters))
            if self.on_change is not None:
                self.on_change()

    @contextmanager
    def _asking(self, read: Callable[[str, Any], Any]) -> Iterator[Any]:
        why: Exception | str = "nobody was asked"
        for node in list(self._known):
            client = self._dial(node)
            try:
                answer = read(node, client)
            except Exception as error:  # noqa: BLE001 - the next one may know
                answer, why = None, error
            finally:
                client.connection_pool.disconnect()
            if answer:
                yield answer
                return
            self._known = [*(name for name in self._known if name != node), node]
        raise redis.ConnectionError(f"none of {', '.join(self._known)} says where writes go: {why}")

    @abstractmethod
    def _read(self, node: str, client: Any) -> tuple[str, ...]:
        """Read from ``node`` who takes writes; nothing where it does not know."""


class SentinelTopology(MovingTopology):
    """The master that Sentinels name.

    Args:
        servers: The URL's Sentinels.
        dial: Connects to a Sentinel.
    """

    def __init__(self, servers: Servers, dial: Dial) -> None:
        super().__init__(servers.nodes, dial)
        self._service = servers.service

    def node(self, command: Command) -> str | None:  # noqa: ARG002 - all go to the master
        """See :meth:`Topology.node`."""
        return self.masters[0] if self.masters else None

    def confirm(self, node: str) -> None:
        """See :meth:`Topology.confirm`: a master that comes back takes writes until it is told that it is none."""
        # By itself, since whoever looks may wait for this connection.
        with self._asking(self._read) as (master,):
            if master != node:
                raise redis.ConnectionError(f"{node} is not the master of {self._service!r} any more")

    def _read(self, node: str, client: Any) -> tuple[str, ...]:  # noqa: ARG002 - a Sentinel names hosts in full
        found = client.execute_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self._service)
        return (address(found[0], found[1], ""),) if found else ()


class ClusterTopology(MovingTopology):
    """The masters of a Redis Cluster, each with its hash slots.

    Args:
        servers: The URL's servers.
        dial: Connects to a server.
    """

    def __init__(self, servers: Servers, dial: Dial) -> None:
        super().__init__(servers.nodes, dial)
        self._owners: list[str | None] = [None] * REDIS_CLUSTER_HASH_SLOTS

    def node(self, command: Command) -> str | None:
        """See :meth:`Topology.node`."""
        if command.keys:
            return self._owners[slot_of(command.keys)]
        if command.script == "SCAN":
            return self._scanned(command) or (self.masters[0] if self.masters else None)
        return self.any_master()

    def moved(self, error: Redirection) -> None:
        """See :meth:`Topology.moved`."""
        self._owners[error.slot] = error.node

    def outgoing(self, command: Command, node: str) -> Command:
        """See :meth:`Topology.outgoing`: a cursor says whose it is, ``"17@host:port"``."""
        if command.script != "SCAN":
            return command
        cursor = str(command.args[0]).partition("@")[0] if self._scanned(command) == node else "0"
        return command._replace(args=(cursor, *command.args[1:]))

    def incoming(self, command: Command, node: str, reply: Any) -> Any:
        """See :meth:`Topology.incoming`: after one server's last page comes the next server's first."""
        if command.script != "SCAN" or isinstance(reply, Exception):
            return reply
        cursor, found = int(reply[0]), reply[1]
        after = next((name for name in self.masters if name > node), None) if cursor == 0 else node
        return [0 if after is None else f"{cursor}@{after}", found]

    def _scanned(self, command: Command) -> str | None:
        """Return the server that a cursor belongs to; ``None`` for a new one, and when the server has gone."""
        server = str(command.args[0]).partition("@")[2]
        return server if server in self.masters else None

    def _read(self, node: str, client: Any) -> tuple[str, ...]:
        owners: list[str | None] = [None] * REDIS_CLUSTER_HASH_SLOTS
        masters: dict[str, None] = {}
        for first, last, *servers in client.execute_command("CLUSTER", "SLOTS"):
            named = [address(host, port, node) for host, port, *_ in servers]
            owners[first : last + 1] = [named[0]] * (last + 1 - first)
            masters[named[0]] = None
            self._known = [*self._known, *(name for name in named if name not in self._known)]
        if masters:
            self._owners = owners
        return tuple(sorted(masters))


@lru_cache(maxsize=4096)
def slot_of(keys: tuple[str | bytes, ...]) -> int:
    """Return the hash slot of keys that belong together.

    Raises:
        StoreError: They are in several, which a Cluster does not let one command touch.
    """
    slots = {key_slot(key if isinstance(key, bytes) else key.encode("utf-8", "surrogatepass")) for key in keys}
    if len(slots) > 1:
        shown = ", ".join(key.decode("utf-8", "replace") if isinstance(key, bytes) else key for key in keys)
        raise StoreError(f"CROSSSLOT: a Redis Cluster runs no command on keys of several hash slots ({shown[:300]})")
    return slots.pop()
