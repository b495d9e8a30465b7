"""How commands reach their servers and come back: routing, redirections, lost scripts, broken connections."""

from __future__ import annotations

import asyncio
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import redis.asyncio
from redis.exceptions import DataError, NoScriptError

from slotline.errors import StoreError
from slotline.steps import Sleep, Step, Steps
from slotline.stores._redis_errors import Redirection, elsewhere, pauses, redirection, translated, worth_retrying
from slotline.stores._scripts import load
from slotline.stores._topology import Topology
from slotline.stores.base import Command

_HOPS = 8
"""Redirections in a row that cost no pause."""
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
    def blocking_client(self, node: str) -> redis.Redis:
        """Return this process's client of a server."""

    @abstractmethod
    def awaiting_client(self, node: str) -> redis.asyncio.Redis:
        """Return the running event loop's client of a server."""


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
        return [self._outcome_blocking(leg) for leg in self.legs]

    async def awaiting(self) -> list[Any]:
        if len(self.legs) == 1:
            return [await self._outcome(self.legs[0])]
        return list(await asyncio.gather(*map(self._outcome, self.legs)))

    def _commands(self, leg: _Leg) -> list[Command]:
        topology = self.fleet.topology
        if not topology.moves:
            return [self.commands[number] for number in leg.numbers]
        return [topology.outgoing(self.commands[number], leg.node) for number in leg.numbers]

    def _outcome_blocking(self, leg: _Leg) -> Any:
        client, commands = self.fleet.blocking_client(leg.node), self._commands(leg)
        try:
            return _send_blocking(client, commands, asking=leg.asking)
        except _UNSENDABLE as error:
            if len(commands) == 1:
                return [error]
            # Nothing was sent, since one of them cannot be: the others are not to suffer for it.
            return [self._outcome_blocking(leg._replace(numbers=[number]))[0] for number in leg.numbers]
        except Exception as error:  # noqa: BLE001 - the procedure decides
            return error

    async def _outcome(self, leg: _Leg) -> Any:
        client, commands = self.fleet.awaiting_client(leg.node), self._commands(leg)
        try:
            return await _send(client, commands, self.fleet.timeout, asking=leg.asking)
        except _UNSENDABLE as error:
            if len(commands) == 1:
                return [error]
            return [(await self._outcome(leg._replace(numbers=[number])))[0] for number in leg.numbers]
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


def sending(fleet: Fleet, commands: Sequence[Command]) -> Steps[list[Any]]:
    """Send independent commands, each to its server, and return their replies or errors, one in each place.

    A command whose server cannot be reached, or cannot serve just now, is sent again, to whichever server has its
    place by then; the others are not.
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
        replied = yield _Exchange(fleet, legs, commands)
        for leg, replies in zip(legs, replied, strict=True):
            _note(topology, leg, replies, commands, outcomes)
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


def _words(command: Command) -> list[Any]:
    name, keys, args = command
    if name.isupper():
        return [name, *keys, *args]
    return ["EVALSHA", load(name).sha, len(keys), *keys, *args]


def _words_with_text(command: Command) -> list[Any]:
    return ["EVAL", load(command.script).text, len(command.keys), *command.keys, *command.args]


def _without_script(replies: list[Any]) -> list[int]:
    return [at for at, reply in enumerate(replies) if isinstance(reply, NoScriptError)]


async def _send(client: redis.asyncio.Redis, commands: list[Command], timeout: float, *, asking: bool) -> list[Any]:
    async with asyncio.timeout(timeout):
        replies = await _exchange(client, [_words(command) for command in commands], asking=asking)
    missing = _without_script(replies)
    if missing:
        async with asyncio.timeout(timeout):
            again = await _exchange(client, [_words_with_text(commands[at]) for at in missing], asking=asking)
        for at, reply in zip(missing, again, strict=True):
            replies[at] = reply
    return replies


async def _exchange(client: redis.asyncio.Redis, commands: list[list[Any]], *, asking: bool) -> list[Any]:
    if len(commands) == 1 and not asking:  # half the cost of a pipeline of one
        try:
            return [await client.execute_command(*commands[0])]
        except Exception as error:
            if worth_retrying(error) or isinstance(error, _UNSENDABLE):
                raise
            return [error]
    async with client.pipeline(transaction=False) as pipeline:
        for words in commands:
            if asking:
                pipeline.execute_command("ASKING")
            pipeline.execute_command(*words)
        replies: list[Any] = await pipeline.execute(raise_on_error=False)
        return replies[1::2] if asking else replies


def _send_blocking(client: redis.Redis, commands: list[Command], *, asking: bool) -> list[Any]:
    replies = _exchange_blocking(client, [_words(command) for command in commands], asking=asking)
    missing = _without_script(replies)
    if missing:
        again = _exchange_blocking(client, [_words_with_text(commands[at]) for at in missing], asking=asking)
        for at, reply in zip(missing, again, strict=True):
            replies[at] = reply
    return replies


def _exchange_blocking(client: redis.Redis, commands: list[list[Any]], *, asking: bool) -> list[Any]:
    if len(commands) == 1 and not asking:
        try:
            return [client.execute_command(*commands[0])]
        except Exception as error:
            if worth_retrying(error) or isinstance(error, _UNSENDABLE):
                raise
            return [error]
    with client.pipeline(transaction=False) as pipeline:
        for words in commands:
            if asking:
                pipeline.execute_command("ASKING")
            pipeline.execute_command(*words)
        replies: list[Any] = pipeline.execute(raise_on_error=False)
        return replies[1::2] if asking else replies
