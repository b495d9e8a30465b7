"""What a redis-py error means for a caller of the store, and how often to try again."""

from __future__ import annotations

import random
from collections.abc import Iterator

import redis.exceptions as redis_errors

from slotline.errors import StoreError, StoreUnavailableError

BROKEN = (redis_errors.ConnectionError, redis_errors.TimeoutError, OSError)
"""The connection broke or stalled: the server may or may not have acted, so the call is repeated."""

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
)


def pauses(retries: int) -> Iterator[float]:
    """Yield the pause in seconds before each retry: exponential, with full jitter."""
    for tried in range(retries):
        yield random.uniform(0, min(_LONGEST_PAUSE, _FIRST_PAUSE * 2**tried))  # noqa: S311 - jitter, not a secret


def worth_retrying(error: BaseException) -> bool:
    """Return whether the same call may succeed on a new connection."""
    return isinstance(error, BROKEN) and not isinstance(error, _HOPELESS)


def translated(store: str, error: Exception) -> Exception:
    """Return Slotline's error for one of redis-py's."""
    if isinstance(error, StoreError):
        return error
    if isinstance(error, BROKEN):
        return StoreUnavailableError(store, _reason(error))
    if isinstance(error, redis_errors.ResponseError):
        # redis-py takes the code off the text of the errors that it has a class for.
        said = str(error)
        if isinstance(error, _UNSERVING_CLASSES) or said.startswith(_CANNOT_SERVE):
            return StoreUnavailableError(store, _reason(error))
        return StoreError(f"The store {store} refused a command: {said}")
    return error


_UNSERVING_CLASSES = (redis_errors.ReadOnlyError, redis_errors.OutOfMemoryError, redis_errors.NoPermissionError)


def _reason(error: Exception) -> str:
    said = str(error).strip().rstrip(".")
    return f"{type(error).__name__}: {said}" if said else type(error).__name__
