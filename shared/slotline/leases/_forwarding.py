"""Log forwarding for executors of any process backend."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from typing import Any

from slotline._checks import refuse
from slotline.leases._child import LogSetup
from slotline.leases._log_channel import LogChannel
from slotline.leases.process_logging import ProcessLoggingConfig


class ForwardedLogs:
    """The log channels of one backend's executors.

    Args:
        config: Whether and how records are forwarded.
    """

    def __init__(self, config: ProcessLoggingConfig) -> None:
        self._config = config
        self._channels: weakref.WeakKeyDictionary[Executor, LogChannel] = weakref.WeakKeyDictionary()

    @contextlib.contextmanager
    def channel(self) -> Iterator[tuple[LogSetup | None, Callable[[Executor], Executor]]]:
        """Open a channel for an executor made in the block; yields what its workers need, and how to keep it."""
        if not self._config.enabled:
            yield None, lambda executor: executor
            return
        channel = LogChannel(self._config)

        def keep(executor: Executor) -> Executor:
            self._channels[executor] = channel
            return executor

        try:
            yield LogSetup(channel.address, self._config.level, self._config.clear_child_handlers), keep
        except BaseException:
            channel.close(workers_gone=True)
            raise

    def close(self, executor: Executor, *, workers_gone: bool) -> None:
        """Close the channel of an executor that is being ended."""
        channel = self._channels.pop(executor, None)
        if channel is not None:
            channel.close(workers_gone=workers_gone)


def initializer_of(options: dict[str, Any]) -> tuple[Callable[..., object] | None, tuple[Any, ...]]:
    """Take the user's initializer and its arguments out of an executor's options, checked."""
    initializer, initargs = options.pop("initializer", None), options.pop("initargs", ())
    if initializer is not None and not callable(initializer):
        raise refuse("initializer", initializer, "something to call, or None")
    if not isinstance(initargs, tuple | list):
        raise refuse("initargs", initargs, "a tuple of the initializer's arguments")
    return initializer, tuple(initargs)
