"""The store contract: atomic commands, wake-ups, and nothing else.

A :class:`Command` names one script and its arguments. ``RedisStore`` runs the Lua file of that name; ``MemoryStore``
runs the Python function of that name. Both answer in the same shape, so the layers above build commands and read
replies without knowing where state lives.

Every command may be sent twice: a connection can break after the server has acted and before it has answered, and the
store then repeats the call. Commands are therefore idempotent, by a token that the caller chooses.
"""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from slotline.stores.keeper import Keeper
    from slotline.stores.wakeups import Wakeups

Reply: TypeAlias = Any
"""What a script answers: ``bytes``, ``int``, ``None`` or a list of these."""


class Command(NamedTuple):
    """One atomic operation.

    Attributes:
        script: The script's name, e.g. ``"pool_acquire"``; a name in capitals is a plain Redis command (``"GET"``),
            which only Redis stores take.
        keys: The keys that it touches; all of them share one hash tag.
        args: Its arguments: text, bytes or whole numbers. Times are milliseconds, in names that end in ``_ms``.
    """

    script: str
    keys: tuple[str | bytes, ...]
    args: tuple[str | bytes | int, ...] = ()


def undoing(command: Command) -> Command | None:
    """Return the command that gives back what ``command`` may have taken for its token, its first argument."""
    if command.script in {"pool_acquire", "pool_park"}:
        return Command("pool_release", command.keys, command.args[:1])
    if command.script in {"several_acquire", "several_park"}:
        asked = command.args[2 : 3 + 3 * (len(command.keys) // 5)]
        queue = command.args[1] if command.script == "several_acquire" else "-|"  # a parked message stays in its own
        return Command("several_release", command.keys, (command.args[0], queue, *asked))
    if command.script == "several_take":
        return Command("several_back", command.keys, (*command.args, ""))
    if command.script in {"room_take", "room_pass"}:
        return Command("room_settle", command.keys, ("", *command.args[:1], "back"))
    return None


class SyncStore(ABC):
    """The blocking face of a :class:`Store`."""

    @abstractmethod
    def execute(self, command: Command) -> Reply:
        """See :meth:`Store.execute`."""

    def execute_until(self, command: Command, until: float) -> Reply:  # noqa: ARG002 - of those that may have to wait
        """See :meth:`Store.execute_until`."""
        return self.execute(command)

    @abstractmethod
    def execute_many(self, commands: Sequence[Command]) -> list[Reply | Exception]:
        """See :meth:`Store.execute_many`."""

    @abstractmethod
    def close(self) -> None:
        """See :meth:`Store.close`."""


class Store(ABC):
    """Where pools and caches keep their state.

    Attributes:
        name: What errors and logs call it; holds no credentials.
        prefix: The first part of every key.
        shared: Whether other processes see the same state. Slots of a shared store are held by a lease that a
            heartbeat renews; in a store of one process they live as long as the process.
        sync: The same operations, blocking.
    """

    name: str
    prefix: str
    shared: bool
    sync: SyncStore

    @abstractmethod
    async def execute(self, command: Command) -> Reply:
        """Run one command and return its reply.

        Raises:
            StoreUnavailableError: The store could not be reached within its retries; nothing is known of the state.
            StoreError: The store refused the command.
        """

    async def execute_until(self, command: Command, until: float) -> Reply:
        """Run one command, and wait for its reply until ``until`` (monotonic).

        Raises:
            TimeoutError: It has not come by then; the command may act all the same.
            StoreUnavailableError: The store could not be reached within its retries; nothing is known of the state.
            StoreError: The store refused the command.
        """
        async with asyncio.timeout(until - time.monotonic()):
            return await self.execute(command)

    @abstractmethod
    async def execute_many(self, commands: Sequence[Command]) -> list[Reply | Exception]:
        """Run several independent commands in one round trip; each has its reply or its error in its place.

        Raises:
            StoreUnavailableError: The store could not be reached within its retries.
        """

    @property
    def scattered(self) -> bool:
        """Whether the keys of one command have to share a hash tag, since they are on several servers."""
        return False

    @property
    @abstractmethod
    def keeper(self) -> Keeper | None:
        """This process's heartbeat on the store; ``None`` where nothing needs one."""

    @abstractmethod
    def settle(self, command: Command, seconds: float) -> None:
        """See to it that ``command`` is executed, without making the caller wait.

        For releases whose caller has been cancelled or has met an error: a store that is away is tried again for
        ``seconds``, in the background.
        """

    @property
    @abstractmethod
    def wakeups(self) -> Wakeups:
        """This process's doorbells on the store."""

    @property
    def loop_wakeups(self) -> Wakeups:
        """The doorbells of who waits in the running event loop; those of the process where it has none of its own."""
        return self.wakeups

    @abstractmethod
    async def close(self) -> None:
        """Close connections and threads of this process; the store opens them again when it is used again."""
