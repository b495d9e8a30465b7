"""Redis URLs: checked early, taken apart, shown without credentials."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

from slotline._checks import refuse

Kind: TypeAlias = Literal["standalone", "sentinel", "cluster"]

_PLAIN = ("redis", "rediss", "unix")
_ALLOWED = (
    "a URL like redis://[user:password@]host[:port][/database], rediss://..., unix:///path/to/socket, "
    "redis+sentinel://host[:port][,host[:port]...]/service[/database] or redis+cluster://host[:port][,host[:port]...]"
)
_SENTINEL = "a URL like redis+sentinel://[user:password@]host[:port][,host[:port]...]/service[/database]"
_CLUSTER = "a URL like redis+cluster://[user:password@]host[:port][,host[:port]...], without a database"
_HOST = re.compile(r"(\[[0-9A-Fa-f:.%]+\]|[^:\[\]\s/]+)(?::(\d{1,5}))?")
_SENTINELS_OWN = ("sentinel_username", "sentinel_password")


@dataclass(frozen=True, slots=True)
class Servers:
    """What a URL says: which servers to ask, and how the URL of one of them is made.

    Attributes:
        kind: ``"standalone"``, ``"sentinel"`` or ``"cluster"``.
        nodes: ``"host:port"`` of the servers that the URL names; none for a standalone one.
        service: What the Sentinels call the master.
    """

    kind: Kind
    whole: str
    nodes: tuple[str, ...] = ()
    service: str = ""
    database: str = ""

    def url(self, node: str) -> str:
        """Return the URL of a server with data."""
        if self.kind == "standalone":
            return self.whole
        parts = urlsplit(self.whole)
        query = urlencode([pair for pair in parse_qsl(parts.query) if pair[0] not in _SENTINELS_OWN])
        login, at, _ = parts.netloc.rpartition("@")
        scheme = parts.scheme.partition("+")[0]
        return f"{scheme}://{login}{at}{node}/{self.database}{'?' if query else ''}{query}"

    def sentinel_url(self, node: str) -> str:
        """Return the URL of a Sentinel, which has users and passwords of its own."""
        parts = urlsplit(self.whole)
        options = dict(parse_qsl(parts.query))
        user, password = (quote(options.pop(name, ""), safe="") for name in _SENTINELS_OWN)
        login = f"{user}:{password}@" if user or password else ""
        query = urlencode(options)
        return f"{parts.scheme.partition('+')[0]}://{login}{node}/{'?' if query else ''}{query}"


def without(names: Collection[str], url: str) -> tuple[str, list[str]]:
    """Return the URL without the parameters called so, and the names of those that it had."""
    whole, _, query = url.partition("?")
    pairs = parse_qsl(query, keep_blank_values=True)
    gone = [name for name, _ in pairs if name in names]
    left = urlencode([pair for pair in pairs if pair[0] not in names])
    return (f"{whole}?{left}" if left else whole) if gone else url, gone


def check_url(option: str, value: Any) -> str:
    """Return ``value`` if it is a Redis URL.

    Raises:
        InvalidOptionError: It is not one; the password is not shown.
    """
    read_url(option, value)
    assert isinstance(value, str)  # noqa: S101 - for the type checker
    return value


def read_url(option: str, value: Any) -> Servers:
    """Take a Redis URL apart.

    Raises:
        InvalidOptionError: It is not one; the password is not shown.
    """
    if not isinstance(value, str):
        raise refuse(option, value, _ALLOWED)
    try:
        parts = urlsplit(value)
        scheme, _, kind = parts.scheme.partition("+")
        port = None if kind else parts.port
    except ValueError:
        raise refuse(option, value.rpartition("@")[2], _ALLOWED) from None
    if kind in ("sentinel", "cluster") and scheme in ("redis", "rediss"):
        return _sentinels(option, value) if kind == "sentinel" else _cluster(option, value)
    database = parts.path.strip("/")
    if (
        kind
        or scheme not in _PLAIN
        or (scheme == "unix" and not parts.path)
        or (scheme != "unix" and (not parts.hostname or port == 0 or (database and not database.isdigit())))
    ):
        raise refuse(option, shown_url(value), _ALLOWED)
    return Servers("standalone", value)


def _sentinels(option: str, value: str) -> Servers:
    nodes = _nodes(value, 26379)
    service, _, database = urlsplit(value).path.strip("/").partition("/")
    if not nodes or not service or (database and not database.isdecimal()):
        raise refuse(option, shown_url(value), _SENTINEL)
    return Servers("sentinel", value, nodes, unquote(service), database)


def _cluster(option: str, value: str) -> Servers:
    nodes = _nodes(value, 6379)
    if not nodes or urlsplit(value).path.strip("/") not in ("", "0"):
        raise refuse(option, shown_url(value), _CLUSTER)
    return Servers("cluster", value, nodes)


def _nodes(value: str, default_port: int) -> tuple[str, ...]:
    """Return ``"host:port"`` of each server that is named; nothing where one of them cannot be."""
    nodes = []
    for named in urlsplit(value).netloc.rpartition("@")[2].split(","):
        found = _HOST.fullmatch(named)
        if found is None or not 0 < (port := int(found[2] or default_port)) < 2**16:
            return ()
        nodes.append(f"{found[1]}:{port}")
    return tuple(nodes)


def shown_url(url: str) -> str:
    """Return the URL without user, password and query, for errors and logs."""
    scheme, separator, rest = url.partition("://")
    if not separator:
        return url.rpartition("@")[2]
    return f"{scheme}://{rest.partition('?')[0].rpartition('@')[2]}"
