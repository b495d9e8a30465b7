"""What the soak run's history says of a limit that was broken, and what else is known of the runs in question."""

from __future__ import annotations

import math
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import redis

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


def keep_journal(directory: Path, into: Path) -> Path:
    """Copy a server's append-only file, which has all that it was ever told, to where it outlives the server."""
    into.mkdir()
    for path in directory.rglob("appendonly*"):
        if path.is_file():
            shutil.copy(path, into)
    return into


def slot_ends(journal: Path) -> dict[int, int]:
    """Return by its fence until when each slot counted (us), as it was last renewed."""
    scores: dict[bytes, int] = {}
    holders: dict[bytes, int] = {}
    ends: dict[int, int] = {}
    for command in _journalled(journal):
        name, key, arguments = command[0].upper(), b"".join(command[1:2]), command[2:]
        if name == b"ZADD" and key.endswith(b":slots"):
            until, token = arguments[-2:]
            scores[token] = int(until)
            if token in holders:
                ends[holders[token]] = int(until) * 1000
        elif name == b"HSET" and key.endswith(b":state"):
            for field, value in zip(arguments[::2], arguments[1::2], strict=True):
                if field.startswith(b"h:"):
                    holders[field[2:]] = int(value.partition(b"|")[0])
                    ends[holders[field[2:]]] = scores[field[2:]] * 1000
        elif name == b"HDEL" and key.endswith(b":state"):
            for field in arguments:
                if field.startswith(b"h:"):
                    holders.pop(field[2:], None)
    return ends


def last_pushed(journal: Path, names: Iterable[str]) -> set[str]:
    """Return those messages of which the last that the server was told is that they are in a queue of kombu's."""
    left = {name: b'"%s"' % name.encode() for name in names}
    pushed = set()
    for command in reversed(list(_journalled(journal))):
        for name in [name for name, word in left.items() if any(word in part for part in command)]:
            del left[name]
            if command[0].upper() in {b"LPUSH", b"RPUSH"}:
                pushed.add(name)
    return pushed


def _clock(us: int) -> str:
    return datetime.fromtimestamp(us / 1_000_000).strftime("%H:%M:%S.%f")  # noqa: DTZ006 - as the logs have it


def _mentions(logs: Path, tasks: set[str]) -> Iterator[str]:
    for path in sorted(logs.glob("*.log")):
        for line in path.read_text(errors="replace").splitlines():
            if any(task in line for task in tasks):
                yield f"{path.name}: {line[:400]}"


def _about(journal: Path, fences: set[int]) -> list[str]:
    """Return the commands about the tokens that had these fences, each with how many commands came before it."""
    commands = list(_journalled(journal))
    known, tokens = {b"%d" % fence for fence in fences}, set()
    for command in commands:
        for field, value in pairwise(command):
            fence, bar, _ = value.partition(b"|")
            if field.startswith(b"h:") and bar and fence in known:
                tokens.add(field[2:])
    about = [
        f"{at} {b' '.join(command)[:300].decode(errors='replace')}"
        for at, command in enumerate(commands)
        if any(token in part for part in command for token in tokens)
    ]
    return about[-_LINES:]


def _journalled(journal: Path) -> Iterator[list[bytes]]:
    for path in sorted(journal.iterdir()):
        yield from _commands(path.read_bytes())


def _commands(raw: bytes) -> Iterator[list[bytes]]:
    """Read what a server has written down, up to a command that it had not finished."""
    at = 0
    while raw[at : at + 1] in {b"*", b"#"}:
        end = raw.find(b"\r\n", at)
        parts = [] if raw[at : at + 1] == b"#" else [b""] * int(raw[at + 1 : end])
        at = end + 2
        for number in range(len(parts)):
            end = raw.find(b"\r\n", at)
            if end < 0:
                return
            size = int(raw[at + 1 : end])
            parts[number] = raw[end + 2 : end + 2 + size]
            at = end + 4 + size
        if parts:
            yield parts
