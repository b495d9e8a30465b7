"""The slots of a server's pools, as its journal has them: each that was given, and which limit that broke.

The journal has the commands in the order in which they were done, so that a smaller size or a pause counts from where
it stands there, whatever anybody's clock says.
"""

from __future__ import annotations

import math
import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from tests.faults.soak_journal import journalled

_POOL = re.compile(rb"slotline:\{(?:pool:(?P<alone>.+)\}|group:[^}]*\}:(?P<grouped>.+)):(?P<part>slots|state)")
_CLOCK_US = 1000
"""Fences of one moment differ: by so much one may be ahead of the server's clock."""


@dataclass(slots=True)
class Grant:
    """A slot that was given.

    Attributes:
        fence: Its number, which says when (us).
        at_ms: When, by the server's clock.
        weight: As how many it counts.
        partition: On whose account.
        until_ms: Until when it counts, as it was last renewed.
        size: The pool's limit when it was given.
        kept: Whether it was only kept for one who wanted slots of other pools, too.
        passed_on: Whether it was another's before, who has ended.
    """

    fence: int
    at_ms: int
    weight: int
    partition: bytes
    until_ms: int
    size: int
    kept: bool = False
    passed_on: bool = False


@dataclass(slots=True)
class Ledger:
    """The slots of one pool.

    Attributes:
        grants: All that were ever given, by their fences.
        broken: What is wrong with them.
        used_up: Whether its rate has ever allowed no further start at once.
    """

    grants: dict[int, Grant] = field(default_factory=dict)
    broken: list[str] = field(default_factory=list)
    used_up: bool = False
    _limits: dict[bytes, bytes] = field(default_factory=dict)
    _holders: dict[bytes, Grant] = field(default_factory=dict)
    _ends: dict[bytes, int] = field(default_factory=dict)
    _last: int = 0

    def ends(self) -> dict[int, int]:
        """Return until when each slot counted (us), by its fence."""
        return {fence: grant.until_ms * 1000 for fence, grant in self.grants.items()}

    def weigh(self, fences: Iterable[int]) -> int:
        """Return as how many those with these fences count."""
        return sum(self.grants[fence].weight if fence in self.grants else 1 for fence in fences)

    def size_at(self, fence: int) -> int:
        """Return the limit in force when a slot was given; the largest ever for one that it does not have."""
        known = self.grants.get(fence)
        return known.size if known is not None else max(grant.size for grant in self.grants.values())

    def strays(self, fences: Iterable[int], passes: float) -> list[int]:
        """Return those of the fences that no run may have: no slot was given with them, except to be kept.

        A slot may pass from one run to others for so many seconds, without a word to the server.
        """
        given = sorted(fence for fence, grant in self.grants.items() if not (grant.kept or grant.passed_on))
        before = {fence: given[bisect_right(given, fence) - 1] for fence in sorted(fences) if fence >= given[0]}
        return [fence for fence in sorted(fences) if fence - before.get(fence, -math.inf) > passes * 1_000_000]

    def told(self, name: bytes, part: bytes, arguments: list[bytes]) -> None:
        """Take notice of a command about one of the pool's keys."""
        if name in {b"UNLINK", b"DEL"}:
            (self._limits if part == b"state" else self._holders).clear()
        elif part == b"slots" and name == b"ZADD":
            until, token = arguments[-2:]
            self._ends[token] = int(until)
            if token in self._holders:
                self._holders[token].until_ms = int(until)
        elif part == b"state" and name in {b"HSET", b"HSETNX"}:
            for one, value in zip(arguments[::2], arguments[1::2], strict=True):
                self._set(one, value)
        elif part == b"state" and name == b"HDEL":
            for one in arguments:
                self._limits.pop(one, None)
                self._holders.pop(one[2:] if one.startswith(b"h:") else b"", None)

    def check_rate(self) -> None:
        """See whether slots were given more often than the rate allows: no more in any time than that and the burst."""
        if b"rate" not in self._limits:
            return
        interval, burst = map(int, self._limits[b"rate"].split(b"/"))
        arrival = 0
        for grant in self.grants.values():
            if not grant.kept and not grant.passed_on:
                early = arrival - (burst - 1) * interval - grant.fence
                if early > _CLOCK_US:
                    self.broken.append(f"{grant} is {early} us early")
                arrival = max(arrival, grant.fence) + interval
                self.used_up = self.used_up or arrival - (burst - 1) * interval > grant.fence

    def _set(self, name: bytes, value: bytes) -> None:
        if name.startswith(b"h:"):
            self._given(name[2:], value)
        elif name.startswith(b"k:"):
            self._holders[name[2:]].kept = True
        else:
            self._limits[name] = value

    def _given(self, token: bytes, record: bytes) -> None:
        fence, at_ms, _, weight, partition, _ = record.split(b"|", 5)
        held = self._holders.get(token)
        grant = Grant(
            int(fence), int(at_ms), int(weight), partition, self._ends[token], int(self._limits[b"max"]),
            passed_on=held is not None,
        )  # fmt: skip
        if held is None:
            self._check(grant)
        self.grants[grant.fence] = self._holders[token] = grant
        self._last = max(self._last, grant.fence)

    def _check(self, grant: Grant) -> None:
        living = [one for one in [*self._holders.values(), grant] if one.until_ms > grant.at_ms]
        weigh = sum(one.weight for one in living)
        its_own = sum(one.weight for one in living if one.partition == grant.partition)
        if grant.fence <= self._last:
            self.broken.append(f"{grant} has no higher fence than {self._last}")
        if b"paused" in self._limits:
            self.broken.append(f"{grant} was given while the pool was paused")
        if weigh > grant.size:
            self.broken.append(f"{grant} makes {weigh}: {living}")
        if grant.partition and its_own > int(self._limits.get(b"share", grant.size)):
            self.broken.append(f"{grant} makes {its_own} of its partition: {living}")


def ledgers(journal: Path) -> dict[str, Ledger]:
    """Return what a journal has of each pool, by the pool's key."""
    found: dict[str, Ledger] = {}
    for name, key, arguments in _about_keys(journal):
        pool = _POOL.fullmatch(key)
        if pool:
            ledger = found.setdefault((pool["alone"] or pool["grouped"]).decode(), Ledger())
            ledger.told(name, pool["part"], arguments)
    for ledger in found.values():
        ledger.check_rate()
    return found


def tokens_of(journal: Path, fences: set[int]) -> set[bytes]:
    """Return the tokens that had these fences."""
    known = {b"%d" % fence for fence in fences}
    return {
        field[2:]
        for command in journalled(journal)
        for field, value in pairwise(command)
        if field.startswith(b"h:") and value.partition(b"|")[0] in known
    }


def _about_keys(journal: Path) -> Iterator[tuple[bytes, bytes, list[bytes]]]:
    for command in journalled(journal):
        name = command[0].upper()
        if name in {b"UNLINK", b"DEL"}:
            yield from ((name, key, []) for key in command[1:])
        else:
            yield name, b"".join(command[1:2]), command[2:]
