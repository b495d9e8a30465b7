"""Creators in several processes that wait for each other's values: found out before they wait for ever.

Only where a creator itself waits for another process's value, that is noted beside the claim that it has, and such
notes are followed from that value on. The note comes first: of those in a circle, the last one to note sees it whole.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from slotline.caches import _commands as commands
from slotline.caches._flights import Claim
from slotline.steps import all_or_error

if TYPE_CHECKING:
    from slotline.caches._flights import Flight
    from slotline.caches.redis import RedisCacheAdapter
    from slotline.steps import Steps


class Needs:
    """For whose sake a flight waits for another process's value.

    Args:
        cache: Whose value it is.
        flight: The flight.
        base: What the names of the value's keys start with.
    """

    def __init__(self, cache: RedisCacheAdapter, flight: Flight, base: str) -> None:
        self._cache = cache
        self._flight = flight
        self._base = base
        self._noted: set[Claim] = set()

    def close_a_circle(self, seconds: float) -> Steps[bool]:
        """Note who waits, for ``seconds`` to come, and return whether the value waits for one of them in turn.

        Those are ``refused`` by the flight then.
        """
        store = self._cache.store
        found = {flight.claim for flight in self._flight.held_up()}
        claims = {claim for claim in found if claim is not None and claim.store == store.name}
        self._forget(self._noted - claims)
        if not claims:
            return False
        self._noted |= claims
        life_ms = commands.milliseconds(seconds + 2 * self._cache.lock_timeout)
        notes = [commands.need(claim.base, claim.token, self._base, life_ms) for claim in claims]
        yield from all_or_error(store, notes)
        way = yield from self._way_to(claims)
        # What was found in steps may never have been true at one moment; what is found twice has been, in between.
        if not way or way != (yield from self._way_to(claims)):
            return False
        in_circle = [flight for flight in self._flight.held_up() if flight.claim == way[-1]]
        self._flight.refused = frozenset(
            caller for caller in self._flight.callers if not set(in_circle).isdisjoint(caller.held_up())
        )
        return bool(self._flight.refused)

    def end(self) -> None:
        """Take the notes back."""
        self._forget(set(self._noted))

    def _forget(self, claims: set[Claim]) -> None:
        self._noted -= claims
        for claim in claims:
            command = commands.need_no_more(claim.base, claim.token, self._base)
            self._cache.keeper.later(command, self._cache.lock_timeout)

    def _way_to(self, claims: set[Claim]) -> Steps[list[Claim]]:
        """Return the claims on the way from the value to one of ``claims``, that one included; nothing for no way."""
        store = self._cache.store
        ways: dict[str, list[Claim]] = {self._base: []}
        layer = [self._base]
        while layer:
            replies = yield from all_or_error(store, [commands.needs(base) for base in layer])
            further = []
            for base, (holder, *needed) in zip(layer, replies, strict=True):
                way = [*ways[base], Claim(store.name, base, holder.decode())]
                if way[-1] in claims:
                    return way
                for other in (name.decode() for name in needed):
                    if other not in ways:
                        ways[other] = way
                        further.append(other)
            layer = further
        return []
