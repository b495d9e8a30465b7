"""Operations on many entries at once: in batches, so that the server is never blocked."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from slotline.caches import _commands as commands
from slotline.steps import Call, Steps, all_or_error
from slotline.stores.scanning import keys_like, scan

if TYPE_CHECKING:
    from slotline.stores.base import Command, Store


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
    cursor: str | int | None = 0
    while cursor is not None:
        cursor, found = yield from scan(store, pattern, cursor)
        names = [name.decode("utf-8", "surrogateescape") for name in found]
        if names:
            yield from all_or_error(store, [_removal(name, channel) for name in names])
    yield Call(store, commands.announce(channel, commands.EVERYTHING))


def _removal(name: str, channel: str) -> Command:
    if name.endswith(commands.CLAIM):
        return commands.invalidate(name.removesuffix(commands.CLAIM), channel)
    return commands.unlink(name)


def stored_keys(store: Store, names: commands.Names, limit: int) -> Steps[list[str]]:
    """Return the user's keys of entries on the server, ``limit`` at the most."""
    found: list[str] = []
    cursor: str | int | None = 0
    while cursor is not None and len(found) < limit:
        cursor, batch = yield from scan(store, names.patterns[0], cursor)
        shown = (names.shown(name.decode("utf-8", "replace")) for name in batch)
        found.extend(key for key in shown if key is not None)
    return found[:limit]


class Survey(NamedTuple):
    """What there is of a cache on a server: values, tags, and claims of those who make values now."""

    entries: int
    tags: int
    claims: int


def survey(store: Store, names: commands.Names) -> Steps[Survey]:
    """Count what there is of a cache."""
    of_entries = yield from keys_like(store, names.patterns[0])
    tags = yield from keys_like(store, names.patterns[1])
    ends = [name.decode("utf-8", "replace").rpartition("}")[2] for name in of_entries]
    return Survey(ends.count(commands.ENTRY), len(tags), ends.count(commands.CLAIM))
