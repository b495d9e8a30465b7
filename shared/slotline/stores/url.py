"""Redis URLs: checked early, shown without credentials."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

from slotline._checks import refuse

SCHEMES = ("redis", "rediss", "unix")
_ALLOWED = "a URL like redis://[user:password@]host[:port][/database], rediss://... or unix:///path/to/socket"


def check_url(option: str, value: Any) -> str:
    """Return ``value`` if it is a Redis URL.

    Raises:
        InvalidOptionError: It is not one; the password is not shown.
    """
    if not isinstance(value, str):
        raise refuse(option, value, _ALLOWED)
    try:
        parts = urlsplit(value)
        port = parts.port
    except ValueError:
        raise refuse(option, value.rpartition("@")[2], _ALLOWED) from None
    database = parts.path.strip("/")
    if (
        parts.scheme not in SCHEMES
        or (parts.scheme == "unix" and not parts.path)
        or (parts.scheme != "unix" and (not parts.hostname or port == 0 or (database and not database.isdigit())))
    ):
        raise refuse(option, shown_url(value), _ALLOWED)
    return value


def shown_url(url: str) -> str:
    """Return the URL without user, password and query, for errors and logs."""
    scheme, separator, rest = url.partition("://")
    if not separator:
        return url.rpartition("@")[2]
    return f"{scheme}://{rest.partition('?')[0].rpartition('@')[2]}"
