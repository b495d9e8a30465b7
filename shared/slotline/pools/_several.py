"""How slots of several pools are asked for."""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from slotline.pools._share import Share, Shares
from slotline.pools._wire import milliseconds

CALLERS = "-"
"""The lane of those who are no messages."""
_OF_EACH = 3


@dataclass(frozen=True, slots=True)
class Ask:
    """What is asked of each of several pools; those who ask the same, in one lane, have one queue.

    Attributes:
        names: The names of the pools, in order.
        caps: The ``slot_exp`` of each.
        shares: What is asked of each.
        lane: The lane of a message, ``"-"`` for callers.
        queue: What the store calls the queue.
    """

    names: tuple[str, ...]
    caps: tuple[float | None, ...]
    shares: Shares
    lane: str
    queue: str

    @classmethod
    def of(cls, names: tuple[str, ...], caps: tuple[float | None, ...], shares: Shares, lane: str = CALLERS) -> Ask:
        """Return what those say who ask so."""
        return cls(names, caps, shares, lane, f"{lane}|{_digest(names, caps, shares)}")

    @classmethod
    def read(cls, told: list[Any]) -> Ask:
        """Read how a message that is parked asks."""
        count = (len(told) - 1) // (_OF_EACH + 1)
        queue, asked = told[0].decode(), told[1 : 1 + _OF_EACH * count]
        caps = tuple(None if int(cap) < 0 else int(cap) / 1000 for cap in asked[::_OF_EACH])
        shares = tuple(
            Share(int(weight), partition.decode())
            for weight, partition in zip(asked[1::_OF_EACH], asked[2::_OF_EACH], strict=True)
        )
        names = tuple(name.decode("utf-8", "surrogatepass") for name in told[1 + _OF_EACH * count :])
        return cls(names, caps, shares, queue.partition("|")[0], queue)

    def of_caller(self, token: str, lease_ms: int) -> tuple[str | int, ...]:
        """Return the first arguments of every script for several pools."""
        asked = (
            part for cap, share in zip(self.caps, self.shares, strict=True) for part in (milliseconds(cap), *share)
        )
        return (token, self.queue, lease_ms, *asked)

    def of_message(self, token: str, lease_ms: int, channels: str) -> tuple[str | bytes | int, ...]:
        """Return them for a parked message, whose lanes' channels begin with ``channels``."""
        names = (name.encode("utf-8", "surrogatepass") for name in self.names)
        return (*self.of_caller(token, lease_ms), *names, channels)


@lru_cache(maxsize=1024)
def _digest(*asked: Any) -> str:
    digest = hashlib.blake2b(repr(asked).encode("utf-8", "surrogatepass"), digest_size=6).digest()
    return base64.urlsafe_b64encode(digest).decode()
