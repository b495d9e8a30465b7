"""The Lua files, one an operation, loaded as package data."""

from __future__ import annotations

from functools import cache
from hashlib import sha1
from importlib.resources import files
from typing import NamedTuple

_INCLUDE = "-- include: "
_WITHIN = "-- within: "
_PLACE = "-- the script\n"


class Script(NamedTuple):
    """A script's text and the digest under which Redis knows it."""

    text: str
    sha: bytes


@cache
def load(name: str) -> Script:
    """Return the script called ``name``, its includes filled in, within what one of them asks for."""
    text = _with_includes(name)
    for line in text.splitlines():
        if line.startswith(_WITHIN):
            text = _with_includes(line.removeprefix(_WITHIN)).replace(_PLACE, text)
    return Script(text, sha1(text.encode(), usedforsecurity=False).hexdigest().encode())


def _with_includes(name: str) -> str:
    lines = (files(__package__) / "scripts" / f"{name}.lua").read_text(encoding="utf-8").splitlines()
    filled = [
        _with_includes(line.removeprefix(_INCLUDE).strip()) if line.startswith(_INCLUDE) else line for line in lines
    ]
    return "\n".join(filled) + "\n"
