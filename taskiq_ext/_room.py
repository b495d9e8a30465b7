"""The waiting room of a broker: where its messages are parked, and how its workers get them."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from taskiq_ext._feed import Feed

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

    from taskiq.abc.broker import AsyncBroker
    from taskiq.acks import AckableMessage

    from slotline.pools import Limit, Room, Slot
    from slotline.stores.base import Store
    from taskiq_ext._delivery import Delivery

logger = logging.getLogger(__name__)

_ORDINARY_GROUP = "taskiq"
_BROADCASTING = ("PubSub", "ZeroMQ")
_HOME = "_slotline_waiting_room"


class Tenant:
    """One middleware's part of a broker's waiting room: its store, and its lane there.

    Args:
        home: The waiting room.
        store: Returns the store; one that processes do not share has no room.
        lane: The lane; ``None``: one for each queue, see :func:`lane_of`.
        part: What tells this lane from those of other middlewares.
        on_lost: Called, in any thread, with the slot of a taken message, of any tenant, that is lost or evicted.
    """

    def __init__(
        self,
        home: WaitingRoom,
        store: Callable[[], Store | None],
        lane: str | None,
        part: str,
        on_lost: Callable[[Slot], None] | None,
    ) -> None:
        self._home, self._store, self._lane, self._part, self.on_lost = home, store, lane, part, on_lost

    @property
    def store(self) -> Store | None:
        """The store; ``None`` where processes do not share it."""
        store = self._store()
        return store if store is not None and store.shared else None

    @property
    def lane(self) -> str | None:
        """The name of the lane, ``None`` where it is not known."""
        lane = self._lane or self._home.lane
        return None if lane is None else lane + self._part

    @property
    def is_open(self) -> bool:
        """Whether messages may be parked at all."""
        return self.store is not None and self.lane is not None

    def room(self, delivery: Delivery | None) -> Room | None:
        """Return where ``delivery`` may be parked for this middleware; ``None``: it waits in the worker."""
        store = self.store
        return None if delivery is None or store is None or self.lane is None else delivery.feed.rooms.get(store)

    def freed(self, pool: Limit[Any]) -> None:
        """See :meth:`Feed.freed`."""
        for feed in self._home.feeds:
            feed.freed(pool)


class WaitingRoom:
    """Makes the parked messages of a broker's queue a second source of its ``listen()``.

    Args:
        broker: The broker; its ``listen`` is replaced, and asks a store only when a worker calls it.
    """

    def __init__(self, broker: AsyncBroker) -> None:
        self._broker = broker
        self._own = broker.listen
        self._tenants: list[Tenant] = []
        self.feeds: list[Feed] = []
        self._named: str | None = None
        self._served: str | None = None
        broker.listen = self.listen  # type: ignore[method-assign,assignment] # the receiver asks the instance, and iterates

    @property
    def lane(self) -> str | None:
        """What the broker's queue is called, ``None`` where that is not known."""
        return self._named or self._served or lane_of(self._broker)

    def let(
        self,
        store: Callable[[], Store | None],
        lane: str | None = None,
        *,
        part: str = "",
        on_lost: Callable[[Slot], None] | None = None,
    ) -> Tenant:
        """Serve one more middleware; see :class:`Tenant`."""
        self._named = self._named or lane
        tenant = Tenant(self, store, lane, part, on_lost)
        self._tenants.append(tenant)
        return tenant

    @property
    def lanes(self) -> set[str]:
        """The names of the lanes that its workers serve, as far as they are known."""
        return {tenant.lane for tenant in self._tenants if tenant.lane is not None}

    def listen(self) -> AsyncGenerator[bytes | AckableMessage, None] | Feed:
        """Return an iterator of the broker's messages, and those of its lanes."""
        self._served = None  # the broker's queues are settled only now
        queue = self._served = self.lane
        lanes: dict[Store, list[str]] = {}
        for tenant in self._tenants:
            store, lane = tenant.store, tenant.lane
            if store is not None and lane is not None:
                lanes.setdefault(store, []).append(lane)
            elif store is not None and not broadcasts(self._broker):
                logger.warning(
                    "Messages over their limit, or for a value that is being made, wait in the worker: the queue of %s "
                    "is not known. Give PoolLimitMiddleware a lane, one for each queue, and they are parked.",
                    type(self._broker).__name__,
                )
        if not lanes or queue is None:
            return self._own()
        feed = Feed(self._broker, self._own(), lanes, queue, self._lost)
        self.feeds.append(feed)
        return feed

    def _lost(self, slot: Slot) -> None:
        for tenant in self._tenants:
            if tenant.on_lost is not None:
                tenant.on_lost(slot)

    async def close(self) -> None:
        """Give back what was taken and will not be handled any more."""
        while self.feeds:
            await self.feeds.pop().give_back()


def waiting_room(broker: AsyncBroker) -> WaitingRoom:
    """Return the waiting room of ``broker``, made at first."""
    own: dict[str, Any] = vars(broker)
    if _HOME not in own:
        own[_HOME] = WaitingRoom(broker)
    home: WaitingRoom = own[_HOME]
    return home


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
    return any(name in kind.__name__ for kind in type(broker).__mro__ for name in _BROADCASTING)
