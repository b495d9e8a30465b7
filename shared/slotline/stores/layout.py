"""How the names of keys in a store are made."""

from __future__ import annotations

import base64
import hashlib

LONGEST_NAME = 256
"""Bytes of a user's name that a key holds as they are; a longer name is cut and made unique by its digest."""


def short_name(name: str | bytes) -> str:
    """Return a short name, of letters, digits and ``~-_``, for text or bytes of any length and kind."""
    raw = name.encode("utf-8", "surrogatepass") if isinstance(name, str) else name
    return "~" + base64.urlsafe_b64encode(hashlib.blake2b(raw, digest_size=15).digest()).decode()


def base_key(prefix: str, kind: str, name: str) -> str:
    """Return the common beginning of all keys of one thing, with its hash tag: ``slotline:{pool:api}``.

    Everything that belongs to one pool, or to one cache entry, starts with this, so that a Redis Cluster keeps it
    in one slot and a script may touch all of it. A brace in ``name`` shortens the tag for all of these keys alike.
    """
    return f"{prefix}:{{{kind}:{_cut(name)}}}"


def grouped_key(prefix: str, group: str, name: str) -> str:
    """Return the common beginning of all keys of one thing that shares its hash tag with others of its group."""
    return f"{base_key(prefix, 'group', group)}:{_cut(name)}"


def _cut(name: str) -> str:
    if len(name) > LONGEST_NAME // 4:
        raw = name.encode("utf-8", "surrogatepass")
        if len(raw) > LONGEST_NAME:
            digest = hashlib.blake2b(raw, digest_size=20).hexdigest()
            name = f"{raw[: LONGEST_NAME - 48].decode('utf-8', 'ignore')}~{digest}"
    return name
