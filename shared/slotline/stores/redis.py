"""State in Redis or Valkey, shared by many processes and machines."""

from __future__ import annotations

import asyncio
import os
import threading
import time
import uuid
import weakref
from collections.abc import Awaitable, Sequence
from typing import Any

import redis
import redis.asyncio
from redis.exceptions import DataError, NoScriptError

from slotline import _checks, settings
from slotline.stores._coalesce import FLIGHTS, Coalescer
from slotline.stores._connections import Connections
from slotline.stores._redis_errors import pauses, translated, worth_retrying
from slotline.stores._redis_wakeups import RedisWakeups
from slotline.stores._scripts import load
from slotline.stores.base import TAKING, Command, Reply, Store, SyncStore
from slotline.stores.keeper import Keeper


class RedisStore(Store):
    """A store on Redis >= 6.2 or Valkey, for any number of processes and machines.

    Nothing is connected before the first call. Each process, and each event loop in it, has clients of its own;
    a forked child makes new ones. Calls of one loop are coalesced into pipelines on at most a handful of
    connections. A broken connection is retried with backoff; commands are idempotent, so a repeated one is harmless.

    Args:
        url: ``redis://``, ``rediss://`` or ``unix://`` URL, or a client of redis-py whose options are taken over.
        prefix: The first part of every key.
        timeout: Seconds for one connect, read or write (default 5).
        retries: How often a call is repeated on a broken connection before it raises (default 3).
        max_connections: The most connections that this process's threads open together (default 50).

    Raises:
        InvalidOptionError: An argument cannot be used; an unreachable server shows at the first call, as
            ``StoreUnavailableError``.
    """

    shared = True

    def __init__(
        self,
        url: str | redis.Redis | redis.asyncio.Redis,
        *,
        prefix: str = "slotline",
        timeout: float = 5.0,
        retries: int = 3,
        max_connections: int = 50,
    ) -> None:
        self.timeout = _checks.seconds("timeout", timeout)
        self._connections = Connections(
            url,
            timeout=self.timeout,
            max_connections=_checks.whole_number("max_connections", max_connections),
        )
        self.name = self._connections.name
        self.prefix = _checks.key_prefix("prefix", prefix)
        self.retries = _checks.whole_number("retries", retries, at_least=0)
        self.sync = SyncRedisStore(self)
        self._lock = threading.Lock()
        self._fresh()
        _stores.add(self)

    def _fresh(self) -> None:
        """Forget everything that belongs to a process: at first, and in a forked child."""
        self._lock = threading.Lock()
        self._client: redis.Redis | None = None
        self._loops: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, Coalescer] = weakref.WeakKeyDictionary()
        self._wakeups: RedisWakeups | None = None
        self._keeper: Keeper | None = None

    def __repr__(self) -> str:
        return f"RedisStore({self.name!r}, prefix={self.prefix!r})"

    @property
    def wakeups(self) -> RedisWakeups:
        """This process's doorbells."""
        if self._wakeups is None:
            with self._lock:
                if self._wakeups is None:
                    self._wakeups = RedisWakeups(
                        self.name, f"{self.prefix}:wake:{uuid.uuid4().hex}", self._connections.blocking
                    )
        return self._wakeups

    @property
    def keeper(self) -> Keeper:
        """This process's heartbeat."""
        if self._keeper is None:
            with self._lock:
                if self._keeper is None:
                    self._keeper = Keeper(self.sync.execute_many)
        return self._keeper

    def client(self) -> redis.Redis:
        """Return this process's blocking client."""
        if self._client is None:
            with self._lock:
                if self._client is None:
                    self._client = self._connections.blocking()
        return self._client

    async def execute(self, command: Command) -> Reply:
        """See :meth:`Store.execute`."""
        return await self._coalescer().submit(command)

    async def execute_many(self, commands: Sequence[Command]) -> list[Reply | Exception]:
        """See :meth:`Store.execute_many`."""
        coalescer = self._coalescer()
        return await asyncio.gather(*map(coalescer.submit, commands), return_exceptions=True)

    def _coalescer(self) -> Coalescer:
        loop = asyncio.get_running_loop()
        coalescer = self._loops.get(loop)
        if coalescer is None:
            client = self._connections.awaiting(max_connections=FLIGHTS)

            async def send(commands: Sequence[Command]) -> list[Any]:
                return await self._send(client, commands)

            async def close() -> None:
                self._loops.pop(loop, None)  # its client refers to the loop: no weak key ends that
                await client.aclose()
                await client.connection_pool.disconnect()

            coalescer = self._loops[loop] = Coalescer(send, close, self._give_back)
        return coalescer

    def _give_back(self, command: Command) -> None:
        # The caller's own release travels another way, and may have come before what it was to undo.
        if command.script in TAKING:
            release = Command("pool_release", command.keys, command.args[:1])
            self.settle(release, settings.current().heartbeat_lease)

    async def _send(self, client: redis.asyncio.Redis, commands: Sequence[Command]) -> list[Any]:
        patience = pauses(self.retries)
        while True:
            try:
                async with asyncio.timeout(self.timeout):
                    replies = await _exchange(client, [_words(command) for command in commands])
                missing = [at for at, reply in enumerate(replies) if isinstance(reply, NoScriptError)]
                if missing:
                    async with asyncio.timeout(self.timeout):
                        again = await _exchange(client, [_words_with_text(commands[at]) for at in missing])
                    for at, reply in zip(missing, again, strict=True):
                        replies[at] = reply
            except (UnicodeError, DataError):
                if len(commands) == 1:
                    raise
                # Nothing was sent, since one of them cannot be: the others are not to suffer for it.
                alone = [self._send(client, (command,)) for command in commands]
                return [reply for sent in alone for reply in await _outcome(sent)]
            except Exception as error:
                pause = next(patience, None) if worth_retrying(error) else None
                if pause is None:
                    raise translated(self.name, error) from error
                await asyncio.sleep(pause)
            else:
                return [translated(self.name, reply) if isinstance(reply, Exception) else reply for reply in replies]

    def settle(self, command: Command, seconds: float) -> None:
        """See :meth:`Store.settle`."""
        self.keeper.later(command, seconds)

    async def close(self) -> None:
        """See :meth:`Store.close`."""
        coalescer = self._loops.pop(asyncio.get_running_loop(), None)
        if coalescer is not None:
            await coalescer.close()
        await asyncio.get_running_loop().run_in_executor(None, self.sync.close)


class SyncRedisStore(SyncStore):
    """The blocking face of a :class:`RedisStore`; any number of threads may use it."""

    def __init__(self, store: RedisStore) -> None:
        self._store = store

    def execute(self, command: Command) -> Reply:
        """See :meth:`RedisStore.execute`."""
        client = self._store.client()
        patience = pauses(self._store.retries)
        while True:
            try:
                try:
                    return client.execute_command(*_words(command))
                except NoScriptError:
                    return client.execute_command(*_words_with_text(command))
            except Exception as error:
                pause = next(patience, None) if worth_retrying(error) else None
                if pause is None:
                    raise translated(self._store.name, error) from error
                time.sleep(pause)

    def execute_many(self, commands: Sequence[Command]) -> list[Reply | Exception]:
        """See :meth:`RedisStore.execute_many`."""
        if not commands:
            return []
        client = self._store.client()
        patience = pauses(self._store.retries)
        while True:
            try:
                with client.pipeline(transaction=False) as pipeline:
                    for command in commands:
                        pipeline.execute_command(*_words(command))
                    replies = pipeline.execute(raise_on_error=False)
            except Exception as error:
                pause = next(patience, None) if worth_retrying(error) else None
                if pause is None:
                    raise translated(self._store.name, error) from error
                time.sleep(pause)
            else:
                return [self._settled(command, reply) for command, reply in zip(commands, replies, strict=True)]

    def _settled(self, command: Command, reply: Any) -> Any:
        if isinstance(reply, NoScriptError):
            return self.execute(command)
        return translated(self._store.name, reply) if isinstance(reply, Exception) else reply

    def close(self) -> None:
        """See :meth:`RedisStore.close`."""
        store = self._store
        client, wakeups, keeper = store._client, store._wakeups, store._keeper  # noqa: SLF001 - its other face
        store._client, store._wakeups, store._keeper = None, None, None  # noqa: SLF001 - its other face
        if keeper is not None:
            keeper.close()
        if wakeups is not None:
            wakeups.close()
        if client is not None:
            client.close()
            client.connection_pool.disconnect()


def _words(command: Command) -> list[Any]:
    name, keys, args = command
    if name.isupper():
        return [name, *keys, *args]
    return ["EVALSHA", load(name).sha, len(keys), *keys, *args]


def _words_with_text(command: Command) -> list[Any]:
    return ["EVAL", load(command.script).text, len(command.keys), *command.keys, *command.args]


async def _outcome(sent: Awaitable[list[Any]]) -> list[Any]:
    try:
        return await sent
    except Exception as error:  # noqa: BLE001 - each command has its own outcome
        return [error]


async def _exchange(client: redis.asyncio.Redis, commands: list[list[Any]]) -> list[Any]:
    if len(commands) == 1:  # half the cost of a pipeline of one
        try:
            return [await client.execute_command(*commands[0])]
        except Exception as error:
            if worth_retrying(error):
                raise
            return [error]
    async with client.pipeline(transaction=False) as pipeline:
        for words in commands:
            pipeline.execute_command(*words)
        replies: list[Any] = await pipeline.execute(raise_on_error=False)
        return replies


_stores: weakref.WeakSet[RedisStore] = weakref.WeakSet()


def _after_fork() -> None:
    for store in list(_stores):
        store._fresh()  # noqa: SLF001 - this module's own


os.register_at_fork(after_in_child=_after_fork)
