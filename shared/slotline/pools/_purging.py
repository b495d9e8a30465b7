"""Removing what is parked: in parts, and under claims, so that nothing is lost with whoever removes it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from slotline.pools._several import Ask
from slotline.pools._tokens import new_token
from slotline.pools._wire import channels, milliseconds, pool_keys
from slotline.steps import Call, Steps, all_or_error
from slotline.stores.base import Command
from slotline.stores.keeper import end_of

if TYPE_CHECKING:
    from slotline.pools.pool import Pool

logger = logging.getLogger("slotline.pools")

_AT_ONCE = 200
_ANSWERED_AT_ONCE = 20
"""Of those that are answered one by one, while the claims on all of them last."""


class Purged(NamedTuple):
    """A message that is about to be removed: the pool's key, the store's name for its lane, its owner, its bytes."""

    pool: str
    lane_id: str
    owner: str
    message: bytes


Answer: TypeAlias = Callable[[Purged], bool]
"""Tells those who wait for a message's result that there will be none; returns whether it could."""


class Purge(NamedTuple):
    """How many messages were removed; and how many stay, since those who wait for their results could not be told."""

    removed: int = 0
    stay: int = 0

    def and_then(self, other: Purge) -> Purge:
        """Return both together."""
        return Purge(self.removed + other.removed, self.stay + other.stay)


def purging(pool: Pool, answer: Answer | None = None) -> Steps[Purge]:
    """Remove the messages that are parked by now for a pool, or for it and others; what runs, and who calls, stays.

    Args:
        pool: The pool.
        answer: Called with each message before it is removed; one for which it returns false stays.
    """
    purge = Purge()
    how = (_AT_ONCE, 0) if answer is None else (_ANSWERED_AT_ONCE, 1)
    queues: list[Ask] = []
    at, upto = b"", b""
    while True:
        part = _Part(pool)
        reply = yield Call(pool.store, Command("room_purge", pool.keys, (*part.about, *how, at, upto)))
        at, upto, told, asks = reply
        queues += map(Ask.read, asks)
        purge = purge.and_then((yield from part.ending(told, answer)))
        if not at:
            break
    for ask in queues:
        more = 1
        while more:
            part = _PartOfSeveral(pool, ask)
            reply = yield Call(pool.store, Command("several_purge", part.keys, (*part.about, *how, upto)))
            more, told = reply
            purge = purge.and_then((yield from part.ending(told, answer)))
    if purge.removed:
        logger.info("%d parked messages of pool %r were removed", purge.removed, pool.key)
    return purge


class _Part:
    """Messages that are claimed at once."""

    def __init__(self, pool: Pool) -> None:
        self.pool, self.keys = pool, pool.keys
        self.about: tuple[str | bytes | int, ...] = (new_token(), milliseconds(pool.patience))
        self._until = end_of(time.monotonic(), pool.patience, pool.patience)

    def done(self, digest: str) -> Command:
        """The command that removes a message."""
        return Command("room_settle", self.keys, (digest, str(self.about[0]), "done"))

    def back(self, digest: str) -> Command:
        """The command that puts one back to where it stood."""
        return Command("room_settle", self.keys, (digest, str(self.about[0]), "back"))

    def ending(self, told: list[bytes], answer: Answer | None) -> Steps[Purge]:
        """Remove the messages that are told of; what has no answer, and what comes too late, is put back."""
        digests, lanes, owners, messages = (told[nth::4] for nth in range(4))
        answered: list[bool] = []
        failure: BaseException | None = None
        for lane, owner, message in zip(lanes, owners, messages, strict=True):
            purged = Purged(self.pool.key, lane.decode(), owner.decode("utf-8", "replace"), message)
            try:
                answered.append(answer is None or (self._in_time and answer(purged)))
            except BaseException as error:  # noqa: BLE001 - raised when the others are back
                failure = error
                break
        answered += [False] * (len(digests) - len(answered))
        ends = [
            (self.done if was else self.back)(digest.decode()) for digest, was in zip(digests, answered, strict=True)
        ]
        replies = yield from all_or_error(self.pool.store, ends)
        if failure is not None:
            raise failure
        removed = sum(reply for reply, was in zip(replies, answered, strict=True) if was)
        return Purge(removed, len(digests) - removed)

    @property
    def _in_time(self) -> bool:
        return time.monotonic() < self._until


class _PartOfSeveral(_Part):
    """Messages of a queue for several pools."""

    def __init__(self, pool: Pool, ask: Ask) -> None:
        super().__init__(pool)
        token, lease_ms = self.about
        self.keys = tuple(key for name in ask.names for key in pool_keys(pool.store, name))
        self.about = ask.of_message(str(token), int(lease_ms), channels(pool.store))

    def done(self, digest: str) -> Command:
        """See :meth:`_Part.done`: the message is in its first pool."""
        return Command("room_settle", self.pool.keys, (digest, f"{self.about[0]!s}.1", "done"))

    def back(self, digest: str) -> Command:
        """See :meth:`_Part.back`."""
        return Command("several_back", self.keys, (*self.about, digest))
