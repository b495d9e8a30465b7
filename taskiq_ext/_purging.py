"""What becomes of the results of parked messages that are removed: an error says that they have not run."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, Self

from taskiq.result import TaskiqResult

from slotline.errors import MessagePurgedError
from slotline.pools._tokens import lane_id_of
from taskiq_ext._delivery import unsealed
from taskiq_ext._room import waiting_room

if TYPE_CHECKING:
    from types import TracebackType

    from taskiq.abc.broker import AsyncBroker
    from taskiq.abc.result_backend import AsyncResultBackend
    from taskiq.message import TaskiqMessage

    from slotline.pools._purging import Purged

logger = logging.getLogger(__name__)


class Failing:
    """Writes ``MessagePurgedError`` as the result of a broker's messages; a context manager.

    Args:
        broker: The broker; its result backend is started when there is a message.
    """

    def __init__(self, broker: AsyncBroker) -> None:
        self._broker = broker
        self._lane_ids = {lane_id_of(lane) for lane in waiting_room(broker).lanes}
        self._runner = asyncio.Runner()
        self._started = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self._started:
                self._runner.run(self._broker.result_backend.shutdown())
        finally:
            self._runner.close()

    def __call__(self, purged: Purged) -> bool:
        """Make the error the result of a message; return false if it is none of this broker's.

        Raises:
            Exception: The result backend cannot be reached.
        """
        message = self._read(purged)
        if message is not None:
            self._runner.run(self._fail(message, MessagePurgedError(purged.pool)))
        return message is not None

    def _read(self, purged: Purged) -> TaskiqMessage | None:
        if purged.lane_id not in self._lane_ids:
            return None
        try:
            return self._broker.formatter.loads(unsealed(purged.message))
        except Exception as error:  # noqa: BLE001 - of another application, whatever that wrote
            logger.warning("%s stays parked: it cannot be read: %r", purged.owner, error)
            return None

    async def _fail(self, message: TaskiqMessage, error: MessagePurgedError) -> None:
        backend: AsyncResultBackend[Any] = self._broker.result_backend
        if not self._started:
            await backend.startup()
            self._started = True
        result: TaskiqResult[Any] = TaskiqResult(
            is_err=True, return_value=None, execution_time=0.0, labels=message.labels, error=error
        )
        await backend.set_result(message.task_id, result)
