"""What a lease can be."""

from __future__ import annotations

from enum import Enum, auto


class State(Enum):
    """The life of a lease."""

    ACTIVE = auto()
    """It takes work."""
    DRAINING = auto()
    """It was released; work that it took before is still running."""
    KILLING = auto()
    """It was revoked; its work is being killed, and its place waits for that."""
    HELD = auto()
    """It was revoked; its work runs on, and keeps the place."""
    OVERDUE = auto()
    """It was revoked; its work runs on, and its place has passed on."""
    CLOSED = auto()
    """It is over."""
    FOREIGN = auto()
    """It belongs to the process that this one was forked from."""
