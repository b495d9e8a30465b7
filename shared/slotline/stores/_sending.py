"""How commands reach their servers and come back: routing, redirections, lost scripts, broken connections."""

from __future__ import annotations

import asyncio
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import redis
from redis.exceptions import DataError, NoScriptError

from slotline.errors import StoreError
from slotline.steps import Sleep, Step, Steps, run_awaiting, run_blocking
from slotline.stores._lines import AwaitingLines, BlockingLines, packed
from slotline.stores._redis_errors import Redirection, elsewhere, pauses, redirection, translated, worth_retrying
from slotline.stores._scripts import load
from slotline.stores._topology import Topology
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
    def awaiting_lines(self, node: str) -> AwaitingLines:
        """Return the running event loop's connections to a server."""


class _Leg(NamedTuple):
    """Commands for one server, by their numbers; ``asking``: it takes them although it has the slot not quite yet."""

    node: str
    numbers: Sequence[int]
    asking: bool


@dataclass(slots=True, frozen=True)
class _Exchange(Step):
    """Send words to servers and return, for each leg, its replies or the one error that broke its connection."""

    fleet: Fleet
    legs: list[_Leg]
    commands: Sequence[Command]

    def blocking(self) -> list[Any]:
        return [_outcome_blocking(self.fleet, leg, self.commands) for leg in self.legs]

    async def awaiting(self) -> list[Any]:
        if len(self.legs) == 1:
            return [await _outcome(self.fleet, self.legs[0], self.commands)]
        return list(await asyncio.gather(*(_outcome(self.fleet, leg, self.commands) for leg in self.legs)))


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


def send_blocking(fleet: Fleet, commands: Sequence[Command]) -> list[Any]:
    """Do as :func:`sending`, at less cost where there is one server, and it answers."""
    if fleet.topology.moves:
        return run_blocking(sending(fleet, commands))
    outcome = _outcome_blocking(fleet, _Leg("", range(len(commands)), asking=False), commands)
    return outcome if _is_plain(outcome) else run_blocking(sending(fleet, commands, [outcome]))


async def send_awaiting(fleet: Fleet, commands: Sequence[Command]) -> list[Any]:
    """Do as :func:`sending`, at less cost where there is one server, and it answers."""
    if fleet.topology.moves:
        return await run_awaiting(sending(fleet, commands))
    outcome = await _outcome(fleet, _Leg("", range(len(commands)), asking=False), commands)
    return outcome if _is_plain(outcome) else await run_awaiting(sending(fleet, commands, [outcome]))


def _is_plain(outcome: Any) -> bool:
    return isinstance(outcome, list) and not any(isinstance(reply, Exception) for reply in outcome)


def sending(fleet: Fleet, commands: Sequence[Command], replied: list[Any] | None = None) -> Steps[list[Any]]:
    """Send independent commands, each to its server, and return their replies or errors, one in each place.

    A command whose server cannot be reached, or cannot serve just now, is sent again, to whichever server has its
    place by then; the others are not.

    Args:
        fleet: The store.
        commands: What to send.
        replied: What the first exchange has brought, where there was one.
    """
    topology = fleet.topology
    outcomes: list[Any] = [None] * len(commands)
    left: Sequence[int] = range(len(commands))
    patience, hops = pauses(fleet.retries), _HOPS
    unknown = (yield _Look(topology, -math.inf)) if topology.moves and not topology.masters else None
    while True:
        since = time.monotonic()
        legs = _legs(
            topology, commands, left, outcomes, unknown or redis.ConnectionError("no server has its hash slot")
        )
        if replied is None:
            replied = yield _Exchange(fleet, legs, commands)
        for leg, replies in zip(legs, replied, strict=True):
            _note(topology, leg, replies, commands, outcomes)
        replied = None
        left = [number for number in left if _again(topology, outcomes[number])]
        if not left:
            break
        if hops and all(isinstance(outcomes[number], Redirection) for number in left):
            hops -= 1
        else:
            pause = next(patience, None)
            if pause is None:
                break
            yield Sleep(pause)
        if topology.moves and not all(_asked(outcomes[number]) for number in left):
            unknown = yield _Look(topology, since)
            for number in left:  # what the owner itself has said is newer than what another one knows
                if isinstance(outcomes[number], Redirection) and outcomes[number].for_good:
                    topology.moved(outcomes[number])
    return [_told(fleet.name, outcome) if isinstance(outcome, Exception) else outcome for outcome in outcomes]


def _told(store: str, error: Exception) -> Exception:
    told = translated(store, error)
    if told is not error:
        told.__cause__ = error
    return told


def _legs(
    topology: Topology, commands: Sequence[Command], left: Sequence[int], outcomes: list[Any], unknown: Exception
) -> list[_Leg]:
    """Return who gets which of the commands that are left; one that nobody can get has its error at once."""
    if not topology.moves:
        return [_Leg("", left, asking=False)]
    legs: dict[tuple[str, bool], list[int]] = {}
    for number in left:
        asking = _asked(outcomes[number])
        try:
            node = outcomes[number].node if asking else topology.node(commands[number])
        except StoreError as error:
            outcomes[number] = error
        else:
            if node is None:
                outcomes[number] = unknown
            else:
                legs.setdefault((node, asking), []).append(number)
    return [_Leg(node, numbers, asking) for (node, asking), numbers in legs.items()]


def _note(topology: Topology, leg: _Leg, replies: Any, commands: Sequence[Command], outcomes: list[Any]) -> None:
    for at, number in enumerate(leg.numbers):
        outcome = replies if isinstance(replies, Exception) else replies[at]
        if topology.moves and not isinstance(replies, Exception):
            outcome = topology.incoming(commands[number], leg.node, outcome)
            outcome = redirection(outcome, leg.node) or outcome
        outcomes[number] = outcome


def _again(topology: Topology, outcome: Any) -> bool:
    return isinstance(outcome, Exception) and (worth_retrying(outcome) or (topology.moves and elsewhere(outcome)))


def _asked(outcome: Any) -> bool:
    return isinstance(outcome, Redirection) and not outcome.for_good


def _outcome_blocking(fleet: Fleet, leg: _Leg, commands: Sequence[Command]) -> Any:
    """Return the replies of one server, or the error that broke its connection."""
    try:
        replies = _exchange_blocking(fleet, leg, [_words(command) for command in _outgoing(fleet, leg, commands)])
        missing = _without_script(replies)
        if missing:
            again = [_words_with_text(commands[leg.numbers[at]]) for at in missing]
            for at, reply in zip(missing, _exchange_blocking(fleet, leg, again), strict=True):
                replies[at] = reply
    except _UNSENDABLE as error:
        if len(leg.numbers) == 1:
            return [error]
        # Nothing was sent, since one of them cannot be: the others are not to suffer for it.
        return [_outcome_blocking(fleet, leg._replace(numbers=[number]), commands)[0] for number in leg.numbers]
    except Exception as error:  # noqa: BLE001 - the procedure decides
        return error
    return replies


async def _outcome(fleet: Fleet, leg: _Leg, commands: Sequence[Command]) -> Any:
    try:
        replies = await _exchange(fleet, leg, [_words(command) for command in _outgoing(fleet, leg, commands)])
        missing = _without_script(replies)
        if missing:
            again = [_words_with_text(commands[leg.numbers[at]]) for at in missing]
            for at, reply in zip(missing, await _exchange(fleet, leg, again), strict=True):
                replies[at] = reply
    except _UNSENDABLE as error:
        if len(leg.numbers) == 1:
            return [error]
        return [(await _outcome(fleet, leg._replace(numbers=[number]), commands))[0] for number in leg.numbers]
    except Exception as error:  # noqa: BLE001 - the procedure decides
        return error
    return replies


def _outgoing(fleet: Fleet, leg: _Leg, commands: Sequence[Command]) -> Sequence[Command]:
    topology = fleet.topology
    if not topology.moves and len(leg.numbers) == len(commands):
        return commands
    return [topology.outgoing(commands[number], leg.node) for number in leg.numbers]


def _exchange_blocking(fleet: Fleet, leg: _Leg, words: list[bytes]) -> list[Any]:
    lines = fleet.blocking_lines(leg.node)
    return lines.exchange(_each_asking(words))[1::2] if leg.asking else lines.exchange(words)


async def _exchange(fleet: Fleet, leg: _Leg, words: list[bytes]) -> list[Any]:
    lines = fleet.awaiting_lines(leg.node)
    if leg.asking:
        return (await lines.exchange(_each_asking(words), fleet.timeout))[1::2]
    return await lines.exchange(words, fleet.timeout)


def _each_asking(words: list[bytes]) -> list[bytes]:
    return [word for command in words for word in (_ASKING, command)]


def _words(command: Command) -> bytes:
    name, keys, args = command
    if name.isupper():
        return packed((name, *keys, *args))
    return packed((b"EVALSHA", load(name).sha, len(keys), *keys, *args))


def _words_with_text(command: Command) -> bytes:
    return packed((b"EVAL", load(command.script).text, len(command.keys), *command.keys, *command.args))


def _without_script(replies: list[Any]) -> list[int]:
    return [at for at, reply in enumerate(replies) if isinstance(reply, NoScriptError)]
