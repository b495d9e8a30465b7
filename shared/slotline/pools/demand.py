"""What a queue's task asks of the pools that it counts in: of one, or of several at the same time."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

from slotline import _checks
from slotline.errors import InvalidOptionError
from slotline.pools.limits import MOST, Limits
from slotline.pools.pool import Pool

if TYPE_CHECKING:
    from slotline.keys import KeyTemplate
    from slotline.pools.limit import Limit
    from slotline.pools.slot import Slot
    from slotline.stores.base import Store

OF_EACH: Final = ("size", "rate", "burst", "slot_exp", "group", "max_per_partition", "weight", "partition")
"""What the options of a limit say of each pool, and not of all together; in them ``pool_`` stands in front."""
_KEPT = 4096
"""How many limits are kept as objects; a pool with arguments in its key has one for each value."""
_KEYS = f"a string that is not empty, or a list of at most {MOST} different ones"
_OPTIONS = {"key": "pool", "pools": "pool", "max_size": "pool_size"}
"""What the queues call the options of pools that they do not call by the same name with ``pool_`` in front."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What a task asks of one pool.

    Attributes:
        key: The pool's key.
        options: The options of ``Pool``, by name.
        weight: How many of its slots a run counts as.
        partition: On whose account; ``None``: on nobody's.
    """

    key: str
    options: tuple[tuple[str, Any], ...]
    weight: int = 1
    partition: str | None = None


@dataclass(frozen=True)  # without slots, for what is worked out once: most tasks have one demand for all messages
class Demand:
    """What a task asks of all the pools that it counts in.

    Attributes:
        asked: What it asks of each.
    """

    asked: tuple[Asked, ...]

    @property
    def key(self) -> str:
        """What the pools are called together."""
        return " + ".join(one.key for one in self.asked)

    @property
    def share(self) -> dict[str, Any]:
        """The arguments by which the pools, or a room, are asked for what a run needs."""
        if len(self.asked) == 1:
            return {"weight": self.asked[0].weight, "partition": self.asked[0].partition}
        return {
            "weight": {one.key: one.weight for one in self.asked},
            "partition": {one.key: one.partition for one in self.asked},
        }

    @cached_property
    def is_plain(self) -> bool:
        """Whether it is one slot of one pool, on nobody's account."""
        return len(self.asked) == 1 and self.asked[0].weight == 1 and self.asked[0].partition is None

    @property
    def line(self) -> tuple[tuple[str, str | None], ...]:
        """What those have in common that wait one after the other: their pools, and their partitions of them."""
        return tuple((one.key, one.partition) for one in self.asked)

    @property
    def weights(self) -> tuple[int, ...]:
        """How many slots of each pool a run counts as."""
        return tuple(one.weight for one in self.asked)

    @cached_property
    def pools(self) -> tuple[Any, ...]:
        """What those have in common whom the same :meth:`made` serves."""
        return tuple((one.key, one.options) for one in self.asked)

    def made(self, store: Store | None = None, on_lost: Callable[[Slot], None] | None = None) -> Limit[Any]:
        """Return the pool, or the pools together.

        Args:
            store: Where they are; ``None``: the configured store.
            on_lost: Called, in any thread, with a slot that was lost or evicted.

        Raises:
            InvalidOptionError: They cannot be, or not together, or cannot give what is asked; it names the option.
        """
        with named_as_options():
            alone = on_lost if len(self.asked) == 1 else None
            made = [Pool(one.key, store=store, on_lost=alone, **dict(one.options)) for one in self.asked]
            limit: Limit[Any] = made[0] if len(made) == 1 else Limits(*made, on_lost=on_lost)
            limit.shares_of(**self.share)
            return limit


class KeptLimits:
    """The limits that demands were made into; those that nobody has asked for the longest time are forgotten.

    Args:
        store: Where they are; ``None``: the configured store.
        on_lost: Called, in any thread, with a slot that was lost or evicted.
    """

    def __init__(self, store: Store | None, on_lost: Callable[[Slot], None]) -> None:
        self._store, self._on_lost = store, on_lost
        self._made: OrderedDict[tuple[Any, ...], Limit[Any]] = OrderedDict()

    def of(self, demand: Demand) -> Limit[Any]:
        """Return the pool, or the pools together; see :meth:`Demand.made`."""
        key = demand.pools
        limit = self._made.get(key)
        if limit is None:
            limit = self._made[key] = demand.made(self._store, self._on_lost)
            if len(self._made) > _KEPT:
                self._made.popitem(last=False)
        elif len(self._made) > _KEPT // 2:  # with fewer it does not matter yet who was asked for when
            self._made.move_to_end(key)
        return limit


@dataclass(frozen=True, slots=True)
class OfPool:
    """What a task's options say of one of its pools, for all calls.

    Attributes:
        key: The pool's key, which may be a template.
        options: The options of ``Pool``, by name.
        weight: How many of its slots a run counts as.
        partition: The template of the partition that a run counts in; ``None``: in none.
    """

    key: KeyTemplate
    options: tuple[tuple[str, Any], ...]
    weight: int = 1
    partition: KeyTemplate | None = None

    @property
    def constant(self) -> bool:
        """Whether it is the same pool, and the same partition of it, for every call."""
        return self.key.constant and (self.partition is None or self.partition.constant)


def demand_of_all(pools: Collection[OfPool]) -> Demand | None:
    """Return what every call asks for; ``None`` where that depends on its arguments."""
    return demand_of(pools, lambda template: template.fill({})) if all(pool.constant for pool in pools) else None


def demand_of(pools: Iterable[OfPool], name: Callable[[KeyTemplate], str]) -> Demand:
    """Return what a call asks for, with ``name(template)`` in the place of each template.

    However a task has put its pools, those that ask for the same ask for it in the same order.
    """
    asked = (
        Asked(name(one.key), one.options, one.weight, None if one.partition is None else name(one.partition))
        for one in pools
    )
    return Demand(tuple(sorted(asked, key=lambda one: one.key)))


def keys_of(value: Any) -> tuple[str, ...]:
    """Return the keys of the pools that the option ``pool`` names: a text, or a list of several.

    Raises:
        InvalidOptionError: It is neither, too long, or names one twice.
    """
    keys = tuple(value) if isinstance(value, list | tuple) else (value,)
    named = all(isinstance(key, str) and key for key in keys)
    if not (named and 0 < len(keys) <= MOST and len(set(keys)) == len(keys)):
        raise _checks.refuse("pool", value, _KEYS)
    return keys


def for_each(check: Callable[[str, Any], Any]) -> Callable[[str, Any], Any]:
    """Return a check that takes a list, too: one value for each pool, ``None`` where that has its own."""

    def checked(option: str, value: Any) -> Any:
        if isinstance(value, list | tuple):
            return tuple(None if one is None else check(option, one) for one in value)
        return check(option, value)

    return checked


def spread(option: str, value: Any, count: int) -> tuple[Any, ...]:
    """Return what an option says of each of ``count`` pools: one value for all, or a list with one for each.

    Raises:
        InvalidOptionError: It is a list of another length, or there is one pool only.
    """
    if not isinstance(value, list | tuple):
        return (value,) * count
    if count == 1 or len(value) != count:
        allowed = "one value" if count == 1 else f"one value for all, or a list of one for each of the {count} pools"
        raise _checks.refuse(option, value, allowed)
    return tuple(value)


def said_of_each(options: Mapping[str, Any], count: int) -> list[dict[str, Any]]:
    """Return what the options of a task say of each of its pools, by the names in ``OF_EACH``.

    Raises:
        InvalidOptionError: A list has not a value for each of them.
    """
    said: list[dict[str, Any]] = [{} for _ in range(count)]
    for name in OF_EACH:
        option = f"pool_{name}"
        if option in options:
            for of_pool, value in zip(said, spread(option, options[option], count), strict=True):
                if value is not None or options[option] is None:  # in a list, None leaves it to the declared pool
                    of_pool[name] = value
    return said


@contextmanager
def named_as_options() -> Iterator[None]:
    """Let errors of pools name the options of the queues."""
    try:
        yield
    except InvalidOptionError as error:
        option = _OPTIONS.get(error.option, f"pool_{error.option}")
        raise InvalidOptionError(option, error.value, error.allowed) from None
