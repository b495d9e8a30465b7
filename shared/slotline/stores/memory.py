"""State in this process's memory: no server, the same semantics."""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections.abc import Sequence
from typing import Any

from slotline.errors import StoreError
from slotline.metrics import _telling
from slotline.stores._memory_pools import PARTS, SCRIPTS, PoolState, Rings, mend
from slotline.stores._memory_several import SEVERAL
from slotline.stores.base import Command, Reply, Store, SyncStore
from slotline.stores.wakeups import Wakeups

_RELEASES = frozenset({"pool_release", "several_release"})


class MemoryWakeups(Wakeups):
    """Doorbells inside one process: they are always heard."""

    channel = "memory"

    def hears(self, token: str) -> bool:
        """Whether a bell hangs under ``token``, and nobody waits for it in an event loop that was closed meanwhile."""
        bell = self._bells.get(token)
        return bell is not None and (bell.loop is None or not bell.loop.is_closed())

    def listen_blocking(self, until: float | None = None) -> None:
        """Return at once."""

    async def listen(self) -> None:
        """Return at once."""


class MemoryStore(Store):
    """A store for one process and any number of its threads and event loops: the embedded default.

    Slots live as long as the process, or until their ``slot_exp``; there is no heartbeat, since nothing else could
    take them. A forked child starts with an empty store.
    """

    shared = False
    keeper = None
    name = "memory"
    prefix = "slotline"

    def __init__(self) -> None:
        self.sync = SyncMemoryStore(self)
        self._fresh()
        _stores.add(self)

    def _fresh(self) -> None:
        self.lock = threading.RLock()
        self.busy = False
        self.postponed: list[Command] = []
        self.pools: dict[str | bytes, PoolState] = {}
        self._wakeups = MemoryWakeups()

    def __repr__(self) -> str:
        return "MemoryStore()"

    def postpone(self, command: Command) -> Reply:
        """Let a release wait for the end of the command in whose midst its thread has come to it.

        Garbage that holds a slot may be collected, and a signal be handled, at any moment.

        Raises:
            StoreError: It is no release.
        """
        if command.script not in _RELEASES:
            raise StoreError(f"The memory store cannot answer {command.script!r} in the midst of another command.")
        self.postponed.append(command)
        return 1

    @property
    def wakeups(self) -> MemoryWakeups:
        """This process's doorbells."""
        return self._wakeups

    async def execute(self, command: Command) -> Reply:
        """See :meth:`Store.execute`."""
        return self.sync.execute(command)

    async def execute_many(self, commands: Sequence[Command]) -> list[Reply | Exception]:
        """See :meth:`Store.execute_many`."""
        return self.sync.execute_many(commands)

    def settle(self, command: Command, seconds: float) -> None:  # noqa: ARG002 - nothing can keep it waiting
        """See :meth:`Store.settle`."""
        self.sync.execute(command)

    async def close(self) -> None:
        """See :meth:`Store.close`."""
        self.sync.close()


class SyncMemoryStore(SyncStore):
    """The blocking face of a :class:`MemoryStore`; no call ever waits for more than its lock."""

    def __init__(self, store: MemoryStore) -> None:
        self._store = store

    def execute(self, command: Command) -> Reply:
        """See :meth:`MemoryStore.execute`."""
        store, rings = self._store, Rings(self._store.wakeups.hears)
        try:
            with store.lock:
                if store.busy:
                    return store.postpone(command)
                store.busy = True
                try:
                    return self._run(command, rings)
                finally:
                    try:
                        while store.postponed:
                            self._run(store.postponed.pop(), rings)
                    finally:
                        store.busy = False
        finally:
            for token, payload in rings.due:  # out of the lock: whoever is woken may come back at once
                store.wakeups.ring(token, payload)
            if rings.ended and (observer := _telling.observer) is not None:
                observer.reclaimed("slot_exp", rings.ended)

    def _run(self, command: Command, rings: Rings) -> Reply:
        script = SCRIPTS.get(command.script) or SEVERAL.get(command.script)
        if script is None:
            raise StoreError(f"The memory store has no command {command.script!r}; it needs a Redis store.")
        pools, now_ms = self._store.pools, time.monotonic_ns() // 1_000_000
        try:
            for key in command.keys[::PARTS]:
                if key in pools:
                    rings.ended += pools[key].drop_expired(now_ms)
            return script(pools, now_ms, command, rings)
        except BaseException:
            mend(pools, command)
            raise

    def execute_many(self, commands: Sequence[Command]) -> list[Reply | Exception]:
        """See :meth:`MemoryStore.execute_many`."""
        replies: list[Any] = []
        for command in commands:
            try:
                replies.append(self.execute(command))
            except Exception as error:  # noqa: BLE001 - each command has its own outcome
                replies.append(error)
        return replies

    def close(self) -> None:
        """Do nothing: there is nothing open, and the state stays."""


_stores: weakref.WeakSet[MemoryStore] = weakref.WeakSet()


def _after_fork() -> None:
    for store in list(_stores):
        store._fresh()  # noqa: SLF001 - this module's own


os.register_at_fork(after_in_child=_after_fork)
