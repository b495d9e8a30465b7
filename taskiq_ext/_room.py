"""The waiting room of a broker: where its messages are parked, and how its workers get them."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from taskiq_ext._feed import Feed

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

    from taskiq.abc.broker import AsyncBroker
    from taskiq.acks import AckableMessage

    from slotline.stores.base import Store

logger = logging.getLogger(__name__)

_ORDINARY_GROUP = "taskiq"


class WaitingRoom:
    """Makes the parked messages of a broker's queue a second source of its ``listen()``.

    Args:
        broker: The broker; its ``listen`` is replaced, and asks the store only when a worker calls it.
        store: Returns the store; one that processes do not share has no room.
        lane: The lane; ``None``: one for each queue, see :func:`lane_of`.
    """

    def __init__(self, broker: AsyncBroker, store: Callable[[], Store], lane: str | None) -> None:
        self._broker, self._store, self._lane = broker, store, lane
        self._own = broker.listen
        self._feeds: list[Feed] = []
        broker.listen = self.listen  # type: ignore[method-assign] # the receiver asks the instance

    def listen(self) -> AsyncGenerator[bytes | AckableMessage, None]:
        """Yield the broker's messages, and those of its lane."""
        store, lane = self._store(), self._lane or lane_of(self._broker)
        if not store.shared:
            return self._own()
        if lane is None:
            logger.warning(
                "Messages over their limit wait in the worker: the queue of %s is not known. "
                "Give PoolLimitMiddleware a lane, one for each queue, and they are parked.",
                type(self._broker).__name__,
            )
            return self._own()
        feed = Feed(self._broker, self._own(), store, lane)
        self._feeds.append(feed)
        return feed.messages()

    async def close(self) -> None:
        """Give back what was taken and will not be handled any more."""
        for feed in self._feeds:
            await feed.give_back()


def lane_of(broker: AsyncBroker) -> str | None:
    """Return the name of a broker's lane: ``"taskiq:"`` and its queues, and its consumer group if that is its own.

    ``None`` where the queues are not known: two brokers in one lane would take each other's messages.
    """
    own: dict[str, Any] = vars(broker)
    queues = {str(queue.name) for queue in own.get("_task_queues") or ()}
    queues |= {str(own[name]) for name in ("queue_name", "_queue_name") if own.get(name)}
    queues |= {str(name) for name in own.get("additional_streams") or ()}
    if not queues:
        return None
    group = own.get("consumer_group_name") or _ORDINARY_GROUP
    name = ",".join(sorted(queues))
    return f"taskiq:{name}" if group == _ORDINARY_GROUP else f"taskiq:{name}@{group}"


def broadcasts(broker: AsyncBroker) -> bool:
    """Whether every worker gets a copy of its own of each message, as far as that can be told."""
    return any("PubSub" in kind.__name__ for kind in type(broker).__mro__)
