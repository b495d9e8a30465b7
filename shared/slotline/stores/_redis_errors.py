"""What a redis-py error means for a caller of the store, and how often to try again."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from typing import Any

import redis.exceptions as redis_errors

from slotline.errors import StoreError, StoreUnavailableError

BROKEN = (redis_errors.ConnectionError, redis_errors.TimeoutError, OSError)
"""The connection broke or stalled: the server may or may not have acted, so the call is repeated."""


class Redirection(redis_errors.ResponseError):
    """A server of a Cluster says that another one has the hash slot.

    Args:
        slot: The hash slot.
        node: The other server, ``"host:port"``.
        for_good: Whether it has the slot by now; else it is about to, and must be asked in a special way.
    """

    def __init__(self, slot: int, node: str, for_good: bool) -> None:  # noqa: FBT001 - made in one place
        super().__init__(f"hash slot {slot} is on {node}")
        self.slot, self.node, self.for_good = slot, node, for_good


_REDIRECTION = re.compile(r"(MOVED|ASK) (\d+) (.*):(\d+)$")
# redis-py < 6 has classes for these only in its own cluster client.
_ELSEWHERE_CODES = ("MOVED ", "ASK ", "TRYAGAIN", "CLUSTERDOWN", "MASTERDOWN", "READONLY")
_ELSEWHERE = (
    Redirection,
    redis_errors.ClusterDownError,  # MasterDownError is one
    redis_errors.ReadOnlyError,
    redis_errors.TryAgainError,
)
_WITHIN_SCRIPT = re.compile(r"^(ERR )?Error running script \(call to \w+\): (@user_script:\s*\d+: )+-")
_HOPELESS = (redis_errors.AuthenticationError, redis_errors.AuthorizationError)
_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 1.0
# What a server answers that is up and cannot serve: replicas, failovers, a full memory, a failed snapshot.
_CANNOT_SERVE = (
    "READONLY",
    "OOM",
    "MISCONF",
    "CLUSTERDOWN",
    "MASTERDOWN",
    "TRYAGAIN",
    "LOADING",
    "NOREPLICAS",
    "NOAUTH",
    "NOPERM",
    "BUSY ",
    "The user executing the script can't",  # no permission, as Redis 7.0 finds it within a script
)


def pauses(retries: int) -> Iterator[float]:
    """Yield the pause in seconds before each retry: exponential, with full jitter."""
    for tried in range(retries):
        yield random.uniform(0, min(_LONGEST_PAUSE, _FIRST_PAUSE * 2**tried))  # noqa: S311 - jitter, not a secret


def worth_retrying(error: BaseException) -> bool:
    """Return whether the same call may succeed on a new connection."""
    return isinstance(error, BROKEN) and not isinstance(error, _HOPELESS)


def elsewhere(error: BaseException) -> bool:
    """Return whether another server serves the call, or will soon: after a failover, or while hash slots move."""
    if isinstance(error, _ELSEWHERE):
        return True
    return isinstance(error, redis_errors.ResponseError) and _said(error).startswith(_ELSEWHERE_CODES)


def redirection(error: Any, asked: str) -> Redirection | None:
    """Return what ``asked`` says by an error, if it is that another server has the hash slot."""
    if isinstance(error, redis_errors.AskError):
        words = error.slot_id, error.host, error.port
        return Redirection(
            int(words[0]), address(words[1], words[2], asked), isinstance(error, redis_errors.MovedError)
        )
    found = _REDIRECTION.match(str(error)) if isinstance(error, redis_errors.ResponseError) else None
    return found and Redirection(int(found[2]), address(found[3], found[4], asked), found[1] == "MOVED")


def address(host: Any, port: Any, asked: str) -> str:
    """Return ``"host:port"`` of a server that the server ``asked`` names."""
    name = host.decode() if isinstance(host, bytes) else host or ""
    if name in ("", "?"):  # the server does not know its own name: it is where it was asked
        name = asked.rpartition(":")[0].strip("[]")
    return f"[{name}]:{int(port)}" if ":" in name else f"{name}:{int(port)}"


def translated(store: str, error: Exception) -> Exception:
    """Return Slotline's error for one of redis-py's."""
    if isinstance(error, StoreError):
        return error
    if isinstance(error, BROKEN):
        return StoreUnavailableError(store, _reason(error))
    if isinstance(error, redis_errors.ResponseError):
        # redis-py takes the code off the text of the errors that it has a class for.
        said = _said(error)
        if isinstance(error, _UNSERVING_CLASSES) or said.startswith(_CANNOT_SERVE):
            return StoreUnavailableError(store, _reason(error))
        return StoreError(f"The store {store} refused a command: {said}")
    return error


def _said(error: Exception) -> str:
    """Return what the server said; of an error within a script, Redis < 7 says first where it was."""
    return _WITHIN_SCRIPT.sub("", str(error))


_UNSERVING_CLASSES = (*_ELSEWHERE, redis_errors.OutOfMemoryError, redis_errors.NoPermissionError)


def _reason(error: Exception) -> str:
    said = str(error).strip().rstrip(".")
    return f"{type(error).__name__}: {said}" if said else type(error).__name__
