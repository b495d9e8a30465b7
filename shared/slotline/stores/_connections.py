"""How clients are made from a URL or from a client that the user already has."""

from __future__ import annotations

from typing import Any

import redis
import redis.asyncio
import redis.asyncio.connection
from redis.backoff import NoBackoff
from redis.retry import Retry

from slotline._checks import refuse
from slotline.stores.url import check_url, shown_url

_ALLOWED = "a Redis URL or a client of redis-py (redis.Redis or redis.asyncio.Redis)"


class Connections:
    """Makes redis-py clients for one server; none is open before it is used.

    redis-py's own retries are off, since they multiply its time-outs: the store retries. Replies stay ``bytes``.

    Args:
        target: A Redis URL, or a redis-py client whose connection options are taken over.
        timeout: Seconds for a connect, a read or a write.
        max_connections: The most connections of one blocking client.
    """

    def __init__(self, target: Any, *, timeout: float, max_connections: int) -> None:
        self._max_connections = max_connections
        self._timeout = timeout
        self._url: str | None = None
        self._kwargs: dict[str, Any] = {}
        self._connection_class = "Connection"
        if isinstance(target, redis.Redis | redis.asyncio.Redis):
            pool = target.connection_pool
            self._kwargs = dict(pool.connection_kwargs)
            self._connection_class = pool.connection_class.__name__
            where = self._kwargs
            self.name = (
                where.get("path")
                or f"redis://{where.get('host', 'localhost')}:{where.get('port', 6379)}/{where.get('db') or 0}"
            )
        elif isinstance(target, str):
            self._url = check_url("url", target)
            self.name = shown_url(target)
        else:
            raise refuse("url", target, _ALLOWED)

    def blocking(self) -> redis.Redis:
        """Return a new client for threads; callers beyond its connections wait for one."""
        options = self._options(Retry(NoBackoff(), 0), redis.connection)
        pool: redis.ConnectionPool
        if self._url is not None:
            pool = redis.BlockingConnectionPool.from_url(
                self._url, max_connections=self._max_connections, timeout=self._timeout, **options
            )
        else:
            pool = redis.BlockingConnectionPool(max_connections=self._max_connections, timeout=self._timeout, **options)
        return redis.Redis(connection_pool=pool)

    def awaiting(self, max_connections: int) -> redis.asyncio.Redis:
        """Return a new client for the running event loop."""
        # No time-out for each read: redis-py would arm a timer for it, and on Python 3.11 lose cancellations in it. The
        # store puts one around the whole exchange.
        options = self._options(redis.asyncio.retry.Retry(NoBackoff(), 0), redis.asyncio.connection)
        options["socket_timeout"] = None
        if self._url is not None:
            pool = redis.asyncio.ConnectionPool.from_url(self._url, max_connections=max_connections, **options)
        else:
            pool = redis.asyncio.ConnectionPool(max_connections=max_connections, **options)
        return redis.asyncio.Redis(connection_pool=pool)

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
        options.pop("himport_registry", None)
        options.pop("maint_notifications_config", None)
        if self._url is None:
            options["connection_class"] = getattr(classes, self._connection_class)
        return options
