"""How the items of a map travel: cut into chunks by the owner, run one after another in the worker."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any


def run_chunk(func: Callable[..., Any], items: tuple[Any, ...]) -> list[Any]:
    """Call ``func`` with each item."""
    return [func(item) for item in items]


def run_star_chunk(func: Callable[..., Any], items: tuple[Any, ...]) -> list[Any]:
    """Call ``func`` with the members of each item."""
    return [func(*item) for item in items]


def cut(items: Iterable[Any], size: int) -> Iterator[tuple[Any, ...]]:
    """Yield the items in tuples of ``size``, the last one shorter."""
    rest = iter(items)
    while chunk := tuple(itertools.islice(rest, size)):
        yield chunk


def default_size(count: int, processes: int) -> int:
    """Return the chunk size that gives each process about four chunks."""
    return max(1, -(-count // (processes * 4)))
