"""Operations on many entries at once: in batches, so that the server is never blocked."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from slotline.caches import _commands as commands
from slotline.steps import Call, Steps

if TYPE_CHECKING:
    from slotline.stores.base import Command, Store

_END = (0, "0", b"0")
"""Cursors of a scan that has ended."""


def all_or_error(store: Store, batch: list[Command]) -> Steps[list[Any]]:
    """Execute a batch and return its replies.

    Raises:
        StoreError: One of them failed; the first such error.
    """
    replies = yield commands.CallMany(store, batch)
    for reply in replies:
        if isinstance(reply, Exception):
            raise reply
    return cast("list[Any]", replies)


def invalidate_tagged(store: Store, tag_name: str, channel: str) -> Steps[int]:
    """Invalidate every entry that carries a tag and return how many there were.

    An entry leaves the tag only after it was removed: a crash in between leaves work to do again, and nothing stale.
    """
    removed = 0
    done: list[bytes] = []
    while True:
        done = yield Call(store, commands.untag(tag_name, done))
        if not done:
            return removed
        bases = [member.decode() for member in done[::2]]
        removed += sum((yield from all_or_error(store, [commands.invalidate(base, channel) for base in bases])))


def clear_matching(store: Store, pattern: str, channel: str) -> Steps[None]:
    """Remove whatever is named like ``pattern``, and take their claims from those who create values now."""
    cursor: str | int = 0  # opaque: on a Cluster it says which server it is of
    while True:
        cursor, found = yield Call(store, commands.scan(cursor, pattern))
        names = [name.decode("utf-8", "surrogateescape") for name in found]
        if names:
            yield from all_or_error(store, [_removal(name, channel) for name in names])
        if cursor in _END:
            yield Call(store, commands.announce(channel, commands.EVERYTHING))
            return


def _removal(name: str, channel: str) -> Command:
    if name.endswith(commands.CLAIM):
        return commands.invalidate(name.removesuffix(commands.CLAIM), channel)
    return commands.unlink(name)


def stored_keys(store: Store, names: commands.Names, limit: int) -> Steps[list[str]]:
    """Return the user's keys of entries on the server, ``limit`` at the most."""
    found: list[str] = []
    cursor: str | int = 0
    while True:
        cursor, batch = yield Call(store, commands.scan(cursor, names.patterns[0]))
        shown = (names.shown(name.decode("utf-8", "replace")) for name in batch)
        found.extend(key for key in shown if key is not None)
        if cursor in _END or len(found) >= limit:
            return found[:limit]
