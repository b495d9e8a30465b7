"""How often: ``"100/m"``, a rate of starts."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from slotline._checks import refuse, whole_number

_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_RATE = re.compile(r"(\d+)/(\d*)([smhd])")
_ALLOWED = 'text like "5/s", "100/m", "1000/h", "1/d" or "3/10s", at most one start a microsecond'
_MICROSECONDS = 1_000_000


@dataclass(frozen=True, slots=True)
class Rate:
    """At most ``count`` starts in any ``period`` of seconds, evenly spaced but for bursts of ``burst`` (GCRA).

    Attributes:
        text: The rate as it was written.
        interval_us: Microseconds between two starts.
        burst: How many starts may come at once after a pause.
    """

    text: str
    interval_us: int
    burst: int

    @classmethod
    def parse(cls, rate: Any, burst: Any) -> Rate | None:
        """Return the rate that these options mean; ``None`` for no rate.

        Raises:
            InvalidOptionError: They mean none.
        """
        if rate is None:
            if burst is not None:
                raise refuse("burst", burst, "None where there is no rate")
            return None
        found = _RATE.fullmatch(rate) if isinstance(rate, str) else None
        if found is None:
            raise refuse("rate", rate, _ALLOWED)
        count, period = int(found[1]), int(found[2] or 1) * _UNITS[found[3]]
        interval_us = round(period * _MICROSECONDS / count) if count else 0
        if interval_us < 1:
            raise refuse("rate", rate, _ALLOWED)
        return cls(rate, interval_us, 1 if burst is None else whole_number("burst", burst))

    @classmethod
    def from_wire(cls, wire: str) -> Rate | None:
        """Return the rate that :attr:`wire` was made of, in its shortest form; ``None`` for an empty text."""
        if not wire:
            return None
        interval_us, burst = map(int, wire.split("/"))
        for unit, seconds in _UNITS.items():
            period_us = seconds * _MICROSECONDS
            count = round(period_us / interval_us)
            if count and round(period_us / count) == interval_us:
                return cls(f"{count}/{unit}", interval_us, burst)
        return cls(f"1/{interval_us / _MICROSECONDS:g}s", interval_us, burst)

    @property
    def wire(self) -> str:
        """The rate as the store knows it."""
        return f"{self.interval_us}/{self.burst}"
