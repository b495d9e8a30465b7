"""Pools of which nothing is kept when nobody is in them: the lines for the entries of caches."""

from __future__ import annotations

from typing import Final

from slotline.pools._share import SINGLE, Shares
from slotline.pools.pool import Pool
from slotline.stores.base import Command

LINE: Final = "cache-line:"
"""What the names of such pools begin with."""


def is_line(name: str) -> bool:
    """Return whether a pool of this name is the line for an entry."""
    return name.startswith(LINE)


class FleetingPool(Pool):
    """A pool that leaves nothing behind, in a store that processes share."""

    fleeting = True

    def release_command(self, token: str, shares: Shares = SINGLE) -> Command:  # noqa: ARG002 - of several pools
        """The command that gives the slot back, and leaves nothing where nobody is left."""
        return self._ending(token, b"")

    def _ending(self, token: str, verdict: bytes) -> Command:
        return Command("line_end", self._where()[1], (token, verdict))
