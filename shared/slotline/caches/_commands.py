"""The commands of the cache on Redis: names of keys, arguments and their units, and nothing that decides."""

from __future__ import annotations

import hashlib
import math

from slotline.stores.base import Command
from slotline.stores.layout import base_key
from slotline.stores.scanning import glob

_AGES_MS = 10 * 365 * 24 * 3600 * 1000
"""How long a tag remembers an entry without expiry."""
_TAG_SLACK_MS = 3600 * 1000
ENTRY, CLAIM, WAITERS, KEPT, NEEDS = ":v", ":c", ":w", ":k", ":n"
EVERYTHING = "*"
"""Announced when a cache was cleared."""
_BATCH = 500


class Names:
    """Where one cache keeps its entries and tags.

    Args:
        prefix: The store's prefix.
        namespace: Tells several caches on one store apart.
    """

    def __init__(self, prefix: str, namespace: str) -> None:
        self._prefix = prefix
        self.namespace = namespace
        self._tag_kind = f"{namespace}-tag"
        self.patterns = (f"{glob(prefix)}:{{{glob(namespace)}:*", f"{glob(prefix)}:{{{glob(self._tag_kind)}:*")
        self.channel = f"{prefix}:{{{namespace}}}:gone"
        """Where the names of values that were set or removed are announced, for copies in other processes."""
        self._shown_from = len(f"{prefix}:{{{namespace}:")

    def base(self, key: str) -> str:
        """Return what the names of all keys of one entry start with."""
        return base_key(self._prefix, self.namespace, writable(key))

    def tag(self, tag: str) -> str:
        """Return the name of a tag's key."""
        return base_key(self._prefix, self._tag_kind, writable(tag))

    def shown(self, name: str) -> str | None:
        """Return the user's key for the name of an entry's value, ``None`` for other names."""
        return name[self._shown_from : -len(ENTRY) - 1] if name.endswith(ENTRY) else None


def writable(name: str) -> str:
    """Return ``name``, or a digest in its place where it cannot be sent."""
    try:
        name.isascii() or name.encode()
    except UnicodeEncodeError:  # half a surrogate pair: redis-py cannot send it
        return "~" + hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=20).hexdigest()
    return name


def _three(base: str) -> tuple[str, str, str]:
    return base + ENTRY, base + CLAIM, base + WAITERS


def _four(base: str) -> tuple[str, str, str, str]:
    return *_three(base), base + KEPT


def milliseconds(seconds: float) -> int:
    """Return whole milliseconds, 0 for ``math.inf``, and never 0 for what is more than nothing."""
    return 0 if seconds == math.inf else max(1, round(seconds * 1000))


def read(base: str) -> Command:
    return Command("GET", (base + ENTRY,))


def exists(base: str) -> Command:
    return Command("EXISTS", (base + ENTRY,))


def read_kept(base: str) -> Command:
    return Command("GET", (base + KEPT,))


def read_timed(base: str) -> Command:
    return Command("cache_read", (base + ENTRY,))


def claim(base: str, token: str, lease_ms: int, channel: str, aged_ms: int) -> Command:
    return Command("cache_claim", _three(base), (token, lease_ms, channel, aged_ms))


def renew(base: str, token: str, lease_ms: int) -> Command:
    return Command("cache_renew", (base + CLAIM,), (token, lease_ms))


def regain(base: str, token: str, lease_ms: int) -> Command:
    return Command("cache_regain", (base + ENTRY, base + CLAIM), (token, lease_ms))


def fill(base: str, token: str, raw: bytes, life_ms: int, keep_ms: int) -> Command:
    return Command("cache_fill", _four(base), (token, raw, life_ms, keep_ms))


def fail(base: str, token: str, payload: bytes, rest_ms: int) -> Command:
    return Command("cache_fail", _three(base), (token, payload, rest_ms))


def need(base: str, token: str, other: str, life_ms: int) -> Command:
    return Command("cache_need", (base + CLAIM, base + NEEDS), (token, other, life_ms))


def needs(base: str) -> Command:
    return Command("cache_needs", (base + CLAIM, base + NEEDS))


def need_no_more(base: str, token: str, other: str) -> Command:
    return Command("cache_need_no_more", (base + NEEDS,), (token, other))


def put(base: str, raw: bytes, life_ms: int, keep_ms: int, channel: str) -> Command:
    return Command("cache_set", _four(base), (raw, life_ms, channel, keep_ms))


def invalidate(base: str, channel: str) -> Command:
    return Command("cache_invalidate", _four(base), (channel,))


def announce(channel: str, what: str) -> Command:
    return Command("PUBLISH", (), (channel, what))


def discard(base: str, raw: bytes) -> Command:
    return Command("cache_discard", (base + ENTRY,), (hashlib.sha1(raw, usedforsecurity=False).hexdigest(),))


def tag(name: str, base: str, life_ms: int) -> Command:
    return Command("cache_tag", (name,), (base, life_ms + _TAG_SLACK_MS if life_ms else _AGES_MS))


def untag(name: str, done: list[bytes]) -> Command:
    return Command("cache_untag", (name,), (_BATCH, *done))


def unlink(name: str) -> Command:
    return Command("UNLINK", (name,))
