"""The scripts for several pools at once, for the memory store: as ``lib_several.lua`` says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from slotline.stores._memory_line import Waiting, places_in_line
from slotline.stores._memory_pools import (
    CALL_MS,
    PARTS,
    ForEver,
    Held,
    Pools,
    PoolState,
    Queued,
    Reply,
    Rings,
    Script,
    known,
)
from slotline.stores.base import Command


@dataclass(slots=True)
class _Several:
    """The pools that a command is about, what it asks of each, and the queue of those who ask the same."""

    command: Command
    pools: list[PoolState]
    wanted: list[Waiting]
    queue: str
    now_ms: int
    rings: Rings
    rated_ms: int = 0
    """When the one who asks is to ask again, if it has all but the leave of a rate."""

    @classmethod
    def of(cls, command: Command, pools: list[PoolState], now_ms: int, rings: Rings) -> _Several:
        args = command.args
        wanted = [
            Waiting(int(args[at]), "", int(args[at + 1]), str(args[at + 2])) for at in range(3, 3 + 3 * len(pools), 3)
        ]
        return cls(command, pools, wanted, str(args[1]), now_ms, rings)

    @property
    def queued(self) -> dict[str, Queued]:
        return self.pools[0].queues.get(self.queue, {})

    def held_by(self, token: str) -> list[Held] | None:
        held = [pool.slots.get(_slot(token, at)) for at, pool in enumerate(self.pools)]
        return None if None in held else [one for one in held if one is not None]

    def enqueue(self, token: str, owner: str) -> None:
        queue = self.pools[0].queues.setdefault(self.queue, {})
        if token not in queue:
            queue[token] = Queued(next(places_in_line), owner, came_ms=self.now_ms)

    def leave(self, token: str) -> None:
        self.queued.pop(token, None)
        if not self.queued:
            self.pools[0].queues.pop(self.queue, None)
        for at, pool in enumerate(self.pools):
            pool.line.remove(_slot(token, at))

    def ready(self, token: str, at: int) -> str:
        pool, slot = self.pools[at], _slot(token, at)
        blocked = pool.serve(self.now_ms, self.rings, slot)
        if pool.paused:
            return ""
        if slot in pool.slots:
            return "kept"
        wanted = self.wanted[at]
        free = not blocked and wanted.partition not in pool.line.stopped
        return "free" if free and pool.may_start(self.now_ms) and pool.has_room(wanted) else ""

    def take_one(self, token: str, at: int, owner: str, cap_ms: int, *, kept: bool = False) -> Held:
        pool, slot = self.pools[at], _slot(token, at)
        pool.line.remove(slot)
        pool.line.had_its_turn(self.wanted[at].partition)
        return pool.take(slot, self.wanted[at]._replace(owner=owner, cap_ms=cap_ms), self.now_ms, kept=kept)

    def take_back(self, token: str, at: int) -> bool:
        return self.pools[at].let_go(_slot(token, at))

    def take_all(self, token: str, owner: str) -> list[Held]:
        for at in range(len(self.pools)):
            self.take_back(token, at)
        return [self.take_one(token, at, owner, wanted.cap_ms) for at, wanted in enumerate(self.wanted)]

    def stands(self, token: str, at: int) -> bool:
        return _slot(token, at) in self.pools[at].line

    def rated(self, found: list[str]) -> tuple[int, int]:
        """Milliseconds until the rates allow the starts that are kept, and the number of the pool that is the last."""
        pools = enumerate(self.pools)
        waits = [(pool.next_start_ms(self.now_ms, kept=True), at) for at, pool in pools if found[at] == "kept"]
        return max(waits, default=(0, 0))

    def wait_at(self, token: str, blocked: int, found: list[str], rated_ms: int = 0) -> None:
        queued, now_ms = self.queued[token], self.now_ms
        stood = [self.stands(token, at) for at in range(len(self.pools))]
        moves = not stood[blocked] and (any(stood) or "kept" in found)
        if moves:
            since = queued.since_ms or now_ms
            queued = self.queued[token] = queued._replace(since_ms=since, kept_until_ms=2 * now_ms - since)
        if rated_ms:
            until = max(queued.kept_until_ms, now_ms + rated_ms + CALL_MS)
            queued = self.queued[token] = queued._replace(kept_until_ms=until)
        life = queued.kept_until_ms - now_ms
        in_order = life > 0
        for at, pool in enumerate(self.pools):
            slot = _slot(token, at)
            passes_on = at != blocked and stood[at]
            if passes_on:
                pool.line.remove(slot)
            in_order = in_order and bool(found[at])
            if not in_order:
                passes_on = self.take_back(token, at) or passes_on
            elif slot in pool.slots and not rated_ms:
                pool.keep_until(slot, now_ms + life)
            elif moves or rated_ms:
                self.take_back(token, at)  # of what has a rate, the next start is kept then
                self.take_one(token, at, queued.owner, life, kept=True)
            if passes_on:
                pool.serve(now_ms, self.rings)
        stands = self.wanted[blocked]._replace(owner=queued.owner, several=token, place=queued.place)
        self.pools[blocked].line.add(_slot(token, blocked), stands)

    def advance(self) -> int | None:
        """Serve the queue; return the number of the pool at which its head waits now, ``None``: nobody is left."""
        asks = str(self.command.args[0])
        while self.queued:
            token, queued = next(iter(self.queued.items()))
            if token != asks and not self.rings.hears(token):
                self.leave(token)
                continue
            found = [self.ready(token, at) for at in range(len(self.pools))]
            blocked = [at for at, outcome in enumerate(found) if not outcome]
            if blocked:
                at = next((at for at in blocked if self.stands(token, at)), blocked[0])
                self.wait_at(token, at, found)
                return at
            rated_ms, at = self.rated(found)
            if rated_ms:
                self.wait_at(token, at, found, rated_ms)
                if token == asks:
                    self.rated_ms = rated_ms
                else:  # no release tells when a rate allows the next start
                    self.rings.due.append((token, b""))
                return at
            held = self.take_all(token, queued.owner)
            self.leave(token)
            if token != asks:
                fences, lives = (",".join(map(str, all_)) for all_ in zip(*self._lasting(held), strict=True))
                self.rings.due.append((token, f"{fences} {lives} {self.now_ms}".encode()))
        return None

    def look_again_ms(self, token: str, ahead: int, at: int) -> int:
        kept_ms = self.queued[token].kept_until_ms - self.now_ms
        look_ms = self.rated_ms or self.pools[at].look_again_ms(ahead, self.now_ms)
        return min((ms for ms in (look_ms, kept_ms) if ms > 0), default=look_ms)

    def _lasting(self, held: list[Held]) -> list[tuple[int, int]]:
        return [(one.fence, ForEver if one.expires_ms == ForEver else one.expires_ms - self.now_ms) for one in held]

    def granted(self, head: list[Any], held: list[Held]) -> Reply:
        fences, lives = zip(*self._lasting(held), strict=True)
        return [1, *head, [b"%d" % fence for fence in fences], list(lives)]


def _slot(token: str, at: int) -> str:
    return f"{token}.{at + 1}"


def _declared(pools: Pools, now_ms: int, command: Command) -> tuple[list[PoolState], list[bytes]]:
    keys = command.keys[::PARTS]
    specs = command.args[3 + 3 * len(keys) : 3 + 5 * len(keys)]
    before = [pools[key].declared.encode() if key in pools else b"" for key in keys]
    mine = [known(pools, key, spec) for key, spec in zip(keys, specs[::2], strict=True)]
    for pool, spec, first in zip(mine, specs[::2], specs[1::2], strict=True):
        if first and pool.declared != spec:
            pool.declare(str(spec), now_ms)
    return mine, before


def several_acquire(pools: Pools, now_ms: int, command: Command, rings: Rings) -> Reply:
    token, owner, patience_ms = str(command.args[0]), str(command.args[-3]), command.args[-2]
    mine, before = _declared(pools, now_ms, command)
    several = _Several.of(command, mine, now_ms, rings)
    head = [[pool.max for pool in mine], before]
    held = several.held_by(token)
    if held is None or token in several.queued:
        if patience_ms:
            several.enqueue(token, owner)
        blocked = several.advance()
        held = None if token in several.queued else several.held_by(token)
        if held is None and blocked is None:
            found = [several.ready(token, at) for at in range(len(mine))]
            if all(found):
                held = several.take_all(token, owner)
            else:
                blocked = found.index("")
    if held is not None:
        return several.granted(head, held)
    at = blocked or 0
    if patience_ms:
        ahead = list(several.queued).index(token)
        return [0, *head, ahead, several.look_again_ms(token, ahead, at), now_ms, at + 1]
    owners = [other.owner.encode() for other in list(mine[at].slots.values())[:100]]
    return [-1, *head, at + 1, owners, mine[at].next_start_ms(now_ms), 0]


def several_release(pools: Pools, now_ms: int, command: Command, rings: Rings) -> Reply:
    token, keys = str(command.args[0]), command.keys[::PARTS]
    mine = [pools.get(key) or PoolState(key) for key in keys]
    several = _Several.of(command, mine, now_ms, rings)
    several.leave(token)
    had = [pool.let_go(_slot(token, at)) for at, pool in enumerate(mine)]
    several.advance()
    for pool in mine:
        pool.serve(now_ms, rings)
        if pool.key in pools and pool.forgettable(now_ms):
            del pools[pool.key]
    return int(all(had))


SEVERAL: dict[str, Script] = {function.__name__: function for function in (several_acquire, several_release)}
