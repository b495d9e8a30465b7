"""Looking for keys by a pattern: in steps, so that the server is never blocked; on a Cluster, on all of its servers."""

from __future__ import annotations

from slotline.steps import Call, Steps
from slotline.stores.base import Command, Store

_BATCH = 500
_END = (0, "0", b"0")


def glob(text: str) -> str:
    """Return a pattern that only ``text`` itself matches."""
    return "".join("\\" + character if character in "*?[]\\^-" else character for character in text)


def scan(store: Store, pattern: str, cursor: str | int) -> Steps[tuple[str | int | None, list[bytes]]]:
    """Return where to go on, ``None`` at the end, and some names of keys; a name may come twice.

    Args:
        store: A Redis store.
        pattern: What the names are like, as Redis has it.
        cursor: 0 at first, then what was returned.
    """
    at, names = yield Call(store, Command("SCAN", (), (cursor, "MATCH", pattern, "COUNT", _BATCH)))
    return None if at in _END else at, names


def keys_like(store: Store, pattern: str) -> Steps[list[bytes]]:
    """Return the names of all keys that are like ``pattern``, each once."""
    found: dict[bytes, None] = {}
    cursor: str | int | None = 0
    while cursor is not None:
        cursor, names = yield from scan(store, pattern, cursor)
        found.update(dict.fromkeys(names))
    return list(found)
