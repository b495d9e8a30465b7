"""Limits on how many runs there are at once: ``PoolLimitMiddleware``."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import OrderedDict
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from taskiq.exceptions import NoResultError

from slotline._checks import refuse, text
from slotline.errors import PoolFullError, PoolTimeoutError, StoreError
from slotline.pools import Pool, Slot
from slotline.stores.base import Store
from taskiq_ext._base import LabelledMiddleware
from taskiq_ext._calls import calls_of
from taskiq_ext._interception import current_plan, plan_of
from taskiq_ext._labels import POOL_LABELS, PoolLimit, PoolOptions, pool_options
from taskiq_ext._outage import Outage

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from taskiq.message import TaskiqMessage
    from taskiq.result import TaskiqResult

    from slotline.settings import OnStoreError
    from taskiq_ext._interception import Plan

logger = logging.getLogger(__name__)

_POOLS_KEPT = 4096


class PoolLimitMiddleware(LabelledMiddleware[PoolOptions]):
    """Let no more runs of the tasks that carry ``pool`` go on at once than the pool has slots, across all workers.

    A message takes its slot before its dependencies are resolved and its ``timeout`` starts to count, and gives it
    back after the run, before its result is saved and (unless it is acknowledged on receipt) before it is
    acknowledged: a message that a dying worker leaves behind is delivered again and needs a slot again. Every
    outcome of a run gives the slot back. A worker that dies frees its slots within the heartbeat's lease.

    Args:
        store: Where the slots are; ``None``: the configured store, which is this process's memory unless told
            otherwise, and then limits only this process.
        pools: Limits that tasks name by their ``pool`` label: a size, a :class:`PoolLimit`, or its options.
        on_store_error: What happens to a message while the store is away: it waits (``"wait"``), runs without the
            limit (``"open"``), or ends with ``StoreUnavailableError`` (``"fail"``). Default: the settings'.

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
    ) -> None:
        super().__init__()
        if store is not None and not isinstance(store, Store):
            raise refuse("store", store, "a Store, such as RedisStore(url), or None")
        if pools is not None and not isinstance(pools, Mapping):
            raise refuse("pools", pools, "a mapping of keys to sizes or PoolLimits")
        self.store = store
        self.limits = {text("pools", key): _limit(key, limit) for key, limit in (pools or {}).items()}
        self._outage = Outage(on_store_error)
        self._pools: OrderedDict[tuple[str, PoolLimit], Pool] = OrderedDict()
        self._held: dict[Plan, tuple[Pool, Slot]] = {}
        self._releasing: set[asyncio.Task[Any]] = set()

    def read(self, labels: Mapping[str, Any], function: Callable[..., Any] | None) -> PoolOptions | None:
        """Return the options that ``labels`` ask for."""
        return pool_options(labels, function, self.limits)

    async def admit(self, plan: Plan, options: PoolOptions, message: TaskiqMessage) -> None:
        """Take a slot for the message, or decide how it ends without one."""
        key = calls_of(plan.real).fill(options.key, message)
        if key is None:
            return  # the arguments do not fit: the function says so itself, at once
        pool, limit = self._pool(key, options.limit), options.limit
        wait = limit.timeout if limit.on_full == "wait" else 0.0
        try:
            slot = await self._outage.ride_out(
                lambda: pool.acquire(owner=message.task_id, timeout=wait),
                f"Task {message.task_name} with id {message.task_id} cannot ask for pool {key!r} and",
            )
        except PoolTimeoutError:
            raise
        except PoolFullError:
            if limit.on_full != "drop":
                raise
            logger.info("Task %s with id %s is dropped: pool %r is full.", message.task_name, message.task_id, key)
            raise NoResultError from None
        if slot is not None:
            plan.slot = slot
            self._held[plan] = pool, slot
            plan.hold(self, lambda: self._abandon(plan))

    def post_execute(self, message: TaskiqMessage, result: TaskiqResult[Any]) -> Coroutine[Any, Any, None] | None:
        """Give the slot back."""
        del result
        if current_plan() is None or (plan := plan_of(self, message)) is None:
            return None
        plan.close(self)
        held = self._held.pop(plan, None)
        if held is None:
            return None
        plan.let_go(self)
        return _release(*held)

    async def shutdown(self) -> None:
        """Wait for slots that are on their way back."""
        if self._releasing:
            await asyncio.wait(self._releasing)

    def _pool(self, key: str, limit: PoolLimit) -> Pool:
        pool = self._pools.get((key, limit))
        if pool is None:
            pool = self._pools[key, limit] = Pool(key, limit.size, limit.slot_exp, store=self.store)
            if len(self._pools) > _POOLS_KEPT:
                self._pools.popitem(last=False)
        else:
            self._pools.move_to_end((key, limit))
        return pool

    def _abandon(self, plan: Plan) -> None:
        held = self._held.pop(plan, None)
        if held is not None:
            with contextlib.suppress(RuntimeError):  # the loop is gone, and with it the process: the lease runs out
                releasing = asyncio.get_running_loop().create_task(_release(*held))
                self._releasing.add(releasing)
                releasing.add_done_callback(self._releasing.discard)


async def _release(pool: Pool, slot: Slot) -> None:
    try:
        await pool.release(slot)
    except StoreError as error:  # the run is over and its result counts; the store tries again by itself
        logger.warning("Slot %s of pool %r is released in the background: %s", slot.token, slot.key, error)


def _limit(key: str, limit: int | PoolLimit | Mapping[str, Any]) -> PoolLimit:
    if isinstance(limit, PoolLimit):
        return limit
    if not isinstance(limit, Mapping):
        return PoolLimit(size=limit)
    for name, value in limit.items():
        if name not in PoolLimit.__dataclass_fields__:
            raise refuse(f"pools[{key!r}].{name}", value, "one of " + ", ".join(PoolLimit.__dataclass_fields__))
    if "size" not in limit:
        raise refuse(f"pools[{key!r}]", dict(limit), "options with a size")
    return PoolLimit(**limit)
