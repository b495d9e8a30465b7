"""What a command writes: tables and sentences for people, JSON for scripts."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any, TextIO

_MINUTE, _HOUR, _DAY = 60, 3600, 86400


class Console:
    """Where a command writes.

    Args:
        as_json: Whether each command writes one JSON value, and nothing for people.
        out: The stream; default ``sys.stdout``.
    """

    def __init__(self, *, as_json: bool, out: TextIO | None = None) -> None:
        self.as_json = as_json
        self.out = sys.stdout if out is None else out

    def tell(self, sentence: str, facts: Any) -> None:
        """Write a sentence, or the facts that are in it."""
        self.write(json.dumps(facts, indent=2) if self.as_json else sentence)

    def agrees(self, question: str) -> bool:
        """Return whether a person answers yes; where there is nobody to ask, no."""
        if self.as_json or not sys.stdin.isatty():
            return False
        self.out.write(f"{question} [y/N] ")
        self.out.flush()
        return sys.stdin.readline().strip().lower() in {"y", "yes"}

    def table(self, rows: Sequence[Mapping[str, Any]], columns: Mapping[str, Column], nothing: str) -> None:
        """Write rows as a table with these columns, or the sentence ``nothing``; as JSON all that the rows have."""
        if self.as_json:
            self.write(json.dumps(list(rows), indent=2))
        elif not rows:
            self.write(nothing)
        else:
            shown = [[column.show(row[name]) for name, column in columns.items()] for row in rows]
            titles = [column.title for column in columns.values()]
            widths = [max(map(len, cells)) for cells in zip(titles, *shown, strict=True)]
            for cells in (titles, *shown):
                padded = zip(cells, widths, columns.values(), strict=True)
                self.write("  ".join(column.align(cell, width) for cell, width, column in padded).rstrip())

    def write(self, line: str) -> None:
        """Write a line."""
        self.out.write(line + "\n")


class Column:
    """A column of text.

    Args:
        title: What is above it.
    """

    right = False

    def __init__(self, title: str) -> None:
        self.title = title

    def show(self, value: Any) -> str:
        """Return the text of a cell."""
        # Names come from messages: one with control characters must not act on the terminal.
        return "-" if value is None else "".join(c if c.isprintable() else repr(c)[1:-1] for c in str(value))

    def align(self, cell: str, width: int) -> str:
        """Return the text of a cell with spaces around it."""
        return cell.rjust(width) if self.right else cell.ljust(width)


class Number(Column):
    """A column of numbers."""

    right = True


class Seconds(Column):
    """A column of durations."""

    right = True

    def show(self, value: Any) -> str:
        """Return the text of a cell."""
        return "-" if value is None else duration(value)


def duration(seconds: float) -> str:
    """Return seconds as people read them: ``0.4 s``, ``12 s``, ``3 min 20 s``, ``5 h 3 min``, ``2 d 4 h``."""
    seconds = max(0.0, seconds)
    if seconds < 9.95:  # noqa: PLR2004 - from there on a tenth says nothing
        return f"{seconds:.1f} s"
    whole = round(seconds)
    for unit, name, smaller, its_name in (
        (_DAY, "d", _HOUR, "h"),
        (_HOUR, "h", _MINUTE, "min"),
        (_MINUTE, "min", 1, "s"),
    ):
        if whole >= unit:
            return f"{whole // unit} {name} {whole % unit // smaller} {its_name}"
    return f"{whole} s"
