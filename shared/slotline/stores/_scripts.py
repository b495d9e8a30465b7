"""The Lua files, one an operation, loaded as package data."""

from __future__ import annotations

from functools import cache
from hashlib import sha1
from importlib.resources import files
from typing import NamedTuple

_INCLUDE = "-- include: "


class Script(NamedTuple):
    """A script's text and the digest under which Redis knows it."""

    text: str
    sha: bytes


@cache
def load(name: str) -> Script:
    """Return the script called ``name``, its includes filled in."""
    lines: list[str] = []
    for line in _read(name).splitlines():
        lines.extend(_read(line.removeprefix(_INCLUDE).strip()).splitlines() if line.startswith(_INCLUDE) else [line])
    text = "\n".join(lines) + "\n"
    return Script(text, sha1(text.encode(), usedforsecurity=False).hexdigest().encode())


def _read(name: str) -> str:
    return (files(__package__) / "scripts" / f"{name}.lua").read_text(encoding="utf-8")
