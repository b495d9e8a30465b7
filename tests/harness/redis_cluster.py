"""Servers that take over from one another: a small Redis Cluster, and a master with a replica under Sentinels."""

from __future__ import annotations

import socket
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, Self

import psutil

from tests.harness.ports import free_port
from tests.harness.redis_server import RedisServer
from tests.harness.waiting import wait_until

_SLOTS = 16384
_NODE_TIMEOUT_MS = 1500
_DOWN_AFTER_MS = 700
_FAILOVER_TIMEOUT_MS = 1500
"""Sentinels that have chosen nobody, since each voted for itself, try again after twice that time."""


class _Servers(ABC):
    """Started as a whole, and ended as a whole, also where not all of it starts."""

    @abstractmethod
    def start(self) -> None:
        """Start everything."""

    @abstractmethod
    def close(self) -> None:
        """End everything."""

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


class RedisCluster(_Servers):
    """Masters that share the hash slots, each with a replica if asked for; use it as a context manager.

    Args:
        masters: How many.
        replicas: Whether each has a replica, which takes over when its master is gone.
    """

    def __init__(self, *, masters: int = 3, replicas: bool = False) -> None:
        options = (
            "--cluster-enabled", "yes", "--cluster-node-timeout", str(_NODE_TIMEOUT_MS),
            "--cluster-replica-validity-factor", "0", "--repl-diskless-sync-delay", "0",
        )  # fmt: skip
        self.masters = [_Member(options=options) for _ in range(masters)]
        self.replicas = [_Member(options=options) for _ in range(masters)] if replicas else []

    @property
    def servers(self) -> list[RedisServer]:
        """All of them."""
        return [*self.masters, *self.replicas]

    @property
    def url(self) -> str:
        """The URL for a store."""
        return "redis+cluster://" + ",".join(f"{server.host}:{server.port}" for server in self.masters)

    def start(self) -> None:
        """Start the servers, let them meet, and wait until all of them see the whole Cluster."""
        for server in self.servers:
            server.start()
        first, share = self.masters[0], _SLOTS // len(self.masters)
        for at, server in enumerate(self.masters):
            end = _SLOTS if server is self.masters[-1] else share * (at + 1)
            with server.client() as client:
                client.execute_command("CLUSTER", "SET-CONFIG-EPOCH", at + 1)
                client.execute_command("CLUSTER", "ADDSLOTS", *range(share * at, end))
        with first.client() as client:
            for server in self.servers[1:]:
                client.execute_command("CLUSTER", "MEET", server.host, server.port)
        wait_until("all servers have met", lambda: all(self._knows(server) for server in self.servers), timeout=60)
        for master, replica in zip(self.masters, self.replicas, strict=bool(self.replicas)):
            with replica.client() as client:
                client.execute_command("CLUSTER", "REPLICATE", self.node_id(master))
        wait_until("the Cluster serves", self.serves, timeout=60)

    def serves(self) -> bool:
        """Whether every running server sees all hash slots served, and every replica is up to date."""
        for server in self.servers:
            if not server.running:
                continue
            with server.client() as client:
                if b"cluster_state:ok" not in client.execute_command("CLUSTER", "INFO"):
                    return False
                role: Any = client.execute_command("ROLE")
                if server in self.replicas and not (role[0] == b"master" or role[3] == b"connected"):
                    return False
        return True

    def _knows(self, server: RedisServer) -> bool:
        with server.client() as client:
            return len(client.execute_command("CLUSTER", "NODES").splitlines()) == len(self.servers) and (
                b"handshake" not in client.execute_command("CLUSTER", "NODES")
            )

    @staticmethod
    def node_id(server: RedisServer) -> bytes:
        """Return what the Cluster calls a server."""
        with server.client() as client:
            return bytes(client.execute_command("CLUSTER", "MYID"))

    def owner(self, key: str | bytes) -> RedisServer:
        """Return the server that has a key's hash slot now."""
        with self._any().client() as client:
            slot = client.execute_command("CLUSTER", "KEYSLOT", key)
            for first, last, (_, port, *_), *_ in client.execute_command("CLUSTER", "SLOTS"):
                if first <= slot <= last:
                    return next(server for server in self.servers if server.port == port)
        raise AssertionError(f"nobody has hash slot {slot}")

    def _any(self) -> RedisServer:
        return next(server for server in self.servers if answers(server))

    def begin_move(self, key: str | bytes, target: RedisServer) -> int:
        """Begin to move a key's hash slot: keys that are not on its owner are asked for at ``target``."""
        source = self.owner(key)
        with source.client() as old, target.client() as new:
            slot = int(old.execute_command("CLUSTER", "KEYSLOT", key))
            new.execute_command("CLUSTER", "SETSLOT", slot, "IMPORTING", self.node_id(source))
            old.execute_command("CLUSTER", "SETSLOT", slot, "MIGRATING", self.node_id(target))
        return slot

    def end_move(self, slot: int, source: RedisServer, target: RedisServer) -> None:
        """Move a hash slot's keys and tell all masters."""
        with source.client() as client:
            names = client.execute_command("CLUSTER", "GETKEYSINSLOT", slot, 1000)
            if names:
                client.execute_command("MIGRATE", target.host, target.port, "", 0, 5000, "KEYS", *names)
        for server in (target, source, *(other for other in self.masters if other not in (source, target))):
            with server.client() as client:
                client.execute_command("CLUSTER", "SETSLOT", slot, "NODE", self.node_id(target))

    def flush(self) -> None:
        """Remove all keys."""
        for server in self.masters:
            with server.client() as client:
                client.flushall()

    def close(self) -> None:
        """End the servers."""
        for server in self.servers:
            server.close()


class RedisSentinels(_Servers):
    """A master, its replica and Sentinels that let the replica take over; use it as a context manager.

    Args:
        sentinels: How many; the majority decides. Of two, each of which votes for itself, none can be chosen.
    """

    service = "the-master"

    def __init__(self, *, sentinels: int = 3) -> None:
        self.count = sentinels
        self.first, self.second = (RedisServer(options=("--repl-diskless-sync-delay", "0")) for _ in range(2))
        self.sentinels: list[_Sentinel] = []

    @property
    def url(self) -> str:
        """The URL for a store."""
        named = ",".join(f"{server.host}:{server.port}" for server in self.sentinels)
        return f"redis+sentinel://{named}/{self.service}/0"

    def start(self) -> None:
        """Start everything, and wait until the Sentinels know one another and the replica."""
        self.first.start()
        self.second.start()
        with self.second.client() as client:
            client.execute_command("REPLICAOF", self.first.host, self.first.port)
        wait_until("the replica follows", lambda: _role(self.second)[3] == b"connected", timeout=30)
        for _ in range(self.count):
            sentinel = _Sentinel(self.first, self.service, quorum=self.count // 2 + 1)
            self.sentinels.append(sentinel)
            sentinel.start()
        wait_until("the Sentinels know everybody", lambda: all(map(self._complete, self.sentinels)), timeout=30)

    def _complete(self, sentinel: RedisServer) -> bool:
        with sentinel.client() as client:
            facts: Any = client.sentinel_master(self.service)
        return facts["num-slaves"] == 1 and facts["num-other-sentinels"] == self.count - 1

    @property
    def master(self) -> RedisServer | None:
        """The server that the Sentinels name now."""
        with self.sentinels[0].client() as client:
            found = client.execute_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self.service)
        return next((server for server in (self.first, self.second) if int(found[1]) == server.port), None)

    def close(self) -> None:
        """End the servers."""
        for server in (*self.sentinels, self.first, self.second):
            server.close()


class _Member(RedisServer):
    """A server of a Cluster, whose second port is 10,000 above its first."""

    def _launch(self, binary: Path) -> None:
        while not _free(self.port + 10_000):
            self.port = free_port()
        super()._launch(binary)


class _Sentinel(RedisServer):
    def __init__(self, master: RedisServer, service: str, *, quorum: int) -> None:
        super().__init__()
        self._lines = (
            f"sentinel monitor {service} {master.host} {master.port} {quorum}",
            f"sentinel down-after-milliseconds {service} {_DOWN_AFTER_MS}",
            f"sentinel failover-timeout {service} {_FAILOVER_TIMEOUT_MS}",
        )

    def _launch(self, binary: Path) -> None:
        assert self._dir is not None
        config = self._dir / "sentinel.conf"
        config.write_text("\n".join((f"port {self.port}", f"bind {self.host}", f"dir {self._dir}", *self._lines)))
        self._spawn([str(binary), str(config), "--sentinel"])


def answers(server: RedisServer) -> bool:
    """Whether a server runs and is not paused."""
    return server.running and psutil.Process(server.pid).status() != psutil.STATUS_STOPPED


def _free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _role(server: RedisServer) -> Any:
    with server.client() as client:
        return client.execute_command("ROLE")
