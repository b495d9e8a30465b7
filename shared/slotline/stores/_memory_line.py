"""Those who wait for a pool of the memory store: partitions take turns, and within each the first comes first."""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Iterator
from typing import NamedTuple, TypeAlias


class Waiting(NamedTuple):
    """One place in line; whether its waiter is still there can be asked at any time, so it needs no patience.

    Of one who wants slots of other pools, too, ``several`` is the token by which it asks. ``place`` is the same in all
    lines. ``since_ms`` is when it came.
    """

    cap_ms: int
    owner: str
    weight: int
    partition: str
    several: str = ""
    place: int = 0
    since_ms: int = 0


places_in_line = itertools.count(1)
"""Of all pools, so that those who stand in one line after the other have the same place in each."""

Places: TypeAlias = OrderedDict[str, Waiting]


class Line:
    """The places of a pool, by partition; one that has all that it may have is stopped, and has no turn."""

    def __init__(self) -> None:
        self.turns: OrderedDict[str, Places] = OrderedDict()
        self.stopped: dict[str, Places] = {}
        self._partitions: dict[str, str] = {}

    def __len__(self) -> int:
        return len(self._partitions)

    def items(self) -> Iterator[tuple[str, Waiting]]:
        """Return all who stand here, by token."""
        for places in (*self.turns.values(), *self.stopped.values()):
            yield from places.items()

    @property
    def alone(self) -> int:
        """How many want a slot of this pool alone."""
        return sum(not waiting.several for _, waiting in self.items())

    def __contains__(self, token: str) -> bool:
        return token in self._partitions

    def partitions(self) -> list[str]:
        """Return those that wait."""
        return [*self.turns, *self.stopped]

    def places(self, partition: str) -> Places:
        """Return the places of a partition."""
        return self.turns.get(partition) or self.stopped.get(partition) or OrderedDict()

    def add(self, token: str, waiting: Waiting) -> int:
        """Put a token at its place in its partition, unless it stands there; return how many are before it there."""
        places = self.turns.get(waiting.partition) or self.stopped.get(waiting.partition)
        if places is None:
            places = self.turns[waiting.partition] = OrderedDict()
        if token in places:
            return list(places).index(token)
        places[token] = waiting if waiting.place else waiting._replace(place=next(places_in_line))
        self._partitions[token] = waiting.partition
        if not waiting.place:
            return len(places) - 1
        later = [other for other, its in places.items() if its.place > waiting.place]
        for other in later:
            places.move_to_end(other)
        return len(places) - 1 - len(later)

    def remove(self, token: str) -> None:
        """Take a token out, if it is there."""
        partition = self._partitions.pop(token, None)
        if partition is None:
            return
        self.go_on(partition)  # whoever is behind it may need less
        places = self.turns[partition]
        del places[token]
        if not places:
            del self.turns[partition]

    def served(self, token: str) -> None:
        """Take a token out that was served; its partition goes behind the others."""
        self.had_its_turn(self._partitions[token])
        self.remove(token)

    def had_its_turn(self, partition: str) -> None:
        """Let a partition go behind the others, if it waits: one of it was served."""
        if partition in self.turns:
            self.turns.move_to_end(partition)

    def stop(self, partition: str) -> None:
        """Let a partition have no turn."""
        self.stopped[partition] = self.turns[partition]
        del self.turns[partition]

    def go_on(self, partition: str) -> None:
        """Let a stopped partition have its turn again."""
        if partition in self.stopped:
            self.turns[partition] = self.stopped[partition]
            del self.stopped[partition]

    def mend(self) -> None:
        """Let all who stand here be found, and have their turns."""
        for partition in list(self.stopped):
            self.go_on(partition)
        for partition, places in list(self.turns.items()):
            if not places:
                del self.turns[partition]
        self._partitions = {token: partition for partition, places in self.turns.items() for token in places}
