"""How clients are made from a URL or from a client that the user already has."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import redis
import redis.asyncio
import redis.asyncio.connection
from redis.backoff import NoBackoff
from redis.retry import Retry

from slotline._checks import refuse
from slotline.stores._topology import ClusterTopology, SentinelTopology, Topology
from slotline.stores.url import Servers, read_url, shown_url, without

_ALLOWED = (
    "a Redis URL, or a client of redis-py for one server (redis.Redis or redis.asyncio.Redis); "
    "Sentinels and a Cluster are named by URL: redis+sentinel://host:port/service, redis+cluster://host:port"
)
_LONGEST_QUESTION = 2.0
_DECIDED_HERE = frozenset({
    "decode_responses", "health_check_interval", "max_connections", "protocol", "retry_on_error", "retry_on_timeout",
    "socket_connect_timeout", "socket_timeout", "timeout",
})  # fmt: skip
"""Options of redis-py for what the store does itself, or needs as it is."""

_OF_ITS_POOL = ("himport_", "maint_notifications_", "orig_")
"""What redis-py's pools tell their connections about themselves, and not all kinds of connections understand."""

logger = logging.getLogger("slotline.stores")


class Connections:
    """Makes redis-py clients for the servers that ``target`` names; none is open before it is used.

    redis-py's own retries are off, since they multiply its time-outs: the store retries. Replies stay ``bytes``.

    Args:
        target: A Redis URL, or a redis-py client whose connection options are taken over.
        timeout: Seconds for a connect, a read or a write.
        max_connections: The most connections of one blocking client.
    """

    def __init__(self, target: Any, *, timeout: float, max_connections: int) -> None:
        self.max_connections = max_connections
        self._timeout = timeout
        self._servers: Servers | None = None
        self._kwargs: dict[str, Any] = {}
        self._connection_class = "Connection"
        if isinstance(target, redis.Redis | redis.asyncio.Redis):
            pool = target.connection_pool
            self._kwargs = {
                name: option for name, option in pool.connection_kwargs.items() if not name.startswith(_OF_ITS_POOL)
            }
            self._connection_class = pool.connection_class.__name__
            if not hasattr(redis.connection, self._connection_class):  # one that a Sentinel manages
                raise refuse("url", target, _ALLOWED)
            where = self._kwargs
            ignored = ["health_check_interval"] if self._kwargs.pop("health_check_interval", 0) else []
            self.name = (
                where.get("path")
                or f"redis://{where.get('host', 'localhost')}:{where.get('port', 6379)}/{where.get('db') or 0}"
            )
        elif isinstance(target, str):
            read_url("url", target)
            target, ignored = without(_DECIDED_HERE, target)
            self._servers = read_url("url", target)
            self.name = shown_url(target)
            self._check_parameters(self._servers)
        else:
            raise refuse("url", target, _ALLOWED)
        if ignored:
            logger.warning(
                "redis-py's %s is left out for %s: the store connects, checks and repeats in its own way; "
                "see its timeout, retries and max_connections",
                *(", ".join(sorted(ignored)), self.name),
            )

    def _check_parameters(self, servers: Servers) -> None:
        """Make a connection and leave it unconnected, which says what redis-py does not know."""
        node = servers.nodes[0] if servers.nodes else ""
        try:
            redis.ConnectionPool.from_url(servers.url(node)).make_connection()
        except (TypeError, ValueError) as error:
            raise refuse("url", self.name, f"a URL with parameters that redis-py knows ({error})") from None

    def topology(self) -> Topology:
        """Return what finds out which of the servers answers for what, for one process."""
        servers = self._servers
        if servers is None or servers.kind == "standalone":
            return Topology()
        if servers.kind == "cluster":
            return ClusterTopology(servers, lambda node: self._dial(servers.url(node)))
        return SentinelTopology(servers, lambda node: self._dial(servers.sentinel_url(node)))

    def blocking(self, node: str = "", topology: Topology | None = None) -> redis.Redis:
        """Return a new client for threads; callers beyond its connections wait for one.

        Args:
            node: The server, where there are several.
            topology: Asked at each new connection whether the server still is what it was.
        """
        options = self._options(Retry(NoBackoff(), 0), redis.connection)
        if topology is not None:

            def greet(connection: Any) -> None:
                connection.on_connect()
                topology.confirm(node)

            options["redis_connect_func"] = greet
        pool: redis.ConnectionPool
        if self._servers is not None:
            pool = redis.BlockingConnectionPool.from_url(
                self._servers.url(node), max_connections=self.max_connections, timeout=self._timeout, **options
            )
        else:
            pool = redis.BlockingConnectionPool(max_connections=self.max_connections, timeout=self._timeout, **options)
        return redis.Redis(connection_pool=pool)

    def awaiting(self, max_connections: int, node: str = "", topology: Topology | None = None) -> redis.asyncio.Redis:
        """Return a new client for the running event loop; ``node`` and ``topology`` as for :meth:`blocking`."""
        # No time-out for each read: redis-py would arm a timer for it, and on Python 3.11 lose cancellations in it. The
        # store puts one around the whole exchange.
        options = self._options(redis.asyncio.retry.Retry(NoBackoff(), 0), redis.asyncio.connection)
        options["socket_timeout"] = None
        if topology is not None:

            async def greet(connection: Any) -> None:
                await connection.on_connect()
                await asyncio.to_thread(topology.confirm, node)

            options["redis_connect_func"] = greet
        if self._servers is not None:
            url = self._servers.url(node)
            pool = redis.asyncio.ConnectionPool.from_url(url, max_connections=max_connections, **options)
        else:
            pool = redis.asyncio.ConnectionPool(max_connections=max_connections, **options)
        return redis.asyncio.Redis(connection_pool=pool)

    def _dial(self, url: str) -> redis.Redis:
        """Return a client of a server that is asked where others are: the next is asked soon if it does not answer."""
        seconds = min(self._timeout, _LONGEST_QUESTION)
        options = self._options(Retry(NoBackoff(), 0), redis.connection)
        options.update(socket_timeout=seconds, socket_connect_timeout=seconds)
        return redis.Redis.from_url(url, **options)

    def _options(self, retry: Any, classes: Any) -> dict[str, Any]:
        options = {
            **self._kwargs,
            "retry": retry,
            "retry_on_error": [],
            "decode_responses": False,
            "socket_timeout": self._timeout,
            "socket_connect_timeout": self._timeout,
            "protocol": 2,
        }
        if self._servers is None:
            options["connection_class"] = getattr(classes, self._connection_class)
        return options
