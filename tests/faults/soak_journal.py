"""A server's journal: its append-only file, which has all that it was ever told, in order."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path


def keep_journal(directory: Path, into: Path) -> Path:
    """Copy a server's journal to where it outlives the server."""
    into.mkdir()
    for path in directory.rglob("appendonly*"):
        if path.is_file():
            shutil.copy(path, into)
    return into


def journalled(journal: Path) -> Iterator[list[bytes]]:
    """Return the commands in a journal."""
    for path in sorted(journal.iterdir()):
        yield from _commands(path.read_bytes())


def last_pushed(journal: Path, names: Iterable[str]) -> set[str]:
    """Return those messages of which the last that the server was told is that they are in a queue of kombu's."""
    left = {name: b'"%s"' % name.encode() for name in names}
    pushed = set()
    for command in reversed(list(journalled(journal))):
        for name in [name for name, word in left.items() if any(word in part for part in command)]:
            del left[name]
            if command[0].upper() in {b"LPUSH", b"RPUSH"}:
                pushed.add(name)
    return pushed


def _commands(raw: bytes) -> Iterator[list[bytes]]:
    """Read what a server has written down, up to a command that it had not finished."""
    at = 0
    while raw[at : at + 1] in {b"*", b"#"}:
        end = raw.find(b"\r\n", at)
        parts = [] if raw[at : at + 1] == b"#" else [b""] * int(raw[at + 1 : end])
        at = end + 2
        for number in range(len(parts)):
            end = raw.find(b"\r\n", at)
            if end < 0:
                return
            size = int(raw[at + 1 : end])
            parts[number] = raw[end + 2 : end + 2 + size]
            at = end + 4 + size
        if parts:
            yield parts
