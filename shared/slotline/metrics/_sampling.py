"""The state of pools, asked of their stores when somebody looks, and at no other time."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final, NamedTuple
from weakref import WeakKeyDictionary, ref

from slotline.metrics._names import label_of
from slotline.metrics.exporter import PoolFigures

if TYPE_CHECKING:
    from slotline.pools.info import PoolInfo
    from slotline.pools.pool import Pool
    from slotline.stores.base import Store

logger = logging.getLogger("slotline.metrics")

PATIENCE: Final = 2.0
"""Seconds for which one look waits for the stores; whoever looks, a scrape, has some ten in all."""
_SAME: Final = 0.5
"""Seconds within which two looks are one."""
_MOST: Final = 1000
"""How many pools are asked about in one look: those of which this process has heard last."""


class Known(NamedTuple):
    """A pool, as far as it has to be known to be asked about."""

    key: str
    keys: tuple[bytes, ...]
    size: int


class Look(NamedTuple):
    """A store that is asked: in a thread, since it may not answer, for what it has found, since when."""

    thread: threading.Thread
    found: list[PoolInfo]
    since: float


class SampledPools:
    """The pools that this process uses; any thread may use it."""

    def __init__(self) -> None:
        self._known: dict[tuple[ref[Store], str], Known] = {}  # a store goes with the last one who uses it
        self._looks: WeakKeyDictionary[Store, Look] = WeakKeyDictionary()
        self._told: list[PoolFigures] = []
        self._told_at = -math.inf

    def note(self, pool: Pool) -> None:
        """Take notice of a pool."""
        at = ref(pool.store), pool.name
        if at not in self._known:
            if len(self._known) >= _MOST:
                self._known.pop(next(iter(self._known)))
            self._known[at] = Known(pool.key, pool.keys, pool.max_size)

    def sample(self) -> list[PoolFigures]:
        """Return what their stores say, one batch of commands each; of a store that does not answer in time, nothing.

        While a store has no answer, the next look asks it nothing, so that a server that is silent collects no threads;
        and what is looked at twice at the same time, as by two gauges, is asked for once.
        """
        now = time.monotonic()
        if now - self._told_at < _SAME:
            return self._told
        looks = [self._look(store, pools, now) for store, pools in self._by_store().items()]
        found: list[PoolInfo] = []
        for look in looks:
            look.thread.join(max(0.0, look.since + PATIENCE - time.monotonic()))
            found += look.found
        self._told, self._told_at = summed(found), time.monotonic()
        return self._told

    def _by_store(self) -> dict[Store, list[Known]]:
        by_store: dict[Store, list[Known]] = {}
        for at, known in list(self._known.items()):
            store = at[0]()
            if store is None:
                self._known.pop(at, None)
            else:
                by_store.setdefault(store, []).append(known)
        return by_store

    def _look(self, store: Store, pools: list[Known], now: float) -> Look:
        look = self._looks.get(store)
        if look is None or not look.thread.is_alive():
            found: list[PoolInfo] = []
            thread = threading.Thread(target=_ask, args=(store, pools, found), name="slotline-metrics", daemon=True)
            thread.start()
            look = self._looks[store] = Look(thread, found, now)
        return look


def _ask(store: Store, pools: list[Known], found: list[PoolInfo]) -> None:
    try:
        found += infos_of(store, pools)
    except Exception as error:  # noqa: BLE001 - who looks sees that there is nothing
        logger.debug("the pools of the store %s cannot be sampled: %s", store.name, error)


def infos_of(store: Store, pools: Iterable[Known]) -> list[PoolInfo]:
    """Return the state of pools of one store, by one batch of commands."""
    from slotline.pools._wire import info_command, read_info  # noqa: PLC0415 - the pools import this module

    asked = list(pools)
    replies = store.sync.execute_many([info_command(known.keys, known.size, 0) for known in asked])
    told = zip(asked, replies, strict=True)
    return [read_info(known.key, reply) for known, reply in told if not isinstance(reply, Exception)]


def summed(infos: Iterable[PoolInfo]) -> list[PoolFigures]:
    """Return one entry for each label, of all the pools that have it."""
    figures: dict[str, PoolFigures] = {}
    for info in infos:
        label = label_of(info.key)
        if label is not None:
            _, used, waiting, limit = figures.get(label, PoolFigures(label, 0, 0, 0))
            both = None if limit is None or info.max_size is None else limit + info.max_size
            figures[label] = PoolFigures(label, used + info.used, waiting + info.waiting, both)
    return [figures[label] for label in sorted(figures)]
