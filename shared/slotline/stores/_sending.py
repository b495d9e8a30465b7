"""How commands reach their servers and come back: routing, redirections, lost scripts, broken connections."""

from __future__ import annotations

import asyncio
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple, TypeGuard

import redis
from redis.exceptions import DataError, NoScriptError

from slotline.errors import StoreError
from slotline.metrics import _telling
from slotline.steps import Sleep, Step, Steps, run_blocking
from slotline.stores._lines import BlockingLines
from slotline.stores._redis_errors import Redirection, elsewhere, pauses, redirection, translated, worth_retrying
from slotline.stores._resp import packed
from slotline.stores._scripts import load
from slotline.stores._topology import Topology
from slotline.stores._wires import Wires
from slotline.stores.base import Command

_HOPS = 8
"""Redirections in a row that cost no pause."""
_ASKING = packed(("ASKING",))
_UNSENDABLE = (UnicodeError, DataError)


class Fleet(ABC):
    """What sending needs of a store.

    Attributes:
        name: What errors call it.
        retries: How often a call is repeated before it raises.
        timeout: Seconds for one exchange with a server.
        topology: Which server answers for what.
    """

    name: str
    retries: int
    timeout: float
    topology: Topology

    @abstractmethod
    def blocking_lines(self, node: str) -> BlockingLines:
        """Return this process's connections to a server."""

    @abstractmethod
    def wires(self, node: str) -> Wires:
        """Return the running event loop's connections to a server."""


class Leg(NamedTuple):
    """Commands for one server, by their numbers; ``asking``: it takes them although it has the slot not quite yet."""

    node: str
    numbers: Sequence[int]
    asking: bool


class _UnknownScriptError(NoScriptError):
    """A server does not know the script: it is asked once more, with the text."""

    def __init__(self, error: NoScriptError, leg: Leg) -> None:
        super().__init__(*error.args)
        self.leg = leg


_ANSWERED = (Redirection, _UnknownScriptError)
"""What a server says that leads to the next question at once."""


class Flown(NamedTuple):
    """An exchange of all commands that has been tried: with whom, since when (monotonic), and what came of it."""

    node: str
    since: float
    outcome: Any


@dataclass(slots=True, frozen=True)
class _Exchange(Step):
    """Send words to servers and return, for each leg, its replies or the one error that broke its connection."""

    fleet: Fleet
    legs: list[tuple[Leg, list[bytes]]]
    until: float | None

    def blocking(self) -> list[Any]:
        return [self._one_blocking(leg, words) for leg, words in self.legs]

    async def awaiting(self) -> list[Any]:
        if len(self.legs) == 1:
            return [await self._one(*self.legs[0])]
        return list(await asyncio.gather(*(self._one(leg, words) for leg, words in self.legs)))

    def _one_blocking(self, leg: Leg, words: list[bytes]) -> Any:
        try:
            return self.fleet.blocking_lines(leg.node).exchange(words, self.until)
        except Exception as error:  # noqa: BLE001 - the procedure decides
            return error

    async def _one(self, leg: Leg, words: list[bytes]) -> Any:
        try:
            return await self.fleet.wires(leg.node).exchange(words, self.fleet.timeout)
        except Exception as error:  # noqa: BLE001 - the procedure decides
            return error


@dataclass(slots=True, frozen=True)
class _Look(Step):
    """Find out where commands go now; the result is the error when nobody knows."""

    topology: Topology
    since: float

    def blocking(self) -> Exception | None:
        try:
            self.topology.look(self.since)
        except Exception as error:  # noqa: BLE001 - the procedure decides
            return error
        return None

    async def awaiting(self) -> Exception | None:
        return await asyncio.to_thread(self.blocking)


def ask_blocking(fleet: Fleet, command: Command, until: float | None = None) -> Any:
    """Do as :func:`sending` with one command, at less cost where its server answers; return its reply or error."""
    topology, node, words = fleet.topology, None, b""
    try:
        node = topology.node(command)
        if node is not None:
            words = _words(topology.outgoing(command, node))
    except (StoreError, *_UNSENDABLE):  # it is told when it is sent
        node = None
    if node is None:
        return run_blocking(sending(fleet, (command,), until=until))[0]
    since = time.monotonic()
    try:
        outcome: Any = fleet.blocking_lines(node).exchange((words,), until)
    except Exception as error:  # noqa: BLE001 - the procedure decides
        outcome = error
    else:
        if not isinstance(outcome[0], Exception):
            return opened(topology.incoming(command, node, outcome[0]))
    return run_blocking(sending(fleet, (command,), Flown(node, since, outcome), until))[0]


def is_plain(outcome: Any) -> TypeGuard[list[Any]]:
    """Return whether an exchange has brought what was asked for, and no error."""
    if not isinstance(outcome, list):
        return False
    for reply in outcome:  # noqa: SIM110 - it is asked of each exchange, and a generator costs more than all the rest
        if isinstance(reply, Exception):
            return False
    return True


def sendable(topology: Topology, node: str, commands: Sequence[Command]) -> list[bytes] | None:
    """Return commands as a server reads them; ``None`` if one of them has no such form."""
    try:
        return [_words(topology.outgoing(command, node)) for command in commands]
    except _UNSENDABLE:
        return None


def received(topology: Topology, node: str, commands: Sequence[Command], replies: list[Any]) -> list[Any]:
    """Return the replies of one server to all commands as whoever sent them understands them."""
    if topology.moves:
        replies = [topology.incoming(command, node, reply) for command, reply in zip(commands, replies, strict=True)]
    return list(map(opened, replies))


def opened(reply: Any) -> Any:
    """Return what a script answers, and tell of what it has taken back besides, see ``lib_sweeping.lua``."""
    if reply.__class__ is list and len(reply) == 3 and reply[0] == b"lapsed":  # noqa: PLR2004 - as it says
        _, lapsed, reply = reply
        if (observer := _telling.observer) is not None:
            observer.reclaimed("lapsed", lapsed)
    return reply


def sending(
    fleet: Fleet, commands: Sequence[Command], flown: Flown | None = None, until: float | None = None
) -> Steps[list[Any]]:
    """Send independent commands, each to its server, and return their replies or errors, one in each place.

    A command whose server cannot be reached, or cannot serve just now, is sent again, to whichever server has its
    place by then; the others are not. A server that does not know a script gets its text.

    Args:
        fleet: The store.
        commands: What to send.
        flown: A first exchange with all of them, where there was one.
        until: When a thread waits no longer (monotonic); a coroutine is cancelled instead.
    """
    topology = fleet.topology
    outcomes: list[Any] = [None] * len(commands)
    left: Sequence[int] = range(len(commands))
    patience, hops = pauses(fleet.retries), _HOPS
    unknown = None
    if flown is None and topology.moves and not topology.masters:
        unknown = yield _Look(topology, -math.inf)
    while True:
        if flown is None:
            since = time.monotonic()
            nobody = unknown or redis.ConnectionError("no server has its hash slot")
            legs = _legs(topology, commands, left, outcomes, nobody)
            replied = yield _Exchange(fleet, legs, until)
        else:
            legs = [(Leg(flown.node, left, asking=False), [])]
            since, replied, flown = flown.since, [flown.outcome], None
        for (leg, _), replies in zip(legs, replied, strict=True):
            _note(topology, leg, replies, commands, outcomes)
        left = [number for number in left if _again(topology, outcomes[number])]
        if not left:
            break
        if hops and all(isinstance(outcomes[number], _ANSWERED) for number in left):
            hops -= 1
        else:
            pause = next(patience, None)
            if pause is None or (until is not None and time.monotonic() + pause >= until):
                break
            yield Sleep(pause)
        if topology.moves and not all(_at_hand(outcomes[number]) for number in left):
            unknown = yield from _looking(topology, since, [outcomes[number] for number in left])
    return [_told(fleet.name, outcome) if isinstance(outcome, Exception) else opened(outcome) for outcome in outcomes]


def _looking(topology: Topology, since: float, errors: list[Exception]) -> Steps[Exception | None]:
    unknown: Exception | None = yield _Look(topology, since)
    for error in errors:  # what the owner itself has said is newer than what another one knows
        if isinstance(error, Redirection) and error.for_good:
            topology.moved(error)
    return unknown


def _told(store: str, error: Exception) -> Exception:
    told = translated(store, error)
    if told is not error:
        told.__cause__ = error
    return told


def _legs(
    topology: Topology, commands: Sequence[Command], left: Sequence[int], outcomes: list[Any], unknown: Exception
) -> list[tuple[Leg, list[bytes]]]:
    """Return who gets which of the commands that are left, in what words; one that nobody can get has its error."""
    legs: dict[tuple[str, bool], tuple[list[int], list[bytes]]] = {}
    for number in left:
        try:
            node, asking, in_full = _next(topology, commands[number], outcomes[number])
            if node is None:
                outcomes[number] = unknown
                continue
            words = _words(topology.outgoing(commands[number], node), in_full=in_full)
        except (StoreError, *_UNSENDABLE) as error:
            outcomes[number] = error
        else:
            numbers, load = legs.setdefault((node, asking), ([], []))
            numbers.append(number)
            load.extend((_ASKING, words) if asking else (words,))
    return [(Leg(node, numbers, asking), load) for (node, asking), (numbers, load) in legs.items()]


def _next(topology: Topology, command: Command, before: Any) -> tuple[str | None, bool, bool]:
    """Return who is asked after an answer, whether in the special way, and whether with the script's text."""
    if isinstance(before, _UnknownScriptError):
        return before.leg.node, before.leg.asking, True
    if _asked(before):
        return before.node, True, False
    return topology.node(command), False, False


def _note(topology: Topology, leg: Leg, replies: Any, commands: Sequence[Command], outcomes: list[Any]) -> None:
    if leg.asking and not isinstance(replies, Exception):
        replies = replies[1::2]
    for at, number in enumerate(leg.numbers):
        outcome = replies if isinstance(replies, Exception) else replies[at]
        if isinstance(outcome, NoScriptError):
            outcome = _UnknownScriptError(outcome, leg)
        elif topology.moves and not isinstance(replies, Exception):
            outcome = topology.incoming(commands[number], leg.node, outcome)
            outcome = redirection(outcome, leg.node) or outcome
        outcomes[number] = outcome


def _again(topology: Topology, outcome: Any) -> bool:
    if not isinstance(outcome, Exception):
        return False
    return (
        isinstance(outcome, _UnknownScriptError) or worth_retrying(outcome) or (topology.moves and elsewhere(outcome))
    )


def _asked(outcome: Any) -> bool:
    return isinstance(outcome, Redirection) and not outcome.for_good


def _at_hand(outcome: Any) -> bool:
    """Return whether it is known who is asked next."""
    return _asked(outcome) or isinstance(outcome, _UnknownScriptError)


def _words(command: Command, *, in_full: bool = False) -> bytes:
    name, keys, args = command
    if name.isupper():
        return packed((name, *keys, *args))
    if in_full:
        return packed((b"EVAL", load(name).text, len(keys), *keys, *args))
    return _opening(name, keys, len(args)) + _bare(packed(args))


@lru_cache(maxsize=1024)
def _opening(name: str, keys: tuple[str | bytes, ...], following: int) -> bytes:
    """Return how a script's call begins, which is the same for all calls with these keys and so many arguments."""
    words = (b"EVALSHA", load(name).sha, len(keys), *keys)
    return b"*%d\r\n%b" % (len(words) + following, _bare(packed(words)))


def _bare(command: bytes) -> bytes:
    return command[command.index(b"\n") + 1 :]  # without how many words it has
