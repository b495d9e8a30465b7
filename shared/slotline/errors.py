"""Every error that Slotline raises.

Each carries its facts as attributes and survives pickling and the queues' result backends: the constructor's
arguments are the exception's ``args``, and the sentence is made from them when it is shown.
"""

from __future__ import annotations

from typing import Any


class SlotlineError(Exception):
    """The root of all errors raised by Slotline."""


class InvalidOptionError(SlotlineError, ValueError):
    """An option, label or setting has a value that it cannot have.

    Args:
        option: The option's name, as the user wrote it.
        value: The ``repr`` of the offending value.
        allowed: What would have been accepted, as the end of a sentence ("a whole number of at least 1").
    """

    def __init__(self, option: str, value: str, allowed: str) -> None:
        super().__init__(option, value, allowed)
        self.option, self.value, self.allowed = option, value, allowed

    def __str__(self) -> str:
        return f"{self.option}={self.value} is not allowed: it must be {self.allowed}."


class PoolFullError(SlotlineError):
    """Every slot of a pool is taken.

    Args:
        key: The pool's key.
        max_size: The limit that is in force.
        holders: The owners of the slots that were taken, as far as the pool was asked for them.
        retry_after: Seconds until the pool's rate allows a start; 0 where that was not the reason.
        weight: How many slots were asked for.
    """

    def __init__(self, key: str, max_size: int, holders: Any = (), retry_after: float = 0.0, weight: int = 1) -> None:
        super().__init__(key, max_size, list(holders), retry_after, weight)
        self.key, self.max_size, self.holders, self.retry_after = key, max_size, tuple(holders), retry_after
        self.weight = weight

    def __str__(self) -> str:
        if self.weight > self.max_size:
            return f"Pool {self.key!r} has only {self.max_size} slots now, and {self.weight} were asked for."
        if self.retry_after:
            return f"Pool {self.key!r} has used up its rate: the next start is allowed in {self.retry_after:.3g} s."
        if len(self.holders) < min(self.max_size, 100):
            return (
                f"Pool {self.key!r} has no room for this now: it is paused, others wait for what is free, or what is "
                "free, or left to the partition, is not enough."
            )
        taken = "its one slot is" if self.max_size == 1 else f"all of its {self.max_size} slots are"
        return f"Pool {self.key!r} is full: {taken} taken, held by {', '.join(self.holders)}."


class PoolTimeoutError(PoolFullError, TimeoutError):
    """No slot came free within the time that the caller was ready to wait."""

    def __init__(self, key: str, max_size: int, holders: Any = (), timeout: float | None = None) -> None:
        super().__init__(key, max_size, holders)
        self.timeout = timeout
        self.args = (key, max_size, list(holders), timeout)

    def __str__(self) -> str:
        return f"No slot of pool {self.key!r} came free within {self.timeout} s."


class RunCancelledError(PoolFullError):
    """A queue's task was cancelled before it ran, since its pool was full."""

    def __str__(self) -> str:
        return f"The run was cancelled before it began. {super().__str__()}"


class MessagePurgedError(SlotlineError):
    """A parked message was removed before it ran.

    Args:
        key: The pool's key.
    """

    def __init__(self, key: str) -> None:
        super().__init__(key)
        self.key = key

    def __str__(self) -> str:
        return f"The message was removed while it was parked for pool {self.key!r}, and has not run."


class SlotLostError(SlotlineError):
    """Work was ended because its slot was lost, or because another was to have it.

    Args:
        key: The pool's key.
        token: What the store knows the slot by.
        reason: Why, as the end of a sentence.
    """

    def __init__(self, key: str, token: str, reason: str = "it could not be renewed in time") -> None:
        super().__init__(key, token, reason)
        self.key, self.token, self.reason = key, token, reason

    def __str__(self) -> str:
        return f"Slot {self.token} of pool {self.key!r} was lost before its work had ended: {self.reason}."


class StoreError(SlotlineError):
    """A store refused a command; the text is the server's."""


class StoreUnavailableError(StoreError, ConnectionError):
    """A store could not be reached, or answered that it cannot serve now.

    It never means that a pool is full or that a value is missing: nothing is known about either.

    Args:
        store: The store's name, without credentials.
        reason: What the last try met.
    """

    def __init__(self, store: str, reason: str) -> None:
        super().__init__(store, reason)
        self.store, self.reason = store, reason

    def __str__(self) -> str:
        return f"The store {self.store} is unavailable: {self.reason}."


class MessageTooLargeError(StoreError):
    """A message is larger than what may be parked.

    Args:
        size: Its bytes.
        limit: ``max_parked_bytes``.
        key: The key of the pool that it was to wait for.
    """

    def __init__(self, size: int, limit: int, key: str) -> None:
        super().__init__(size, limit, key)
        self.size, self.limit, self.key = size, limit, key

    def __str__(self) -> str:
        return (
            f"A message of {self.size} bytes cannot be parked for pool {self.key!r}: max_parked_bytes={self.limit}. "
            "Pass large data by reference, or let it wait in the worker with pool_on_full='wait'."
        )


class SerializationError(SlotlineError, TypeError):
    """A value cannot be stored so that it comes back equal, in value and in type.

    Args:
        type_name: The qualified name of the type that cannot be stored.
        reason: Why it cannot, and what to do instead.
    """

    def __init__(self, type_name: str, reason: str) -> None:
        super().__init__(type_name, reason)
        self.type_name, self.reason = type_name, reason

    def __str__(self) -> str:
        return f"A value of type {self.type_name} cannot be cached: {self.reason}."


class LeaseError(SlotlineError):
    """The root of the errors of leased executors."""


class LeaseUnavailableError(LeaseError):
    """Every executor of a manager is leased, and the caller did not want to wait."""


class LeaseExpiredError(LeaseError):
    """The lease was released, revoked or never existed: it takes no more work."""


class WorkTimeLimitError(LeaseExpiredError, TimeoutError):
    """Work in a lease ran into its time limit and was killed.

    Args:
        limit: The limit, in seconds.
        work: What ran.
    """

    def __init__(self, limit: float, work: str) -> None:
        super().__init__(limit, work)
        self.limit, self.work = limit, work

    def __str__(self) -> str:
        return f"{self.work} was killed: it ran into its time limit of {self.limit} s."


class WorkExitedError(LeaseError):
    """Work in a lease tried to end its thread or process instead of returning or failing.

    Args:
        how: The exception it raised: ``"SystemExit"``, ``"KeyboardInterrupt"``, ...
        detail: That exception's text.
    """

    def __init__(self, how: str, detail: str = "") -> None:
        super().__init__(how, detail)
        self.how, self.detail = how, detail

    def __str__(self) -> str:
        return f"The work raised {self.how}({self.detail}) instead of returning or failing."


class ManagerClosedError(LeaseError):
    """The manager of leased executors is not running."""


class UnsupportedBackendError(LeaseError):
    """This interpreter or installation cannot offer the executor backend that was asked for."""


class UnsupportedFrameworkError(SlotlineError):
    """The installed queue framework lacks a part that Slotline relies on.

    Args:
        framework: Its name and version.
        missing: The part that is missing.
    """

    def __init__(self, framework: str, missing: str) -> None:
        super().__init__(framework, missing)
        self.framework, self.missing = framework, missing

    def __str__(self) -> str:
        return f"Slotline cannot run on {self.framework}: {self.missing} is missing. Install a supported version."


class CacheError(SlotlineError):
    """The root of the errors of caches that are not the store's."""


class CacheRecursionError(CacheError, RuntimeError):
    """A creator asked for the very value that it creates, or two creators asked for each other's."""

    def __init__(self, key: str) -> None:
        super().__init__(key)
        self.key = key

    def __str__(self) -> str:
        return (
            f"The creator of {self.key!r} waits for its own value: it calls get_or_create for a key that waits for it."
        )


class AsyncCreatorError(CacheError, TypeError):
    """A blocking caller gave a creator that has to be awaited."""

    def __init__(self, key: str) -> None:
        super().__init__(key)
        self.key = key

    def __str__(self) -> str:
        return (
            f"The creator of {self.key!r} returned an awaitable to a blocking caller, where no event loop runs: "
            "await get_or_create on the cache itself, or pass a plain function to .sync.get_or_create."
        )


class CreatorFailedError(CacheError):
    """A creator failed in another process with an exception that cannot be made here; the text is the original's.

    Args:
        type_name: The qualified name of the original exception's type.
        text: What it said.
    """

    def __init__(self, type_name: str, text: str) -> None:
        super().__init__(type_name, text)
        self.type_name, self.text = type_name, text

    def __str__(self) -> str:
        return f"{self.type_name}: {self.text}"
