"""What one caller asks of its pools: how many of their slots, and in which partition."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple, TypeAlias

from slotline import _checks
from slotline.stores.layout import short_name

Weight: TypeAlias = int | Mapping[str, int]
Partition: TypeAlias = str | bytes | Mapping[str, str | bytes | None] | None
"""What is asked of all pools, or of some by their keys."""

_PLAIN = re.compile(r"[A-Za-z0-9_.:@/+=-]{1,48}")


class Share(NamedTuple):
    """So many slots at once, in a partition; ``""`` for none."""

    weight: int
    partition: str

    @classmethod
    def of(cls, weight: Any, partition: Any, *, key: str, size: int, most: int | None) -> Share:
        """Check what is asked of pool ``key`` with ``size`` slots, of which a partition may have ``most``.

        Raises:
            InvalidOptionError: It is impossible, or could never be given.
        """
        number = _checks.whole_number("weight", weight)
        if number > size:
            raise _checks.refuse("weight", weight, f"at most {size}, the size of pool {key!r}")
        name = partition_name(partition)
        if name and most is not None and number > most:
            raise _checks.refuse("weight", weight, f"at most {most}, the max_per_partition of pool {key!r}")
        return cls(number, name)


Shares: TypeAlias = tuple[Share, ...]
"""What is asked of each pool."""
SINGLE: Shares = (Share(1, ""),)


def partition_name(partition: Any) -> str:
    """Return what a store calls a partition: its own name where that is short and plain, else a digest.

    Raises:
        InvalidOptionError: It is neither text nor bytes nor ``None``.
    """
    if partition is None:
        return ""
    if isinstance(partition, str) and _PLAIN.fullmatch(partition):
        return partition
    if not isinstance(partition, str | bytes):
        raise _checks.refuse("partition", partition, "text, bytes or None")
    return short_name(partition)


class Caller(NamedTuple):
    """Who asks, and for what: a :class:`Place` says as much, and more."""

    token: str
    owner: str
    shares: Shares
