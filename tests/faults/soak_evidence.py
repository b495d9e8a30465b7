"""What the soak run's history says of a limit that was broken, and what else is known of the runs in question."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

import redis

from tests.faults.soak_journal import journalled
from tests.faults.soak_ledger import Ledger, tokens_of
from tests.integration.losing_slots import entries

AROUND = 12
"""How many entries of the history are shown before and after a moment."""
_LINES = 60


class Sign(NamedTuple):
    """An entry of the history, and when its run has written it (us)."""

    at: int
    fence: int
    task: str
    pid: int
    what: str

    def __str__(self) -> str:
        return f"{_clock(self.at)} fence {self.fence} {self.task} pid {self.pid} {self.what}"


def signs_of(client: redis.Redis, name: str) -> list[Sign]:
    """Return the entries of a history, in the order in which they were written."""
    return sorted(
        Sign(int(one[b"at"]), int(one[b"fence"]), one[b"task"].decode(), int(one[b"pid"]), one[b"what"].decode())
        for one in entries(client, name)
    )


def crowds(signs: Sequence[Sign]) -> list[list[int]]:
    """Return for each run the fences of those that lived when it got its slot, itself among them.

    A fence is the time at which its slot was given, by the server's clock, which is everybody's here; and a run lives
    from then on to its last sign.
    """
    last = {sign.fence: sign.at for sign in signs}
    return [[one for one in sorted(last) if one <= fence <= last[one]] for fence in sorted(last)]


def too_many(signs: Sequence[Sign], ledger: Ledger, most: float = math.inf) -> list[int] | None:
    """Return the fences of the first crowd that weighs more than the limit in force then, or than ``most``."""
    heavy = (crowd for crowd in crowds(signs) if ledger.weigh(crowd) > min(ledger.size_at(max(crowd)), most))
    return next(heavy, None)


def outlived(signs: Sequence[Sign], ends: Mapping[int, int]) -> list[int] | None:
    """Return the fence of the first run that gave a sign when its slot had ended (us); ``None`` where none did.

    Of a short run that had the slot of another of its process the journal knows nothing.
    """
    return next(([sign.fence] for sign in signs if sign.at >= ends.get(sign.fence, math.inf)), None)


def report(
    signs: Sequence[Sign],
    fences: Sequence[int],
    *,
    ended_with: Callable[[str], str],
    deeds: Sequence[tuple[int, str]],
    logs: Path,
    journal: Path,
) -> str:
    """Say all that is known of the runs that broke a rule.

    Args:
        signs: The history.
        fences: Their fences.
        ended_with: Tells how a task has ended.
        deeds: What befell the workers and the server, and when (us).
        logs: The directory of the workers' logs.
        journal: The directory of the server's journal.
    """
    lines = ["the runs:"]
    runs = [[sign for sign in signs if sign.fence == fence] for fence in fences]
    for mine in runs:
        kinds = dict(Counter(sign.what for sign in mine))
        end = f"last sign {_clock(mine[-1].at)} {kinds}, the task ended with {ended_with(mine[0].task)}"
        lines.append(f"  slot given {_clock(mine[0].fence)}, first sign {mine[0]}, {end}")
    moment, last = max(fences), max(mine[-1].at for mine in runs)
    lines.append("the history around it:")
    at = next((at for at, sign in enumerate(signs) if sign.at >= moment), 0)
    lines += [f"  {sign}" for sign in signs[max(0, at - AROUND) : at + AROUND]]
    lines.append("what befell them:")
    lines += [f"  {_clock(us)} {name}" for us, name in deeds if min(fences) - 12_000_000 <= us <= last + 1_000_000]
    lines.append(f"what the logs in {logs} say:")
    lines += [f"  {line}" for line in _mentions(logs, {mine[0].task for mine in runs})]
    lines.append(f"what the journal in {journal} says:")
    lines += [f"  {line}" for line in _about(journal, set(fences))]
    return "\n".join(lines)


def _clock(us: int) -> str:
    return datetime.fromtimestamp(us / 1_000_000).strftime("%H:%M:%S.%f")  # noqa: DTZ006 - as the logs have it


def _mentions(logs: Path, tasks: set[str]) -> Iterator[str]:
    for path in sorted(logs.glob("*.log")):
        for line in path.read_text(errors="replace").splitlines():
            if any(task in line for task in tasks):
                yield f"{path.name}: {line[:400]}"


def _about(journal: Path, fences: set[int]) -> list[str]:
    """Return the commands about the tokens that had these fences, each with how many commands came before it."""
    tokens = tokens_of(journal, fences)
    about = [
        f"{at} {b' '.join(command)[:300].decode(errors='replace')}"
        for at, command in enumerate(journalled(journal))
        if any(token in part for part in command for token in tokens)
    ]
    return about[-_LINES:]
