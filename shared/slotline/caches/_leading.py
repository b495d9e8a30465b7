"""One run per key across processes: take the claim, keep it while the creator runs, hand over what it made."""

from __future__ import annotations

import random
import threading
import time
import uuid
from typing import TYPE_CHECKING, Any

from slotline.caches import _commands as commands
from slotline.caches._circles import Needs
from slotline.caches._creating import create
from slotline.caches._engine import logger
from slotline.caches._failures import from_payload, to_payload
from slotline.caches._flights import ABANDONED, Claim, Flight, Outcome, failed
from slotline.errors import StoreError, StoreUnavailableError
from slotline.steps import Call, Sleep, Steps, all_or_error
from slotline.stores.keeper import BEATS
from slotline.stores.wakeups import Here, Listen, Wait, Wakeups

if TYPE_CHECKING:
    from slotline.caches._options import EntryOptions
    from slotline.caches.base import Creator
    from slotline.caches.redis import RedisCacheAdapter

REFRESH_PAUSE = 1.0
"""Seconds between two tries to refresh an entry that keeps failing, or that somebody else refreshes."""
_JITTER = 0.25
_LEAST_WAIT = 0.05
_RETRY = 0.5
_REGAIN = 1.5
_SMALL = 64 * 1024
_TRY_YOURSELVES = b"a"
_CLAIMED, _TAKEN = 2, 0


class Leading:
    """One process's part in bringing one value.

    Args:
        cache: Whose value it is.
        flight: The run of this process.
        options: How the value is kept.
        aged_ms: An entry with no more than that to live is refreshed; 0 on a miss.
    """

    def __init__(self, cache: RedisCacheAdapter, flight: Flight, options: EntryOptions, aged_ms: int) -> None:
        self.cache = cache
        self.flight = flight
        self.options = options
        self.aged_ms = aged_ms
        self.token = uuid.uuid4().hex
        self.base = cache.names.base(flight.key)
        self.lease_ms = commands.milliseconds(cache.lock_timeout)
        self.lost = False
        self._ended = threading.Event()
        self._fresh_for = 0.0
        self._untagged = False
        """Whether a tag could not be noted: invalidating it would miss the value, which is therefore not stored."""

    def fly(self, creator: Creator) -> Steps[Outcome]:
        """Return the value, made here or by another process."""
        try:
            self.cache.try_store()
            found = yield from self._claimed()
        except StoreError as error:
            self.cache.store_failed(error)
            if self.cache.on_store_error == "fail":
                return failed(error)
            return (yield from self._unled(creator))
        return found or (yield from self._lead(creator))

    def _claimed(self) -> Steps[Outcome | None]:
        """Return what another process made, or ``None`` with the claim in hand."""
        outcome, left = yield from self._ask("")
        if left is None:
            return outcome
        if self.aged_ms:
            self.cache.rest(self.flight.key, REFRESH_PAUSE)
            return ABANDONED
        logger.debug("waiting for %r, which another process creates", self.flight.key)
        until = time.monotonic() + left
        needs = Needs(self.cache, self.flight, self.base)
        try:
            while True:
                try:
                    outcome, left = yield from self._in_line(needs)
                except StoreUnavailableError as error:
                    # Somebody is at work, and a server that restarts is back in a moment; one that is full stays so.
                    if time.monotonic() >= until or _is_full(error):
                        raise
                    yield Sleep(_RETRY * (1 + _jitter()))
                    continue
                if left is None:
                    return outcome
                until = time.monotonic() + left
        finally:
            needs.end()

    def _in_line(self, needs: Needs) -> Steps[tuple[Outcome | None, float | None]]:
        """Ask again, and wait once if somebody else still has the claim; answer as :meth:`_ask` does."""
        hub: Wakeups = yield Here(self.cache.store)
        yield Listen(hub)
        with hub.bell(self.token) as bell:
            outcome, left = yield from self._ask(hub.channel)
            if left is None:
                return outcome, None
            until = time.monotonic() + left
            if (yield from needs.close_a_circle(left)):
                return ABANDONED, None
            payload = yield Wait(bell, left)
            # A ring without a payload: messages may have been lost, and with them everything that the server knew.
            # Whoever has the claim takes it again within a beat, and nobody should be faster.
            nudged = payload is None and time.monotonic() < until
            if nudged and (yield Call(self.cache.store, commands.read(self.base))) is None:
                payload = yield Wait(bell, self.cache.lock_timeout / BEATS + _REGAIN)
        if payload is not None and payload[:1] == b"e":
            return failed(from_payload(payload)), None
        return None, left

    def _ask(self, channel: str) -> Steps[tuple[Outcome | None, float | None]]:
        """Return the value, or ``None`` with the claim; or how many seconds to wait for whoever has the claim."""
        store = self.cache.store
        while True:
            since = time.monotonic()
            command = commands.claim(self.base, self.token, self.lease_ms, channel, self.aged_ms)
            state, *facts = yield Call(store, command)
            if state == _CLAIMED:
                self.flight.claim = Claim(store.name, self.base, self.token)
                self._keep(since)
                return None, None
            if state == _TAKEN:
                # A ring may get lost, so that everyone looks again when the claim should have ended.
                return None, max(_LEAST_WAIT, facts[0] / 1000) * (1 + _jitter())
            entry = self.cache.codec.read(self.flight.key, facts[0], self.options.returns)
            if entry is not None:
                self.cache.value_seen(self.flight.key, entry, facts[1], since)
                self.cache.count.fresh += 1
                return failed(entry.value) if entry.error else Outcome(entry.value), None
            yield Call(store, commands.discard(self.base, facts[0]))

    def _unled(self, creator: Creator) -> Steps[Outcome]:
        """Run the creator without the store: this process's callers still share one run."""
        self.cache.count.bypassed += 1
        outcome = yield from create(self.flight, creator, self.options)
        self.cache.count.errors += outcome.error is not None
        return outcome

    def _lead(self, creator: Creator) -> Steps[Outcome]:
        if not self.aged_ms:
            self.cache.count.misses += 1
        started = time.monotonic()
        try:
            yield from self._tag()
            outcome = yield from create(self.flight, creator, self.options)
            command = self._handover(outcome, time.monotonic() - started)
        except BaseException:
            # The loop ends or the thread is interrupted: nothing more can be awaited here.
            self._drop()
            self.cache.keeper.later(commands.fail(self.base, self.token, _TRY_YOURSELVES, 0), self.cache.lock_timeout)
            raise
        self.cache.count.errors += outcome.error is not None
        self._drop()
        since = time.monotonic()
        try:
            stored = yield Call(self.cache.store, command)
        except StoreError as error:
            self.cache.store_failed(error)
            self._hand_over_later(command, error)
        else:
            if stored:
                self.cache.store_took()
            if stored and self._fresh_for and self.cache.on_value is not None:
                self.cache.on_value(self.flight.key, outcome.value, self._fresh_for, since)
            if not stored and self.lost:
                logger.warning("the value of %r was not stored: its claim was lost while it was made", self.flight.key)
        return outcome

    def _tag(self) -> Steps[None]:
        # Before the creator reads anything: a tag that is invalidated from now on finds this run.
        if self.options.tags:
            cache = self.cache
            options = self.options
            life_ms = commands.milliseconds(options.ttl + options.grace + options.keep)
            tags = [commands.tag(cache.names.tag(tag), self.base, life_ms) for tag in options.tags]
            try:
                yield from all_or_error(cache.store, tags)
            except StoreError as error:
                cache.store_failed(error)
                self._untagged = True

    def _handover(self, outcome: Outcome, delta: float) -> Any:
        """Return the command that ends the claim: with a value, with an exception, or with neither."""
        cache, options, key = self.cache, self.options, self.flight.key
        if outcome.abandoned or self.flight.void or self._untagged:
            return commands.fail(self.base, self.token, _TRY_YOURSELVES, 0)
        if outcome.error is None:
            raw = cache.codec.write(key, outcome.value, options, delta)
            if raw is None:
                cache.count.errors += 1
                return commands.fail(self.base, self.token, _TRY_YOURSELVES, 0)
            life = self._fresh_for = options.life()
            cache.remember(key, life + options.grace)
            keep_ms = commands.milliseconds(options.keep) if options.keep else 0
            return commands.fill(self.base, self.token, raw, commands.milliseconds(life + options.grace), keep_ms)
        if self.aged_ms:
            logger.warning("refreshing %r failed, its old value serves on: %r", key, outcome.error)
            cache.rest(key, REFRESH_PAUSE)
            return commands.fail(self.base, self.token, to_payload(outcome.error), commands.milliseconds(REFRESH_PAUSE))
        if options.errors_ttl:
            raw = cache.codec.write_error(key, outcome.error)
            return commands.fill(self.base, self.token, raw, commands.milliseconds(options.errors_ttl), -1)
        return commands.fail(self.base, self.token, to_payload(outcome.error), 0)

    def _hand_over_later(self, command: Any, error: StoreError) -> None:
        # A full server refuses values as long as it is full; the claim it lets go at once.
        unreachable = isinstance(error, StoreUnavailableError) and not _is_full(error)
        small = command.script == "cache_fail" or len(command.args[1]) <= _SMALL
        if not (unreachable and small):
            command = commands.fail(self.base, self.token, _TRY_YOURSELVES, 0)
        self.cache.keeper.later(command, self.cache.lock_timeout)

    # -- the claim is renewed while the creator runs ------------------------------------------------------------

    def _keep(self, since: float) -> None:
        renewal = commands.renew(self.base, self.token, self.lease_ms)
        self.cache.keeper.keep(self.token, renewal, self.cache.lock_timeout, since, self._on_lost)

    def _drop(self) -> None:
        self._ended.set()
        self.cache.keeper.drop(self.token)

    def _on_lost(self) -> None:
        if not self._ended.is_set() and not self.lost:
            self.lost = True
            # The keeper must not wait for the server; and this is rare.
            threading.Thread(target=self._regain, name="slotline-regain", daemon=True).start()

    def _regain(self) -> None:
        """Take the claim again if the server forgot it with everything else, so that nobody starts a second run."""
        since = time.monotonic()
        try:
            regained = self.cache.store.sync.execute(commands.regain(self.base, self.token, self.lease_ms))
        except StoreError as error:
            self.cache.store_failed(error)
            return
        if regained and not self._ended.is_set():
            self.lost = False
            self._keep(since)
            if self._ended.is_set():  # it ended just now
                self.cache.keeper.drop(self.token)


def _is_full(error: StoreUnavailableError) -> bool:
    return "OutOfMemory" in error.reason


def _jitter() -> float:
    return _JITTER * random.random()  # noqa: S311 - spreads load, no secret
