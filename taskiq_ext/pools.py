"""Limits on how many runs there are at once: ``PoolLimitMiddleware``."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from taskiq.exceptions import NoResultError

from slotline._checks import one_of, refuse, text
from slotline.caches import CacheAdapter, Hit
from slotline.errors import InvalidOptionError, PoolFullError, PoolTimeoutError, RunCancelledError, StoreError
from slotline.metrics import _telling
from slotline.metrics._names import name_keys, name_pools
from slotline.pools import Parked, Relay, Slot
from slotline.pools.demand import KeptLimits
from slotline.pools.sizes import check_size
from slotline.settings import default_store
from slotline.stores.base import Store
from taskiq_ext._base import LabelledMiddleware
from taskiq_ext._delivery import RUNS_LATER, TakenDelivery, delivery_for, size_on_the_way, without_result_if_parked
from taskiq_ext._guard import GuardedRuns
from taskiq_ext._interception import current_plan, function_of, plan_of
from taskiq_ext._labels import CACHE_LABELS, POOL_LABELS, pick
from taskiq_ext._limits import ON_LOST, PoolLimit, PoolOptions, declared_limit, pool_options, refuse_stale_without_cache
from taskiq_ext._outage import Outage
from taskiq_ext._room import broadcasts, waiting_room

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from taskiq.abc.broker import AsyncBroker
    from taskiq.message import TaskiqMessage
    from taskiq.result import TaskiqResult

    from slotline.pools import Limit, Room, Taken
    from slotline.pools.demand import Demand
    from slotline.settings import OnStoreError
    from taskiq_ext._delivery import Delivery
    from taskiq_ext._interception import AnyTask, Plan
    from taskiq_ext._limits import OnLost
    from taskiq_ext._room import Tenant

logger = logging.getLogger(__name__)


class PoolLimitMiddleware(LabelledMiddleware[PoolOptions]):
    """Let no more runs of the tasks that carry ``pool`` go on at once than the pool has slots, across all workers.

    A message takes its slot before its dependencies are resolved and its ``timeout`` starts to count, and gives it
    back after the run, before its result is saved and (where that is when messages are acknowledged, as by default)
    before it is acknowledged: a message that a dying worker leaves behind is delivered again and needs a slot again.
    Every outcome of a run gives the slot back. A worker that dies frees its slots within the heartbeat's lease. Where a
    limit does not bind, a short run that has returned hands its slot to the worker's next one; see
    ``slotline.pools.Relay``.

    On a store that processes share, a message that finds no slot is parked there, acknowledged to the broker, and
    costs no worker anything until there is a slot for it; then a worker of the same queue runs it. What a worker has
    taken from there and not acknowledged when it dies runs elsewhere, within the heartbeat's lease.

    Args:
        store: Where the slots are; ``None``: the configured store, which is this process's memory unless told
            otherwise, and then limits only this process.
        pools: Limits that tasks name by their ``pool`` label: a size, a :class:`PoolLimit`, or its options.
        on_store_error: What happens to a message while the store is away: it waits (``"wait"``), runs without the
            limit (``"open"``), or ends with ``StoreUnavailableError`` (``"fail"``). Default: the settings'.
        on_lost: What happens to a run whose slot is lost, as it is when the store was out of reach for longer than the
            heartbeat's lease, or whose pool is told to evict it. ``"cancel"``: it ends with ``SlotLostError``, before
            anybody else can have its slot; what runs in a thread cannot be ended, is warned about and counted in
            ``losses``. ``"warn"``: it goes on.
        lane: Where this broker's messages are parked; applications that share a store must not share lanes. Default:
            ``"taskiq:"`` and the names of the broker's queues.

    Raises:
        InvalidOptionError: An argument is impossible.
    """

    family = POOL_LABELS

    def __init__(
        self,
        store: Store | None = None,
        *,
        pools: Mapping[str, int | PoolLimit | Mapping[str, Any]] | None = None,
        on_store_error: OnStoreError | None = None,
        on_lost: OnLost = "cancel",
        lane: str | None = None,
    ) -> None:
        super().__init__()
        if store is not None and not isinstance(store, Store):
            raise refuse("store", store, "a Store, such as RedisStore(url), or None")
        if pools is not None and not isinstance(pools, Mapping):
            raise refuse("pools", pools, "a mapping of keys to sizes or PoolLimits")
        self.store = store
        self.on_lost: OnLost = one_of("on_lost", on_lost, ON_LOST)
        self.limits = {text("pools", key): declared_limit(key, limit) for key, limit in (pools or {}).items()}
        for limit in self.limits.values():
            limit.check_on_lost(limit.on_lost or self.on_lost)
        name_keys(self.limits)
        self.lane = None if lane is None else text("lane", lane)
        self._room: Tenant | None = None
        self._serving = False
        self._outage = Outage(on_store_error)
        self._runs = GuardedRuns()
        self._relay = Relay()
        self._limits = KeptLimits(store, self._runs.forfeit)
        self._releasing: set[asyncio.Task[Any]] = set()

    def read(self, labels: Mapping[str, Any], function: Callable[..., Any] | None) -> PoolOptions | None:
        """Return the options that ``labels`` ask for."""
        options = pool_options(labels, function, self.limits)
        if options is not None and options.limit.on_full == "park":
            store = self._shared_store() if self._serving else self.store
            if store is not None and not store.shared:
                raise refuse("pool_on_full", "park", "used with a store that processes share, such as RedisStore(url)")
        if options is not None:
            options.limit.check_on_lost(options.limit.on_lost or self.on_lost)
            if self._serving and len(options.pools) > 1:
                options.unfilled.made(self._shared_store())  # on a Cluster they need a group
        return options

    def serves_old(self, task: AnyTask, message: TaskiqMessage) -> bool:
        """Whether the message may end with an old value of the cache."""
        try:
            options = self.options_for(task, message)
        except InvalidOptionError:  # its result says so
            return False
        return options is not None and options.limit.on_full == "stale"

    def options_to_send(self, message: TaskiqMessage) -> PoolOptions | None:
        """Return the options that a message on its way out asks for; see :class:`LabelledMiddleware`."""
        options = super().options_to_send(message)
        task = self.broker.find_task(message.task_name)
        if task is not None and options is not None:
            refuse_stale_without_cache(options, {**task.labels, **message.labels})
            demand = options.demand_of(message, function_of(task))  # or says now what the arguments lack
            if demand is not None and len(demand.asked) > 1:
                demand.made()  # two of them may be one, for these arguments
            if demand is not None and self._parks(options.limit) and self._room is not None and self._room.is_open:
                check_size(size_on_the_way(message, self.broker), demand.key)
        return options

    def _check(self, function: Callable[..., Any], labels: Mapping[str, Any]) -> None:
        options = self.read(pick(self.family, labels), function)
        name_pools(pool.key for pool in (() if options is None else options.pools))
        refuse_stale_without_cache(options, labels)
        if self._serving and options is not None and options.limit.on_full == "stale":
            caches = [other for other in self.others() if CACHE_LABELS[0] in other.family]
            if not any(isinstance(getattr(cache, "cache", None), CacheAdapter) for cache in caches):
                raise refuse("pool_on_full", "stale", "used with a CacheMiddleware whose cache is a CacheAdapter")

    @property
    def losses(self) -> Mapping[str, int]:
        """How many runs of this process had to end: what was ``"ended"``, and what went on ``"running"``."""
        return {"ended": self._runs.losses["ended"], "running": self._runs.losses["running"]}

    def set_broker(self, broker: AsyncBroker) -> None:
        """Serve ``broker``; see :meth:`LabelledMiddleware.set_broker`."""
        super().set_broker(broker)
        if self._room is None:
            self._room = waiting_room(broker).let(self._shared_store, self.lane, on_lost=self._runs.forfeit)

    def startup(self) -> None:
        """Check the tasks of a worker against its store; see :meth:`LabelledMiddleware.startup`."""
        self._serving = self.broker.is_worker_process
        super().startup()

    def admit(self, plan: Plan, options: PoolOptions, message: TaskiqMessage) -> Coroutine[Any, Any, None] | None:
        """Take a slot for the message, or decide how it ends without one."""
        demand = options.demand_of(message, plan.real)
        if demand is None:
            return None  # the arguments do not fit: the function says so itself, at once
        limit, pool = options.limit, self._limits.of(demand)
        delivery = delivery_for(self.broker, plan.home)
        if delivery is not None and (taken := delivery.claimed(pool)) is not None:
            return self._run_taken(plan, taken, limit)
        slot = self._passed_on(pool, demand, delivery, message)
        if slot is None:
            return self._ask(plan, pool, limit, demand, delivery, message)
        self._hold(plan, pool, slot, limit)
        return None

    async def _ask(
        self,
        plan: Plan,
        pool: Limit[Any],
        limit: PoolLimit,
        demand: Demand,
        delivery: Delivery | None,
        message: TaskiqMessage,
    ) -> None:
        try:
            slot = await self._outage.ride_out(
                self._asking(pool, limit, demand, delivery, plan, message),
                f"{plan.name} cannot ask for pool {pool.key!r} and",
            )
        except PoolTimeoutError:
            raise
        except PoolFullError as error:
            if limit.on_full == "cancel_newest":
                _telling.turned_away(error, "cancelled")
                raise RunCancelledError(error.key, error.max_size, error.holders, error.retry_after) from None
            if limit.on_full == "drop":
                _telling.turned_away(error, "dropped")
                logger.info("%s is dropped: pool %r is full.", plan.name, pool.key)
                raise NoResultError from None
            if limit.on_full == "fail":
                raise
            raise PoolTimeoutError(error.key, error.max_size, error.holders, 0.0) from None  # its pool_timeout is 0
        if isinstance(slot, Hit):
            logger.debug("%s gets an old value: pool %r is full.", plan.name, pool.key)
            plan.hit = True
            plan.serve_value(slot.value)
        elif isinstance(slot, Parked):
            logger.info(
                "%s is parked: pool %r is full, and %d of its lane come before it.", plan.name, pool.key, slot.place
            )
            _run_later(plan)
            assert delivery is not None  # noqa: S101 - only a delivery can be parked
            await delivery.acknowledge_parked(message.task_id)
        elif slot is not None:
            self._hold(plan, pool, slot, limit)

    def post_execute(self, message: TaskiqMessage, result: TaskiqResult[Any]) -> Coroutine[Any, Any, None] | None:
        """Give the slot back."""
        without_result_if_parked(result)
        if current_plan() is None or (plan := plan_of(self, message)) is None:
            return None
        if plan.runs_later:  # what the receiver makes of a bad timeout, for example, is no result either
            result.error, result.return_value = NoResultError(), None
        plan.close(self)
        pool, slot = plan.pool, plan.slot
        if pool is None or slot is None:
            return None
        plan.pool = None
        plan.let_go(self)
        if self._goes_on(plan, pool, slot):
            return None
        self._runs.remove(slot)
        if not plan.from_room:
            return None if not result.is_err and self._relay.keep(pool, slot) else _release(pool, slot)
        delivery = delivery_for(self.broker, plan.home)
        if isinstance(delivery, TakenDelivery) and delivery.feed.has_place_of(delivery):
            return _give_back(slot, delivery.feed.pass_on(pool, slot))
        if self._room is not None:
            self._room.freed(pool)
        return _release(pool, slot)

    async def shutdown(self) -> None:
        """Give back what was taken and has not begun to run, and wait for slots that are on their way back."""
        if self._room is not None:
            await waiting_room(self.broker).close()
        if self._releasing:
            await asyncio.wait(self._releasing)
        if self._relay.is_open:  # who only sends needs no thread for it
            await asyncio.to_thread(self._relay.close)

    def _shared_store(self) -> Store:
        return self.store or default_store()

    def _passed_on(
        self, pool: Limit[Any], demand: Demand, delivery: Delivery | None, message: TaskiqMessage
    ) -> Slot | None:
        # The first copy of what is delivered again may be in the room, or run from there: only the store knows.
        if not demand.is_plain or (delivery is not None and delivery.is_again):
            return None
        return self._relay.take(pool, message.task_id)

    def _asking(
        self,
        pool: Limit[Any],
        limit: PoolLimit,
        demand: Demand,
        delivery: Delivery | None,
        plan: Plan,
        message: TaskiqMessage,
    ) -> Callable[[], Coroutine[Any, Any, Slot | Parked | Hit]]:
        owner, tenant, evict = message.task_id, self._room, limit.on_full == "cancel_oldest"
        wait = 0.0 if limit.on_full in ("fail", "drop", "cancel_newest") else limit.timeout
        ask: Callable[[], Coroutine[Any, Any, Slot | Parked | Hit]]
        ask = lambda: pool.acquire(owner=owner, timeout=wait, evict=evict, **demand.share)  # noqa: E731 - one of three ways
        # What no listen() has delivered, as in the InMemoryBroker, cannot be delivered again: it waits instead.
        if tenant is not None and delivery is not None and self._parks(limit):
            room, lane = tenant.room(delivery), tenant.lane
            if room is not None and lane is not None and room.store is pool.store:
                ask = lambda: _park(room, lane, pool, demand, delivery, owner, evict=evict)  # noqa: E731 - see above
        if limit.on_full != "stale":
            return ask

        async def now_or_an_old_value() -> Slot | Parked | Hit:
            try:
                slot: Slot = await pool.acquire(owner=owner, **demand.share)
            except PoolFullError as error:
                for other in self.others():
                    old = await other.old_value(plan, message)
                    if old is not None:
                        _telling.turned_away(error, "stale")
                        return old
                return await ask()
            return slot

        return now_or_an_old_value

    def _parks(self, limit: PoolLimit) -> bool:
        if limit.on_full in (None, "stale", "cancel_oldest"):
            return limit.timeout is None and not broadcasts(self.broker)
        return limit.on_full == "park"

    async def _run_taken(self, plan: Plan, taken: Taken, limit: PoolLimit) -> None:
        if taken.runs_elsewhere:  # it waited here too long, and runs elsewhere
            _run_later(plan)
            await taken.give_back()
        else:
            plan.from_room = True
            self._hold(plan, taken.pool, taken.slot, limit)

    def _hold(self, plan: Plan, pool: Limit[Any], slot: Slot, limit: PoolLimit) -> None:
        plan.pool, plan.slot = pool, slot
        plan.hold(self, self._abandon)
        self._runs.add(plan, slot, limit.on_lost or self.on_lost)

    def _abandon(self, plan: Plan) -> None:
        pool, slot, plan.pool = plan.pool, plan.slot, None
        if pool is not None and slot is not None and not self._goes_on(plan, pool, slot):
            self._release_soon(pool, slot)

    def _release_soon(self, pool: Limit[Any], slot: Slot) -> None:
        self._runs.remove(slot)
        with contextlib.suppress(RuntimeError):  # the loop is gone, and with it the process: the lease runs out
            releasing = asyncio.get_running_loop().create_task(_release(pool, slot))
            self._releasing.add(releasing)
            releasing.add_done_callback(self._releasing.discard)

    def _goes_on(self, plan: Plan, pool: Limit[Any], slot: Slot) -> bool:
        """Whether a thread or process is still at the run, whose message is over: it keeps the slot until it ends."""
        if plan.at_work is None:
            return False
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            return False

        def over() -> None:  # in the thread, or in one of the pool's
            try:
                loop.call_soon_threadsafe(self._release_soon, pool, slot)
            except RuntimeError:  # the loop is closed
                with contextlib.suppress(StoreError):
                    pool.sync.release(slot)

        goes_on = plan.at_work.when_over(over)
        if goes_on:
            logger.warning(
                "The message %s of task %s is over, and its thread or process is not: it keeps its slot of pool %r "
                "until then.",
                *(plan.message_id, plan.task.task_name, slot.key),
            )
        return goes_on


def _run_later(plan: Plan) -> None:
    plan.runs_later = True
    plan.serve_value(RUNS_LATER)


async def _park(
    room: Room, lane: str, pool: Limit[Any], demand: Demand, delivery: Delivery, owner: str, *, evict: bool
) -> Slot | Parked:
    outcome = await room.park(pool, delivery.sealed, lane=lane, owner=owner, **demand.share)
    if evict and isinstance(outcome, Parked):
        await pool.evict(**demand.share)
    return outcome


async def _release(pool: Limit[Any], slot: Slot) -> None:
    await _give_back(slot, pool.release(slot))


async def _give_back(slot: Slot, giving_back: Coroutine[Any, Any, object]) -> None:
    try:
        await giving_back
    except StoreError as error:  # the run is over and its result counts; the store tries again by itself
        logger.warning("Slot %s of pool %r is released in the background: %s", slot.token, slot.key, error)
