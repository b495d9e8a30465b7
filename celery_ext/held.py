"""Requests over their limit, held by the worker in the order in which they came."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeAlias
from weakref import WeakSet

from celery.worker import state

from celery_ext.options import CallLimit
from slotline.pools import Limit, Place, Slot


@dataclass(eq=False, slots=True)
class Held:
    """A request that waits for a slot, unacknowledged.

    Attributes:
        request: The request.
        limit: The pool that it must count in.
        pool: The same, as an object.
        until: When its ``pool_timeout`` ends, by the monotonic clock; ``None`` for never.
        since: Since when it waits behind others of this worker, by the same clock; ``None`` if there were none.
    """

    request: Any
    limit: CallLimit
    pool: Limit[Any]
    until: float | None = None
    since: float | None = None

    @property
    def size(self) -> int:
        """How many slots there are at the most of what it waits for, for people."""
        return min(pool.max_size for pool in self.pool.pools)

    @classmethod
    def from_now(cls, request: Any, limit: CallLimit, pool: Limit[Any]) -> Held:
        """Hold a request whose ``pool_timeout`` starts now."""
        return cls(request, limit, pool, None if limit.timeout is None else time.monotonic() + limit.timeout)


LineName: TypeAlias = tuple[tuple[tuple[str, str | None], ...], tuple[int, ...]]
"""The pools and the partitions of them; and the weights that a line is for, none for those who may get a slot."""


@dataclass(eq=False, slots=True)
class Line:
    """The requests that wait for the same pools and partitions in this worker; the first stands in the pools' own line.

    Only the first does, so that a worker that holds a thousand requests does not come a thousand times before one
    that holds a single one. Each partition has a line, so that they take turns, and one that is full holds up no other.
    Those who ask for more than a pool has left since it was made smaller have lines of their own, one for each weight:
    they keep their places, and hold up nobody.
    """

    name: LineName
    waiting: deque[Held] = field(default_factory=deque)
    place: Place | None = None
    served: WeakSet[Place] = field(default_factory=WeakSet)
    look_at: float = 0.0
    looking: bool = False

    def stand(
        self,
        on_grant: Callable[[Line, Place, Slot], None],
        on_nudge: Callable[[Line, Place], None],
        evict: Callable[[Held], None],
    ) -> Slot | None:
        """Take a slot for the first request, or keep its place in the pool's line; one command.

        Raises:
            StoreUnavailableError: The store cannot be reached; a place that was there is still kept.
        """
        first = None
        if self.place is None:
            first = self.waiting[0]
            self.place = place = Place(
                first.pool,
                owner=owner_of(first.request),
                **first.limit.share,
                on_grant=lambda slot: on_grant(self, place, slot),
                on_nudge=lambda: on_nudge(self, place),
                since=first.since,
            )
        slot = self.place.sync.enter()
        if slot is None and first is not None and first.limit.on_full == "cancel_oldest":
            evict(first)
        if slot is None:
            self.look_at = time.monotonic() + self.place.look_after
        return slot

    def serve(self) -> Held:
        """Take the first request out of the line: its place has brought it a slot."""
        if self.place is not None:
            self.served.add(self.place)
            self.place = None
        return self.waiting.popleft()

    def remove(self, held: Held) -> None:
        """Take a request out of the line that will not run, and its place with it."""
        if self.waiting[0] is held:
            self.leave()
        self.waiting.remove(held)

    def set_aside(self) -> Line:
        """Keep the first request alone, in a line for its weight; return that of the others, under the old name."""
        first = self.waiting.popleft()
        rest = Line(self.name, self.waiting)
        self.waiting, self.name = deque([first]), (self.name[0], first.limit.weights)
        return rest

    def leave(self) -> None:
        """Give up the place in the pool's line, and the slot that it may have brought by now."""
        if self.place is not None:
            self.place.abandon()
            self.place = None


def ended(waiting: Iterable[Held], now: float) -> Iterator[tuple[Held, str]]:
    """Give the requests that must not wait any longer, and why: ``"revoked"`` or ``"timeout"``."""
    for held in list(waiting):
        if is_over(held.request):
            yield held, "revoked"
        elif held.until is not None and held.until <= now:
            yield held, "timeout"


def is_over(request: Any) -> bool:
    """Return whether a request was revoked or has expired; if so, Celery announces and acknowledges it here."""
    if request.expires is None and not state.revoked and not state.revoked_stamps and not request._already_revoked:  # noqa: SLF001 - Celery has no other way to ask
        return False
    return bool(request.revoked())


def owner_of(request: Any) -> str:
    """Return what people see as the holder of a request's slot."""
    return f"{request.name}[{request.id}]"
